package producer

import (
	"slices"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// split puts two halves in the place of a batch that is larger than its topic takes, and keeps
// later batches smaller. False where that cannot be done: one record alone is too large, the
// caller wanted all or nothing, or an attempt may have appended the batch.
func (p *Producer) splitLocked(b *batch) bool {
	t := b.part
	n := len(b.records)
	if n < 2 || b.whole || b.maybe {
		return false
	}
	builders := [2]*record.Builder{p.newBuilder(len(b.raw) / 2), p.newBuilder(len(b.raw) / 2)}
	i := 0
	for r, err := range b.raw.Records(0) {
		if err != nil {
			return false // we built it, so this does not happen
		}
		builders[i/(n/2+n%2)].Append(r)
		i++
	}
	t.unnumberLocked(b)
	at := slices.Index(t.queue, b)
	b.halves = [2]*batch{b.half(builders[0], 0, n/2+n%2), b.half(builders[1], n/2+n%2, n)}
	b.halves[1].parent = b
	b.halves[1].bytes = b.bytes - b.halves[0].bytes
	b.state = finished
	t.limit = min(p.batchBytes(t), max(builders[0].SizeEstimate(), record.HeaderBytes))
	t.queue = slices.Replace(t.queue, at, at+1, b.halves[0], b.halves[1])
	// What travels behind it is refused for its number, and is sent again.
	t.draining = t.draining || t.inFlight > 0
	return true
}

// half is a batch of its own with the records from first to last-1 of b.
func (b *batch) half(builder *record.Builder, first, last int) *batch {
	return &batch{
		part: b.part, started: b.started, sealed: true, builder: builder,
		records: b.records[first:last], callbacks: b.callbacks, bytes: b.bytes * (last - first) / len(b.records),
		done: make(chan struct{}), result: Result{Topic: b.part.topic, Partition: b.part.number, Offset: -1},
	}
}

func (p *Producer) newBuilder(capacity int) *record.Builder {
	return record.NewBuilder(record.BuilderConfig{Codec: p.cfg.codec, Level: p.cfg.level, CapacityBytes: capacity})
}
