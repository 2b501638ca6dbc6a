package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// wedgeAfter is after how many election timeouts Raft must take entries again, once a transfer has failed.
const wedgeAfter = 3

var errTransferRuns = errs.New(errs.ReassignmentInProgress, "a leadership transfer is under way already")

// Transfer hands the leadership to another voter. The caller lets nothing be proposed until it returns, and has
// seen that the voter holds every entry: otherwise Raft waits for it, and a transfer that is
// interrupted while it waits may have Raft refuse all entries for ever, in later terms too (hashicorp/raft #696). Where that
// happens all the same OnWedged is called. It returns nil when the leadership has ended here, and an
// error when it has not: then Raft takes entries again, or the group is wedged.
func (g *Group) Transfer(ctx context.Context, to raft.ServerID) error {
	term, ok := g.LeadsIn()
	if !ok {
		return errs.Errorf(errs.NotLeaderOrFollower, "this replica does not lead %s", g.cfg.Name)
	}
	server, ok := g.other(to)
	if !ok {
		return errs.Errorf(errs.InvalidRequest, "%s is no other voter of %s", to, g.cfg.Name)
	}
	if !g.transfers.CompareAndSwap(false, true) {
		return errTransferRuns
	}
	defer g.transfers.Store(false)
	began := make(chan error, 1)
	// Its future may stay unanswered when Raft shuts down, as that of a barrier.
	if !g.barriers.Go("transfer", func(context.Context) {
		began <- g.raft.LeadershipTransferToServer(server.ID, server.Address).Error()
	}) {
		return raft.ErrRaftShutdown
	}
	var err error
	select {
	case err = <-began:
	case <-ctx.Done():
		err = ctx.Err()
	case <-g.fence.failed:
		err = errFenced
	}
	if now, ok := g.LeadsIn(); !ok || now != term {
		return nil
	}
	if err == nil {
		err = errors.New("the leadership stayed")
	}
	g.awaitEntries(term)
	return fmt.Errorf("transfer the leadership of %s to %s: %w", g.cfg.Name, to, err)
}

func (g *Group) other(id raft.ServerID) (raft.Server, bool) {
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		if s.ID == id && id != g.cfg.ID && s.Suffrage == raft.Voter {
			return s, true
		}
	}
	return raft.Server{}, false
}

// awaitEntries waits until Raft takes entries again, or the term has ended, or it is too late.
func (g *Group) awaitEntries(term uint64) {
	var w wedge
	tick := time.NewTicker(g.cfg.Timing.Commit / 10)
	defer tick.Stop()
	for {
		if now, ok := g.LeadsIn(); !ok || now != term {
			return
		}
		if err := g.barrier(g.runs.Context()); !g.wedged(&w, err) || g.reported.Load() {
			return
		}
		select {
		case <-tick.C:
		case <-g.runs.Context().Done():
			return
		}
	}
}

// wedge remembers since when Raft has refused entries for the sake of a transfer.
type wedge struct {
	refuses bool
	since   clock.Mono
}

// wedged tells whether err is such a refusal, and reports the group once it has lasted too long.
func (g *Group) wedged(w *wedge, err error) bool {
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		*w = wedge{}
		return false
	}
	if !w.refuses {
		w.refuses, w.since = true, clock.Monotonic()
	}
	if clock.Since(w.since) > wedgeAfter*g.cfg.Timing.Election && g.reported.CompareAndSwap(false, true) {
		g.cfg.Logger.Error("a leadership transfer wedged: raft refuses all entries; the group is started anew")
		if g.cfg.OnWedged != nil {
			g.cfg.OnWedged()
		}
	}
	return true
}
