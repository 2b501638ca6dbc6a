package producer

import (
	"context"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

type batchState int

const (
	waiting  batchState = iota // in its partition's queue, to be sent (again)
	inFlight                   // sent, not answered
	finished                   // has its result; may still wait for those before it
)

// batch is the records of one partition that are sent together. Its bytes do
// not change once it is built, so every attempt sends the same.
type batch struct {
	part    *part
	started clock.Mono
	sealed  bool // guarded by Producer.mu; takes no more records

	builder *record.Builder // until sealed guarded by Producer.mu, then the link's that sends it
	raw     record.Raw      // built by the first attempt; only the link that sends it touches it

	records   []recordMeta // guarded by Producer.mu until sealed
	callbacks bool         // guarded by Producer.mu; some record has one
	bytes     int          // guarded by Producer.mu; what the records take of the buffer

	state batchState // guarded by Producer.mu
	// maybe: an attempt may have appended the batch. Such a batch keeps its
	// producer id and sequence for good, or it could be appended twice.
	maybe        bool  // guarded by Producer.mu
	lastErr      error // guarded by Producer.mu; of the last attempt
	unknownTopic int   // guarded by Producer.mu; answers that there is no such partition

	numbered bool  // guarded by Producer.mu; pid, epoch and seq are set
	stamped  bool  // the link's; the numbers stand in raw
	pid      int64 // guarded by Producer.mu, as are the next two
	epoch    int16
	seq      int32

	halves [2]*batch // guarded by Producer.mu until done; set when the batch was split
	parent *batch    // guarded by Producer.mu; set for the second half of a split

	whole       bool // immutable: all or nothing, never split
	conditional bool // immutable: expect holds, and the batch travels alone
	expect      record.Offset

	done   chan struct{} // closed once the fields below are set
	result Result        // of the first record
	err    error
}

// recordMeta is what is kept of a record beside its bytes.
type recordMeta struct {
	timestamp int64 // milliseconds
	done      func(Result, error)
}

// resultOf is the result of record i, after done.
func (b *batch) resultOf(i int32, timestamp int64) (Result, error) {
	for b.halves[0] != nil {
		if n := int32(len(b.halves[0].records)); i < n {
			b = b.halves[0]
		} else {
			b, i = b.halves[1], i-n
		}
	}
	if b.err != nil {
		return Result{Topic: b.result.Topic, Partition: b.result.Partition, Offset: -1, Timestamp: time.UnixMilli(timestamp)}, b.err
	}
	r := b.result
	if r.Offset >= 0 {
		r.Offset += record.Offset(i)
		r.end = r.Offset + 1
	}
	if r.Timestamp.IsZero() {
		r.Timestamp = time.UnixMilli(timestamp)
	}
	return r, nil
}

// take notes what the broker answered.
func (b *batch) take(res *tidemarkv1.ProduceResponse) {
	b.result.Offset = record.Offset(res.GetBaseOffset())
	b.result.Epoch = record.Epoch(res.GetPosition().GetLeaderEpoch())
	b.result.Duplicate = res.GetDuplicate()
	b.result.Acked = Acks(res.GetAcked())
	if ms := res.GetLogAppendTimeMs(); ms > 0 {
		b.result.Timestamp = time.UnixMilli(ms)
	}
	copy(b.result.topicID[:], res.GetPosition().GetTopicId())
}

// Future is the result of one record, later. It is small and passed by value.
type Future struct {
	batch     *batch
	timestamp int64
	index     int32
}

// Done is closed when the result is there.
func (f Future) Done() <-chan struct{} { return f.batch.done }

// Wait returns the result. When ctx ends first, it returns ctx's error, and
// the record stays on its way.
func (f Future) Wait(ctx context.Context) (Result, error) {
	select {
	case <-f.batch.done:
		return f.batch.resultOf(f.index, f.timestamp)
	default:
	}
	select {
	case <-f.batch.done:
		return f.batch.resultOf(f.index, f.timestamp)
	case <-ctx.Done():
		return Result{Topic: f.batch.part.topic, Partition: f.batch.part.number, Offset: -1}, ctx.Err()
	}
}

// refused is a future that has failed already.
func refused(topic string, partition int32, err error) Future {
	b := &batch{part: &part{topic: topic, number: partition}, done: make(chan struct{}), err: err, result: Result{Topic: topic, Partition: partition, Offset: -1}}
	close(b.done)
	return Future{batch: b}
}
