package producer

import (
	"context"
	"math"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// recordOverhead is what a record takes in the buffer beside its own bytes.
const recordOverhead = 48

func sizeOf(r *Record) int {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + 8
	}
	return n
}

// add puts a record into the open batch of its partition.
func (p *Producer) add(ctx context.Context, r Record, done func(Result, error)) (Future, error) {
	n := sizeOf(&r)
	ms := r.Timestamp.UnixMilli()
	if r.Timestamp.IsZero() {
		ms = clock.System().Now().UnixMilli()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	top, err := p.admitLocked(ctx, r.Topic, n)
	if err != nil {
		return Future{}, err
	}
	t, err := p.chooseLocked(top, &r)
	if err != nil {
		return Future{}, err
	}
	rec := record.Record{Timestamp: ms, Key: r.Key, Value: r.Value, Headers: r.Headers}
	b := p.roomLocked(t, rec)
	b.builder.Append(rec)
	b.records = append(b.records, recordMeta{timestamp: ms, done: done})
	b.callbacks = b.callbacks || done != nil
	b.bytes += n
	p.bytes += n
	p.records++
	if b.builder.SizeEstimate() >= p.batchBytes(t) {
		p.sealLocked(t)
	}
	p.scheduleLocked(t, b)
	return Future{batch: b, timestamp: ms, index: int32(len(b.records) - 1)}, nil
}

// addBatch queues records as one batch of their own.
func (p *Producer) addBatch(ctx context.Context, topic string, partition int32, records []Record, o appendOptions) (*batch, error) {
	if len(records) == 0 {
		return nil, errs.Errorf(errs.InvalidRecord, "append to %s/%d: there are no records", topic, partition)
	}
	n := 0
	for i := range records {
		n += sizeOf(&records[i])
	}
	now := clock.System().Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	top, err := p.admitLocked(ctx, topic, n)
	if err != nil {
		return nil, err
	}
	if partition < 0 || int(partition) >= len(top.parts) {
		return nil, noPartition(topic, partition, len(top.parts))
	}
	t := top.parts[partition]
	if t.open != nil {
		p.sealLocked(t)
	}
	b := p.newBatchLocked(t, n)
	b.whole, b.conditional, b.expect = true, o.conditional, o.expect
	b.bytes = n
	for _, r := range records {
		at := r.Timestamp
		if at.IsZero() {
			at = now
		}
		b.builder.Append(record.Record{Timestamp: at.UnixMilli(), Key: r.Key, Value: r.Value, Headers: r.Headers})
		b.records = append(b.records, recordMeta{timestamp: at.UnixMilli()})
	}
	p.bytes += n
	p.records += len(records)
	p.sealLocked(t)
	p.enqueueLocked(t)
	return b, nil
}

// admit finds the topic and waits until n bytes have room. It lets go of the
// lock while it waits.
func (p *Producer) admitLocked(ctx context.Context, name string, n int) (*topic, error) {
	if n > p.cfg.bufferBytes {
		return nil, errs.Errorf(errs.MessageTooLarge, "%d bytes at once do not fit into the producer's buffer of %d", n, p.cfg.bufferBytes)
	}
	for {
		if p.closed {
			return nil, ErrClosed
		}
		top := p.topics[name]
		if top == nil {
			if err := p.discoverLocked(ctx, name); err != nil {
				return nil, err
			}
			continue
		}
		if p.bytes+n <= p.cfg.bufferBytes {
			return top, nil
		}
		if p.cfg.fullBuffer == RefuseWhenFull {
			return nil, ErrBufferFull
		}
		if err := p.waitSpaceLocked(ctx); err != nil {
			return nil, err
		}
	}
}

// discover asks for the partitions of a topic, for as long as a record may wait
// for its delivery. It lets go of the lock meanwhile.
func (p *Producer) discoverLocked(ctx context.Context, name string) error {
	p.mu.Unlock()
	defer p.mu.Lock()
	for began := clock.Monotonic(); ; {
		found, err := p.client.Topic(ctx, name)
		if err == nil {
			p.mu.Lock()
			p.growLocked(found)
			p.mu.Unlock()
			return nil
		}
		passing := errs.Retriable(err) && errs.CodeOf(err) != errs.UnknownTopicOrPartition
		if !passing || ctx.Err() != nil || clock.Since(began) >= p.cfg.deliveryTimeout {
			return err
		}
	}
}

func (p *Producer) waitSpaceLocked(ctx context.Context) error {
	if p.space == nil {
		p.space = make(chan struct{})
	}
	space := p.space
	p.mu.Unlock()
	defer p.mu.Lock()
	select {
	case <-space:
		return nil
	case <-p.group.Context().Done():
		return ErrClosed
	case <-ctx.Done():
		return errs.Errorf(errs.RequestTimedOut, "waiting for space in the producer's buffer: %w", ctx.Err())
	}
}

// grow makes the partitions of a topic that it does not have yet.
func (p *Producer) growLocked(found *client.Topic) {
	top := p.topics[found.Name]
	if top == nil {
		top = &topic{}
		p.topics[found.Name] = top
	}
	for len(top.parts) < len(found.Partitions) {
		t := &part{topic: found.Name, number: int32(len(top.parts))}
		top.parts = append(top.parts, t)
		p.parts = append(p.parts, t)
	}
}

func (p *Producer) chooseLocked(top *topic, r *Record) (*part, error) {
	if len(top.parts) == 0 {
		return nil, errs.Errorf(errs.LeaderNotAvailable, "topic %s has no partitions yet; try again", r.Topic)
	}
	// A copy of our own, because what goes through an interface is allocated.
	p.choosing = *r
	n := p.cfg.partitioner.Partition(&p.choosing, int32(len(top.parts)))
	p.choosing = Record{}
	if n < 0 || int(n) >= len(top.parts) {
		return nil, noPartition(r.Topic, n, len(top.parts))
	}
	return top.parts[n], nil
}

func noPartition(topic string, n int32, of int) error {
	return errs.Errorf(errs.InvalidPartitions, "topic %s has the partitions 0 to %d, so there is no partition %d", topic, of-1, n)
}

// room returns the open batch of t, or a new one if rec does not fit into it.
func (p *Producer) roomLocked(t *part, rec record.Record) *batch {
	if b := t.open; b != nil {
		if b.builder.SizeWith(rec) <= p.batchBytes(t) && len(b.records) < math.MaxInt16 {
			return b
		}
		p.sealLocked(t)
		p.enqueueLocked(t)
	}
	return p.newBatchLocked(t, 0)
}

// batchBytes is how large a batch of t may grow.
func (p *Producer) batchBytes(t *part) int {
	if t.limit > 0 {
		return min(t.limit, p.cfg.batchBytes)
	}
	return p.cfg.batchBytes
}

func (p *Producer) newBatchLocked(t *part, bytes int) *batch {
	capacity := max(bytes, min(t.lastSize+t.lastSize/4, p.cfg.batchBytes))
	b := &batch{
		part:    t,
		started: clock.Monotonic(),
		builder: p.newBuilder(capacity),
		done:    make(chan struct{}),
		result:  Result{Topic: t.topic, Partition: t.number, Offset: -1},
	}
	t.queue = append(t.queue, b)
	t.open = b
	return b
}

// seal closes the open batch: it takes no more records.
func (p *Producer) sealLocked(t *part) {
	t.open.sealed = true
	t.lastSize = t.open.builder.SizeEstimate()
	t.open = nil
	if aware, ok := p.cfg.partitioner.(batchAware); ok {
		aware.batchClosed(t.topic, t.number)
	}
}

// schedule makes sure that b is looked at when it is ripe.
func (p *Producer) scheduleLocked(t *part, b *batch) {
	if b.sealed || t.inFlight == 0 || p.flushing > 0 || p.cfg.linger == 0 {
		p.enqueueLocked(t)
		return
	}
	if len(b.records) > 1 {
		return // its timer runs
	}
	if t.linger == nil {
		t.linger = time.AfterFunc(p.cfg.linger, func() { p.enqueue(t) })
		return
	}
	t.linger.Reset(p.cfg.linger)
}

func (p *Producer) enqueue(t *part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enqueueLocked(t)
}

// enqueue puts t on the ready list of the link to its leader.
func (p *Producer) enqueueLocked(t *part) {
	if t.queued || len(t.queue) == 0 {
		return
	}
	l := p.linkLocked(t)
	if l == nil {
		p.refresh.Trigger()
		return
	}
	t.queued = true
	l.ready = append(l.ready, t)
	l.poke()
}

// release gives back the memory of a batch whose callbacks have run.
func (p *Producer) releaseLocked(b *batch) {
	p.bytes -= b.bytes
	p.records -= len(b.records)
	if p.space != nil {
		close(p.space)
		p.space = nil
	}
}
