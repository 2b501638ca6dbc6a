package raftgroup

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// catchUpFor bounds how long a transfer waits, with proposals paused, for the voter to have everything.
const catchUpFor = 2 * time.Second

// Transfer hands the leadership to another voter, which must be caught up. Proposals wait meanwhile; those that
// are open are answered first. After an error this replica leads as before, or not at all.
func (g *StateGroup) Transfer(ctx context.Context, to raft.ServerID) error {
	term, ok := g.Leading()
	if !ok {
		return g.notLeading()
	}
	if !g.transfer.TryLock() {
		return errTransferRuns
	}
	defer g.transfer.Unlock()
	short, cancel := context.WithTimeout(ctx, catchUpFor)
	defer cancel()
	resume, err := g.waits.pause(short)
	if err != nil {
		return errs.Errorf(errs.RequestTimedOut, "transfer the leadership of %s: open commands were not answered in time: %w", g.cfg.Name, err)
	}
	defer resume()
	_, last, err := ends(g.log)
	if err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for g.matches.at(term, to) < last {
		select {
		case <-tick.C:
		case <-short.Done():
			return errs.Errorf(errs.RequestTimedOut, "transfer the leadership of %s: %s has not caught up with entry %d in time", g.cfg.Name, to, last)
		}
	}
	return g.Group().Transfer(ctx, to)
}

// wedged starts Raft anew: it refuses all entries (hashicorp/raft #696).
func (g *StateGroup) wedged() {
	g.runs.Go("restart", func(context.Context) {
		if !g.hold() {
			return
		}
		defer g.free()
		if err := g.restart(func() {}); err != nil {
			g.cfg.Logger.Error("a group that a leadership transfer wedged does not start anew", "group", g.cfg.Name, "err", err)
		}
	})
}

// pause takes all places, so that nothing is open and nothing new is proposed, until resume.
func (w *waits) pause(ctx context.Context) (resume func(), err error) {
	taken := 0
	resume = func() {
		for range taken {
			w.free <- struct{}{}
		}
	}
	for range cap(w.free) {
		select {
		case <-w.free:
			taken++
		case <-ctx.Done():
			resume()
			return nil, ctx.Err()
		}
	}
	return resume, nil
}

// matches is what followers hold, under the newest term.
type matches struct {
	mu    sync.Mutex
	term  uint64                   // guarded by mu
	index map[raft.ServerID]uint64 // guarded by mu
}

func (m *matches) note(term uint64, follower raft.ServerID, index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if term > m.term {
		m.term, m.index = term, map[raft.ServerID]uint64{}
	}
	if term == m.term && m.index != nil {
		m.index[follower] = max(m.index[follower], index)
	}
}

func (m *matches) at(term uint64, follower raft.ServerID) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if term != m.term {
		return 0
	}
	return m.index[follower]
}
