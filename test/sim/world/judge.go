package world

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	// finalTime bounds the final reads.
	finalTime = 60 * time.Second
	// resumeTime is when every partition must acknowledge again after the faults.
	resumeTime = 3*time.Second + 5*time.Second
)

// stamp is the time of the history.
func (w *World) stamp() int64 { return int64(w.trace.now()) }

// acked notes an acknowledgement in the trace.
func (w *World) acked(who string, op check.Op, a *answer) {
	again := ""
	if a.duplicate {
		again = " again"
		w.history.Saw("duplicates_suppressed", 1)
	}
	w.trace.say(who, "acked%s %s at %d, epoch %d", again, op.Records[0].Value, a.base, a.epoch)
}

// judge ends a run: final reads, then the checker.
func (w *World) judge() {
	for p := range int32(w.options.Partitions) {
		w.finalRead(p)
	}
	w.dissect()
	w.found = check.Check(w.history.History())
}

// finalRead reads everything that a partition holds, from its leader.
func (w *World) finalRead(p int32) {
	ctx, cancel := context.WithTimeout(w.tasks.Context(), finalTime)
	defer cancel()
	c := w.newClient(fmt.Sprintf("final%d", p), p)
	for {
		if c.readAll(ctx) {
			return
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			w.trace.violation("-", "final_read: partition %d could not be read within %v", p, finalTime)
			return
		}
	}
}

func (c *client) readAll(ctx context.Context) bool {
	op := c.op(check.Final)
	first := c.ask(ctx, &request{verb: verbEnd})
	if first == nil || first.err != nil {
		return false
	}
	start := c.world.started(c.name, c.key, first.start)
	op.Offset, op.End, op.Invoke = int64(start), int64(first.end), c.world.stamp()
	for at := start; at < first.end; {
		a := c.ask(ctx, &request{verb: verbFetch, offset: at, max: 1 << 20})
		if a == nil || a.err != nil {
			return false
		}
		records := c.world.recordsOf(c.name, a.batches, at)
		if len(records) == 0 {
			return false
		}
		op.Records = append(op.Records, records...)
		at = record.Offset(records[len(records)-1].Offset) + 1
	}
	op.Epoch, op.Outcome, op.Complete = int32(first.epoch), check.OK, c.world.stamp()
	c.world.history.Add(op)
	c.world.trace.say(c.name, "read [%d,%d)", op.Offset, op.End)
	return true
}

// probe waits until every partition acknowledges again, which must be soon after the faults.
func (w *World) probe() {
	ctx, cancel := context.WithTimeout(w.tasks.Context(), resumeTime)
	defer cancel()
	for p := range int32(w.options.Partitions) {
		c := w.newClient(fmt.Sprintf("probe%d", p), p)
		for !c.prove(ctx) {
			if pause(ctx, 50*time.Millisecond) != nil {
				w.trace.violation("-", "liveness: partition %d does not acknowledge %v after the faults", p, resumeTime)
				return
			}
		}
	}
}

// prove appends one record.
func (c *client) prove(ctx context.Context) bool {
	records := c.values(1)
	op := c.op(check.Send)
	op.Records = records
	op.Producer = &check.Producer{ID: -1, Seq: -1}
	t := c.world.history.Begin(op)
	a := c.produce(ctx, &request{nonce: c.rng.Uint64(), batches: []record.Raw{c.batch(records)}})
	result := outcome(a)
	if result == check.OK {
		op.Records = placed(records, a.base)
		c.world.acked(c.name, op, a)
	}
	c.done(t, op, result, a)
	return result == check.OK
}

// report ends the trace.
func (w *World) report() bool {
	bad := w.trace.failures()
	if w.found == nil {
		w.found = check.Check(w.history.History())
	}
	require := check.Require{}
	if err := w.found.Err(require); err != nil {
		w.trace.violation("-", "%v", err)
		bad++
	}
	result := w.found.Result(require)
	if bad > 0 && result.Verdict == check.Pass {
		result.Verdict = check.Failed
	}
	fmt.Fprintf(w.trace.out, "%s\n", result)
	return bad == 0
}
