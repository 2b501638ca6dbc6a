package raftgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Confirm makes certain that this replica led in term, as LeadsIn defines it, at a moment after the call began: nobody
// had been elected in a later one. A sole voter needs to ask nobody. Others ask until a majority
// has answered, ctx ends (errs.RequestTimedOut), or the leadership does (errs.NotLeaderOrFollower).
//
// A voter that says "my term is still T" has not voted in a later one by then, so no majority has.
func (g *Group) Confirm(ctx context.Context, term uint64) error {
	for {
		if now, ok := g.LeadsIn(); !ok || now != term {
			return errs.Errorf(errs.NotLeaderOrFollower, "this replica does not lead %s in term %d any more", g.cfg.Name, term)
		}
		voters := g.voters()
		if bug.On(bug.LinearizeAlone) {
			return nil
		}
		if len(voters) == 1 && voters[0] == g.cfg.ID {
			return nil
		}
		err := g.ask(ctx, term, voters)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return errs.Errorf(errs.RequestTimedOut, "no majority of %s has confirmed term %d in time: %w", g.cfg.Name, term, err)
		}
		pause := time.NewTimer(g.cfg.Timing.Commit/20 + rand.N(g.cfg.Timing.Commit/20+1))
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

func (g *Group) ask(ctx context.Context, term uint64, voters []raft.ServerID) error {
	if g.link == nil {
		return fmt.Errorf("transport of %s cannot ask for the term", g.cfg.Name)
	}
	if err := g.link.Confirm(ctx, term, voters); err != nil {
		return err
	}
	// The link counts this replica without asking it.
	if now, ok := g.LeadsIn(); !ok || now != term {
		return errs.Errorf(errs.NotLeaderOrFollower, "the leadership ended meanwhile")
	}
	return nil
}

// answerTerm is what a peer's Confirm is answered with.
func (g *Group) answerTerm() (term uint64, ok bool) {
	if g.fence.silent() != nil || g.raft.State() == raft.Shutdown {
		return 0, false
	}
	return g.raft.CurrentTerm(), true
}
