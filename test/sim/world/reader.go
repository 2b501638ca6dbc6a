package world

import (
	"context"
	"time"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// reader is a consumer with an assigned partition.
type reader struct {
	*client
	anywhere bool // reads from any replica
	position record.Offset
}

func (r *reader) run(ctx context.Context) {
	start := r.op(check.Assign)
	start.Offset, start.Outcome, start.Complete = 0, check.OK, r.world.stamp()
	r.world.history.Add(start)
	for r.rest(ctx, 50*time.Millisecond) {
		op := r.op(check.Poll)
		a := r.fetch(ctx)
		if a == nil {
			r.rest(ctx, 200*time.Millisecond)
			continue
		}
		if a.err != nil {
			r.refused(a)
			r.rest(ctx, 200*time.Millisecond)
			continue
		}
		op.Records = r.world.recordsOf(r.name, a.batches, r.position)
		if n := len(op.Records); n > 0 {
			r.position = record.Offset(op.Records[n-1].Offset) + 1
			op.Epoch, op.Outcome, op.Complete = int32(a.epoch), check.OK, r.world.stamp()
			r.world.history.Add(op)
		}
	}
}

func (r *reader) fetch(ctx context.Context) *answer {
	q := &request{verb: verbFetch, offset: r.position, max: 32 << 10}
	if !r.anywhere {
		q.linear = r.rng.IntN(4) == 0
		return r.ask(ctx, q)
	}
	members := r.world.members(r.key.Partition)
	return r.askNode(ctx, r.world.nodes[members[r.rng.IntN(len(members))]], q)
}

// refused starts over at the log start where retention was faster.
func (r *reader) refused(a *answer) {
	if a.code() != errs.OffsetOutOfRange || a.start <= r.position {
		return // a follower that lags behind: it will catch up
	}
	r.world.started(r.name, r.key, a.start)
	op := r.op(check.Seek)
	r.position = a.start
	op.Offset, op.Outcome, op.Complete = int64(a.start), check.OK, r.world.stamp()
	r.world.history.Add(op)
}

// started notes how far retention has taken a log. Each replica keeps a start of its own, which may lie before one that
// was seen elsewhere; the history knows one
// of the partition, which is returned.
func (w *World) started(who string, key check.Key, at record.Offset) record.Offset {
	if w.topic.Retention.Bytes < 0 {
		return at // it moves on request only
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	at = max(w.starts[key.Partition], at)
	w.starts[key.Partition] = at
	w.history.Add(check.Op{Kind: check.LogStart, Process: who, Key: key, Invoke: w.stamp(), Complete: w.stamp(), Outcome: check.OK, Offset: int64(at)})
	return at
}

// recordsOf decodes batches, from an offset on.
func (w *World) recordsOf(who string, batches []record.Raw, from record.Offset) (list []check.Record) {
	for _, b := range batches {
		if _, err := record.Check(b); err != nil {
			w.trace.violation(who, "damaged_read: batch at %d: %v", b.BaseOffset(), err)
			return list
		}
		for rec, err := range b.Records(0) {
			if err != nil {
				w.trace.violation(who, "damaged_read: batch at %d: %v", b.BaseOffset(), err)
				return list
			}
			if rec.Offset >= from {
				list = append(list, check.Record{Offset: int64(rec.Offset), Value: string(rec.Value)})
			}
		}
	}
	return list
}
