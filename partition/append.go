package partition

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// HeadRoom is how many bytes Append.Batch may have in front of the batch to spare a copy.
const HeadRoom = 32

// minRecordBytes is the least that a record takes, uncompressed.
const minRecordBytes = 7

var (
	errFewReplicas     = errs.New(errs.NotEnoughReplicas, "nothing was appended: too few replicas are in sync")
	errFewReplicasLate = errs.Unknown(errs.NotEnoughReplicasAfterAppend, "appended, but too few replicas are in sync")
	errStorageLow      = errs.New(errs.StorageLow, "nothing was appended: the broker's disk is nearly full; free space, or shorten the retention of a topic")
	errStalled         = errs.New(errs.KafkaStorageError, "nothing was appended: the broker's disk has not answered for seconds; retry")
)

// Acks is the durability after which an append is answered.
type Acks uint8

// The zero Acks is the strongest. AcksLeader may be lost when the leader is; with one
// replica AcksQuorum and AcksAll are the same.
const (
	AcksAll    Acks = iota // committed, and durable on every in-sync replica
	AcksNone               // queued; the answer knows no offset
	AcksLeader             // durable on the leader
	AcksQuorum             // committed: durable on a majority
)

// Append is one append. The replica owns Batch from the call on, until the
// state machine has applied it, even after the caller gave up.
type Append struct {
	Batch []byte // one record batch v2, not yet checked; base offset ignored
	// Room says that the first HeadRoom bytes of Batch are not part of the batch but
	// free for the replica, which then copies nothing. It holds all of the
	// memory behind Batch while it owns it: a small slice of a large buffer
	// is better handed over without room, to be copied.
	Room bool
	Acks Acks
	// Expect, when Conditional, is the offset at which the partition must end.
	Conditional bool
	Expect      record.Offset
	// Enqueue bounds the wait for a place in Raft's queue; the caller bounds the rest.
	// Zero waits as long as the caller's context.
	Enqueue time.Duration
	// Release, when not nil, is called exactly once, when the replica no
	// longer owns Batch: the bytes in flight are counted down there. It must not
	// block. It is not called when Replica.Append itself returns an error.
	Release func()
}

// Appended is what became of an append.
type Appended struct {
	BaseOffset    record.Offset
	EndOffset     record.Offset // one past the last record
	Epoch         record.Epoch
	LogAppendTime int64 // -1 unless the topic stamps it
	LogStart      record.Offset
	Acked         Acks // the durability that was reached
	// Durable says that the copies that Acked counts are on disk. False with
	// flush=interval and flush=os: they are written, and a power cut may take them.
	Durable   bool
	Duplicate bool
}

// Append starts an append; it returns after the order is fixed and never waits
// for the disk, but for a place in the queue when it is full. Refusals known at once come back as
// error: then nothing was appended.
func (r *Replica) Append(ctx context.Context, a Append) (*Pending, error) {
	p, data, err := r.prepare(a)
	if err == nil {
		err = r.propose(ctx, p, data, a.Enqueue)
	}
	if err != nil {
		r.deps.Metrics.refuse(errs.CodeOf(err))
		return nil, err
	}
	return p, nil
}

// prepare makes the cheap checks and the command. The verdict, which counts, falls in the store.
func (r *Replica) prepare(a Append) (*Pending, []byte, error) {
	t := r.topic.Load()
	if err := r.ready(); err != nil {
		return nil, nil, err
	}
	if isr := r.deps.ISR; a.Acks == AcksAll && isr.Size() < max(t.MinInsync, isr.Majority()) {
		return nil, nil, fmt.Errorf("%w: %d, a majority is %d, and min.insync.replicas is %d", errFewReplicas, isr.Size(), isr.Majority(), t.MinInsync)
	}
	b, err := r.check(a, t)
	if err != nil {
		return nil, nil, err
	}
	data := a.Batch
	if !a.Room {
		data = make([]byte, HeadRoom+len(b))
		copy(data[HeadRoom:], b)
	}
	p := &Pending{
		done: make(chan struct{}), acks: a.Acks, minInsync: t.MinInsync, records: b.Count(), expect: a.Expect,
		claim: claimOf(b), appendAt: t.LogAppendTime, began: clock.Monotonic(), release: a.Release,
	}
	m := meta{kind: kindBatch, conditional: a.Conditional}
	if a.Conditional {
		m.expect = a.Expect
	}
	m.put(data)
	return p, data, nil
}

// ready refuses early what could not be answered well.
func (r *Replica) ready() error {
	switch {
	case r.failure() != nil:
		return r.refusal(errFailed)
	case !r.proposals.leading():
		return r.proposals.refusal()
	case r.muted():
		return errStalled
	case r.log.LowSpace():
		return errStorageLow
	}
	return nil
}

// propose hands a command to Raft. The future is not kept: the store, the state
// machine and the end of the term tell what became of it, and Raft leaves some futures unanswered.
func (r *Replica) propose(ctx context.Context, p *Pending, data []byte, wait time.Duration) error {
	g := r.group.Load()
	if g == nil {
		return errNotLeader
	}
	if err := r.proposals.reserve(ctx, wait); err != nil {
		return err
	}
	r.order.Lock()
	defer r.order.Unlock()
	if err := r.proposals.enter(p); err != nil {
		r.proposals.unreserve()
		return err
	}
	putProposal(data, p.number)
	g.Raft().Apply(data, 0)
	return nil
}

// check makes the checks that need nothing but the batch and the topic's configuration.
func (r *Replica) check(a Append, t *TopicConfig) (record.Raw, error) {
	b := a.Batch
	if a.Room {
		if len(b) < HeadRoom {
			return nil, errs.Errorf(errs.InvalidRequest, "batch without the room that was announced")
		}
		b = b[HeadRoom:]
	}
	switch {
	case a.Conditional && a.Expect < 0:
		return nil, errs.Errorf(errs.InvalidRequest, "expected offset %d is negative", a.Expect)
	case len(b) > t.MaxBatchBytes:
		return nil, errs.Errorf(errs.MessageTooLarge, "batch of %d bytes is larger than the topic's max.message.bytes, %d", len(b), t.MaxBatchBytes)
	case t.SegmentBytes > 0 && int64(len(b)) > t.SegmentBytes:
		return nil, errs.Errorf(errs.RecordListTooLarge, "batch of %d bytes is larger than the topic's segment.bytes, %d", len(b), t.SegmentBytes)
	}
	raw, err := record.Check(b)
	if err != nil {
		return nil, err
	}
	switch {
	case raw.Control():
		return nil, errs.Errorf(errs.InvalidRecord, "clients may not append control batches")
	case raw.Transactional():
		return nil, errs.Errorf(errs.InvalidTxnState, "transactions are not supported yet: append without a transactional id")
	case int64(raw.Count())*minRecordBytes > record.DefaultDecompressLimit:
		// The count is the producer's word: it may not take more offsets than anybody could read.
		return nil, errs.Errorf(errs.InvalidRecord, "batch claims %d records, more than fit into %d bytes", raw.Count(), record.DefaultDecompressLimit)
	}
	if err := t.checkTime(raw, r.deps.Clock.Now()); err != nil {
		return nil, err
	}
	return raw, t.checkKeys(raw)
}

// checkTime bounds the timestamps that clients choose. The header tells the first and the
// largest; the store overwrites them where the topic stamps the time itself.
func (t *TopicConfig) checkTime(b record.Raw, now time.Time) error {
	if b.TimestampType() == record.LogAppendTime {
		return errs.Errorf(errs.InvalidTimestamp, "clients may not set the timestamp type LogAppendTime")
	}
	if t.LogAppendTime {
		return nil
	}
	ms, first, last := now.UnixMilli(), b.FirstTimestamp(), b.MaxTimestamp()
	switch {
	case t.TimestampBefore > 0 && first >= 0 && ms-first > t.TimestampBefore.Milliseconds():
		return errs.Errorf(errs.InvalidTimestamp, "timestamp %d is more than message.timestamp.before.max.ms (%v) before the broker's time %d", first, t.TimestampBefore, ms)
	case t.TimestampAfter > 0 && max(first, last)-ms > t.TimestampAfter.Milliseconds():
		return errs.Errorf(errs.InvalidTimestamp, "timestamp %d is more than message.timestamp.after.max.ms (%v) after the broker's time %d", max(first, last), t.TimestampAfter, ms)
	}
	return nil
}

// checkKeys refuses records without a key where the topic keeps the newest of each key.
// This is the one case in which a batch is decoded on its way in.
func (t *TopicConfig) checkKeys(b record.Raw) error {
	if !t.compacted() {
		return nil
	}
	for rec, err := range b.Records(0) {
		if err != nil {
			return err
		}
		if rec.Key == nil {
			return errs.Errorf(errs.InvalidRecord, "record %d has no key, and the topic is compacted by key", rec.Offset-b.BaseOffset())
		}
	}
	return nil
}

func hasPolicy(policies, want string) bool {
	for p := range strings.SplitSeq(policies, ",") {
		if strings.TrimSpace(p) == want {
			return true
		}
	}
	return false
}

// Trim moves the log start offset forward through the Raft log (DeleteRecords); -1
// means the high watermark. It returns the log start offset. One that is reached already changes nothing.
func (r *Replica) Trim(ctx context.Context, before record.Offset) (record.Offset, error) {
	high := r.highWatermark()
	if before == -1 {
		before = high
	}
	if err := r.trimmable(before, high); err != nil {
		return -1, err
	}
	if before <= r.log.StartOffset() {
		return r.log.StartOffset(), nil
	}
	p := &Pending{done: make(chan struct{}), acks: AcksQuorum, began: clock.Monotonic()}
	data := make([]byte, metaBytes)
	meta{kind: kindTrim, verdict: log.Void, expect: before}.put(data)
	if err := r.propose(ctx, p, data, 0); err != nil {
		return -1, err
	}
	if _, err := p.Result(ctx); err != nil {
		return -1, err
	}
	return r.log.StartOffset(), nil
}

func (r *Replica) trimmable(before, high record.Offset) error {
	switch t := r.topic.Load(); {
	case r.failure() != nil:
		return r.refusal(errFailed)
	case !r.proposals.leading():
		return r.proposals.refusal()
	case before < 0 || before > high:
		return errs.Errorf(errs.OffsetOutOfRange, "trim to offset %d: the partition's high watermark is %d", before, high)
	case t.compacted() && !hasPolicy(t.CleanupPolicy, "delete"):
		return errs.Errorf(errs.PolicyViolation, "records of a topic that is only compacted cannot be deleted")
	}
	return nil
}
