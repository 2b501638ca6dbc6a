package partition

import (
	"context"
	"fmt"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

var (
	errNotLeader      = errs.New(errs.NotLeaderOrFollower, "this replica does not lead the partition; nothing was appended: ask for metadata and retry at the leader")
	errLeadershipLost = errs.Unknown(errs.NotLeaderOrFollower, "this replica lost the leadership before the append had committed; it may or may not be done")
	errStopping       = errs.New(errs.ShuttingDown, "the replica is stopping; nothing was appended: retry at another broker")
	errStopped        = errs.Unknown(errs.ShuttingDown, "the replica stopped before the append had committed; it may or may not be done")
	errFailed         = errs.New(errs.KafkaStorageError, "the replica's storage has failed; nothing was appended")
	errFailedLate     = errs.Unknown(errs.KafkaStorageError, "the replica's storage failed before the append had committed; it may or may not be done")
)

// ExpectationError says where the partition ended when a conditional append
// found it elsewhere than expected. Its code is errs.ExpectationFailed.
type ExpectationError struct {
	Expected, Actual record.Offset
}

// Error implements error.
func (e *ExpectationError) Error() string {
	return fmt.Sprintf("nothing was appended: the partition ends at offset %d, the append expected %d", e.Actual, e.Expected)
}

// Unwrap gives the error its code.
func (e *ExpectationError) Unwrap() error { return errs.New(errs.ExpectationFailed, "") }

// ActualOffset lets a door tell the client where the partition ends, without
// knowing this type.
func (e *ExpectationError) ActualOffset() record.Offset { return e.Actual }

// Pending is an append on its way. Appends of one caller are ordered by the calls of
// Replica.Append.
type Pending struct {
	done   chan struct{}
	result Appended // written before done is closed
	err    error    // written before done is closed

	// What was asked; immutable.
	acks      Acks
	minInsync int
	records   int32
	expect    record.Offset
	claim     claim
	appendAt  bool // the answer carries the time of the append
	began     clock.Mono

	ruling ruling // written by the store before anybody is answered

	// Guarded by the proposals' lock.
	number   uint64
	index    log.Index
	term     log.Term
	written  bool // by the leader
	durable  bool // when it was written
	copies   int  // in sync when all of them had it; for AcksAll
	answered bool
	release  func()
}

// rule notes the store's verdict.
func (p *Pending) rule(r ruling) { p.ruling = r }

// answer gives the answer, once. The proposals' lock is held.
func (p *Pending) answer(a Appended, err error) {
	p.answered = true
	p.result, p.err = a, err
	close(p.done)
}

// Done is closed when Result is there.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Result waits for the answer. When ctx ends first the error says that the
// outcome is unknown (errs.RequestTimedOut).
func (p *Pending) Result(ctx context.Context) (Appended, error) {
	select {
	case <-p.done:
		return p.result, p.err
	default:
	}
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return Appended{}, fmt.Errorf("%w: %w", errs.Unknown(errs.RequestTimedOut, "the append was not answered in time; it may or may not be done"), ctx.Err())
	}
}

// answers turns rulings into answers.
type answers struct {
	isr     ISR
	metrics *Metrics
	log     interface {
		StartOffset() record.Offset
		EpochAt(record.Offset) record.Epoch
		Durable() log.Index
	}
}

// of is the answer to a proposal that was stored, and has reached what acks says.
func (a answers) of(p *Pending, acks Acks) (Appended, error) {
	r := p.ruling
	switch r.verdict {
	case refused:
		a.metrics.refuse(r.code)
		return Appended{}, p.refusal()
	case log.Accepted, duplicate, trimmed:
	default:
		return Appended{}, errs.Errorf(errs.UnknownServerError, "entry %d was stored with verdict %d", p.index, r.verdict)
	}
	if acks == AcksAll && p.copies < p.minInsync {
		return Appended{}, fmt.Errorf("%w: %d of %d replicas are in sync", errFewReplicasLate, p.copies, p.minInsync)
	}
	out := Appended{
		BaseOffset:    r.offset,
		EndOffset:     r.offset + record.Offset(p.records),
		Epoch:         record.Epoch(p.term),
		LogAppendTime: -1,
		LogStart:      a.log.StartOffset(),
		Acked:         acks,
		Durable:       p.durable || a.log.Durable() >= p.index && (acks == AcksLeader || a.isr.Majority() == 1),
		Duplicate:     r.verdict == duplicate,
	}
	if p.appendAt {
		out.LogAppendTime = r.time
	}
	if out.Duplicate {
		out.Epoch = a.log.EpochAt(r.offset)
		a.metrics.suppress()
	}
	a.metrics.committed(clock.Since(p.began))
	return out, nil
}

// refusal says why the store did not accept the batch.
func (p *Pending) refusal() error {
	c := p.claim
	switch code := p.ruling.code; code {
	case errs.ExpectationFailed:
		return &ExpectationError{Expected: p.expect, Actual: p.ruling.offset}
	case errs.InvalidProducerEpoch:
		return errs.Errorf(code, "nothing was appended: producer %d has a newer epoch than %d", c.producer, c.epoch)
	case errs.OutOfOrderSequenceNumber:
		return errs.Errorf(code, "nothing was appended: sequence %d of producer %d, epoch %d, does not follow its last batch", c.first, c.producer, c.epoch)
	default:
		return errs.Errorf(code, "nothing was appended")
	}
}
