package partition

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// catchUpFor bounds how long a transfer waits, with appends paused, for the voter to have everything.
const catchUpFor = 2 * time.Second

// Transfer hands the leadership to another voter, which must be caught up. Appends wait for their place in the
// queue meanwhile. After an error this replica leads as before, or not at all.
func (r *Replica) Transfer(ctx context.Context, to raft.ServerID) error {
	if _, err := r.leads(); err != nil {
		return err
	}
	if r.isr == nil {
		return errs.Errorf(errs.InvalidRequest, "the partition has one replica: nobody can take its leadership")
	}
	if !r.transfers.TryLock() {
		return errs.Errorf(errs.ReassignmentInProgress, "a transfer of the leadership is under way already")
	}
	defer r.transfers.Unlock()
	short, cancel := context.WithTimeout(ctx, catchUpFor)
	defer cancel()
	resume, err := r.proposals.pause(short)
	if err != nil {
		return errs.Errorf(errs.RequestTimedOut, "transfer the leadership: the partition's queue did not run empty in time: %w", err)
	}
	defer resume()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !r.isr.hasAll(to) {
		select {
		case <-tick.C:
		case <-short.Done():
			return errs.Errorf(errs.RequestTimedOut, "transfer the leadership: %s has not caught up in time", to)
		}
	}
	return r.group.Load().Transfer(ctx, to)
}

// pause takes all places in Raft's queue, so that it is empty and stays so until resume.
func (ps *proposals) pause(ctx context.Context) (resume func(), err error) {
	taken := 0
	resume = func() {
		for range taken {
			ps.unreserve()
		}
	}
	for range cap(ps.slots) {
		select {
		case ps.slots <- struct{}{}:
			taken++
		case <-ctx.Done():
			resume()
			return nil, ctx.Err()
		}
	}
	return resume, nil
}

// wedged has the owner open the replica again: Raft refuses all entries (hashicorp/raft #696).
func (r *Replica) wedged() {
	r.runs.Go("wedged", func(context.Context) {
		r.store.mu.Lock()
		retired := r.retire()
		r.store.mu.Unlock()
		if retired {
			r.leave()
		}
	})
}
