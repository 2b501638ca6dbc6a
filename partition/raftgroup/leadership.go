package raftgroup

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
)

// listener is told every leadership once. told belongs to follow.
type listener struct {
	tell func(term uint64, leading bool)
	told uint64
}

// LeadsIn returns the term in which this replica leads. ok is false until an
// entry of that term has committed and all before it is applied here: until
// then the replica may not know what its predecessors acknowledged.
func (g *Group) LeadsIn() (term uint64, ok bool) {
	term = g.term.Load()
	// Raft changes its state before follow hears of it.
	if term == 0 || g.fence.silent() != nil || g.raft.State() != raft.Leader || g.raft.CurrentTerm() != term {
		return 0, false
	}
	return term, true
}

// OnLeadership has tell called with (term, true) when this replica leads as LeadsIn defines it, and
// with (term, false) when that term has ended here, the end of the group included.
// Calls come from one goroutine, in order, and the current leadership is told right
// away. tell must not block, nor wait for Stop.
func (g *Group) OnLeadership(tell func(term uint64, leading bool)) {
	g.mu.Lock()
	g.listeners = append(g.listeners, &listener{tell: tell})
	g.mu.Unlock()
	g.wake()
}

func (g *Group) wake() {
	select {
	case g.nudge <- struct{}{}:
	default:
	}
}

// watch drains Raft's notifications: Raft blocks while its channel is full.
func (g *Group) watch(ctx context.Context, notify <-chan bool) {
	for {
		select {
		case <-notify:
			g.wake()
		case <-ctx.Done():
			return
		}
	}
}

// follow turns Raft's changes of state into leaderships.
func (g *Group) follow(ctx context.Context) {
	for {
		select {
		case <-g.nudge:
			g.settle(ctx)
		case <-g.fence.failed:
			g.announce(0)
			<-ctx.Done()
			return
		case <-ctx.Done():
			g.announce(0)
			return
		}
	}
}

// settle compares what was announced with what Raft says now. Several changes may have
// passed since the last call: leadership is a term, so none can be mistaken for another.
func (g *Group) settle(ctx context.Context) {
	now := uint64(0)
	if term := g.raft.CurrentTerm(); g.raft.State() == raft.Leader {
		now = term
	}
	if now != g.term.Load() {
		g.announce(0)
		if now != 0 && !g.confirm(ctx, now) {
			return // the loss of this leadership wakes follow again
		}
	}
	g.announce(now)
}

// confirm waits until an entry of the term has committed and is applied. A replica that stays leader
// in one term between two looks at the term led without a break, since a term is led once.
func (g *Group) confirm(ctx context.Context, term uint64) bool {
	var w wedge
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-retry.C:
		case <-ctx.Done():
			return false
		case <-g.fence.failed:
			return false
		}
		if g.raft.State() != raft.Leader || g.raft.CurrentTerm() != term {
			return false
		}
		if bug.On(bug.EarlyLeader) {
			return true
		}
		err := g.barrier(ctx)
		if err == nil && g.raft.CurrentTerm() == term {
			return true
		}
		if errors.Is(err, raft.ErrRaftShutdown) {
			return false
		}
		// The queue was full, or a leadership transfer refuses writes, perhaps one of an earlier term that never ends.
		g.wedged(&w, err)
		retry.Reset(g.cfg.Timing.Commit / 10)
	}
}

// barrier waits until all that was proposed before is applied. Raft may leave the future
// unanswered when it shuts down: then its goroutine stays, and nobody waits for it.
func (g *Group) barrier(ctx context.Context) error {
	answer := make(chan error, 1)
	g.unanswered.Store(true)
	if !g.barriers.Go("barrier", func(context.Context) {
		defer g.unanswered.Store(false)
		answer <- g.raft.Barrier(g.cfg.Timing.Lease).Error()
	}) {
		g.unanswered.Store(false)
		return raft.ErrRaftShutdown
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-g.fence.failed:
		return errFenced
	}
}

// announce publishes the term in which the group leads (0: none) and tells the listeners.
func (g *Group) announce(now uint64) {
	if was := g.term.Swap(now); was != now {
		g.cfg.Metrics.leadership(was, now)
		g.cfg.Logger.Debug("leadership changed", "leader_epoch", now, "was", was)
	}
	g.mu.Lock()
	listeners := g.listeners[:len(g.listeners):len(g.listeners)]
	g.mu.Unlock()
	for _, l := range listeners {
		was := l.told
		l.told = now
		if was != 0 && was != now {
			l.tell(was, false)
		}
		if now != 0 && was != now {
			l.tell(now, true)
		}
	}
}
