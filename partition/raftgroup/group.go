// Package raftgroup runs one hashicorp/raft group: bootstrap, start, leadership,
// stop; the stable store that keeps the votes of all groups of a broker; and state groups, whose
// whole state is a small state machine with snapshots.
//
// Invariants:
//   - Leadership is a term. A group leads in term T from the moment an
//     entry of T has committed and is applied, until its term or state changes.
//   - Term and vote are one record that is on disk before Raft goes on.
//   - The first disk error fences the group: from then on nothing is stored, sent, applied or
//     answered, and the group never retries.
//   - A group's end never closes the transport, which all groups share.
//
// A raft.Future that is still in one of Raft's queues when Raft shuts down is
// never answered. Whoever calls Raft().Apply must not wait for the future alone,
// but also for the end of the term (OnLeadership) and of the group.
package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/run"
)

// Parts is what a group consists of. A group of state machine
// and log belongs to one replica; Stable and Transport are faces of what the broker shares.
// FSM may implement raft.BatchingFSM too.
type Parts struct {
	FSM       raft.FSM
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	// Transport must implement raft.WithPreVote, Injector for Campaign, and Link for Confirm.
	Transport raft.Transport
}

// Injector is a transport that can hand Raft a request as if a peer had sent it.
type Injector interface {
	// Inject never blocks; false means that Raft has not kept up.
	Inject(raft.RPC) bool
}

// Group is one running Raft group.
type Group struct {
	cfg      Config
	raft     *raft.Raft
	fence    *fence
	injector Injector // nil when the transport is none
	link     Link     // nil when the transport is none
	runs     *run.Group
	barriers *run.Group    // not waited for, see confirm
	nudge    chan struct{} // capacity 1: the leadership may have changed

	term       atomic.Uint64 // in which the group leads; 0: in none. Written by follow only
	unanswered atomic.Bool   // a barrier's future is waited for
	transfers  atomic.Bool   // a transfer runs
	reported   atomic.Bool   // OnWedged was called

	mu        sync.Mutex
	listeners []*listener             // guarded by mu
	campaign  <-chan raft.RPCResponse // guarded by mu; the last TimeoutNow
	shutdown  raft.Future             // guarded by mu; of the first Shutdown
}

// HasState tells whether the parts belong to a group that exists already:
// there are entries, a snapshot, or a vote.
func HasState(parts Parts) (bool, error) {
	last, err := parts.Logs.LastIndex()
	if err != nil {
		return false, fmt.Errorf("look for existing state: %w", err)
	}
	snapshots, err := parts.Snapshots.List()
	if err != nil {
		return false, fmt.Errorf("look for existing state: %w", err)
	}
	term, err := parts.Stable.GetUint64([]byte(keyCurrentTerm))
	if err != nil {
		return false, fmt.Errorf("look for existing state: %w", err)
	}
	vote, err := parts.Stable.GetUint64([]byte(keyVoteTerm))
	if err != nil {
		return false, fmt.Errorf("look for existing state: %w", err)
	}
	return last > 0 || len(snapshots) > 0 || vote > 0 || term > 1, nil
}

// Bootstrap writes the first configuration of a new group: term 1, entry 1. It
// fails with raft.ErrCantBootstrap when there is any state. A bootstrap that a crash cut short
// (the term is on disk, the entry is not) is no state, and is done again; that is why
// raft.BootstrapCluster is not used, which would refuse for ever.
func Bootstrap(cfg Config, parts Parts, voters []raft.Server) error {
	if len(voters) == 0 {
		return fmt.Errorf("bootstrap group %s: no voters", cfg.Name)
	}
	has, err := HasState(parts)
	if err != nil {
		return fmt.Errorf("bootstrap group %s: %w", cfg.Name, err)
	}
	if has {
		return raft.ErrCantBootstrap
	}
	if err := parts.Stable.SetUint64([]byte(keyCurrentTerm), 1); err != nil {
		return fmt.Errorf("bootstrap group %s: %w", cfg.Name, err)
	}
	entry := &raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration,
		Data: raft.EncodeConfiguration(raft.Configuration{Servers: voters})}
	if err := parts.Logs.StoreLogs([]*raft.Log{entry}); err != nil {
		return fmt.Errorf("bootstrap group %s: %w", cfg.Name, err)
	}
	return nil
}

// Start starts the group. A replica that is the only voter campaigns at once.
// The state machine must stand at the newest snapshot of parts.Snapshots.
func Start(cfg Config, parts Parts) (*Group, error) {
	cfg, err := cfg.prepare()
	if err != nil {
		return nil, err
	}
	g := &Group{cfg: cfg, nudge: make(chan struct{}, 1), runs: run.Owned("raftgroup " + cfg.Name),
		barriers: run.Owned("raftgroup " + cfg.Name)}
	g.fence = newFence(g.failed, newStall("group "+cfg.Name, cfg.Watchdog, cfg.Stalled))
	g.injector, _ = parts.Transport.(Injector)
	g.link, _ = parts.Transport.(Link)
	relay := newRelay(g.fence, parts.Transport.Consumer())
	office := &office{}
	parts, err = parts.behind(g.fence, relay, office)
	if err != nil {
		return nil, fmt.Errorf("start group %s: %w", cfg.Name, err)
	}
	relay.logs = parts.Logs
	// Raft blocks when nobody takes the notification, so watch does nothing else.
	notify := make(chan bool, 16)
	g.raft, err = raft.NewRaft(cfg.raft(notify), parts.FSM, parts.Logs, parts.Stable, parts.Snapshots, parts.Transport)
	if err != nil {
		return nil, fmt.Errorf("start group %s: %w", cfg.Name, err)
	}
	office.raft.Store(g.raft)
	g.raft.RegisterObserver(raft.NewObserver(nil, false, g.cfg.Metrics.observer()))
	if err := g.fence.arm(); err != nil {
		// NewRaft read a stand-in instead of a damaged entry: it must not live.
		g.beginShutdown()
		return nil, errors.Join(fmt.Errorf("start group %s: %w", cfg.Name, err), g.shutdown.Error())
	}
	if g.link != nil {
		g.link.AnswerTerm(g.answerTerm)
	}
	g.runs.Go("relay", relay.run)
	g.runs.Go("watch", func(ctx context.Context) { g.watch(ctx, notify) })
	g.runs.Go("follow", g.follow)
	if g.soleVoter() {
		g.Campaign()
	}
	return g, nil
}

// Raft is the group underneath. Of Raft's own ways to shut down, none may be called.
func (g *Group) Raft() *raft.Raft { return g.raft }

// Term is Raft's current term; 0 once the group is fenced: Raft may then believe in a term that
// is not on disk (see fencedStable).
func (g *Group) Term() uint64 {
	term := g.raft.CurrentTerm()
	if g.fence.tripped() {
		return 0
	}
	return term
}

// Failed is closed when a disk error has fenced the group; Err tells which. From then on
// the owner must let no answer of this group leave the broker.
func (g *Group) Failed() <-chan struct{} { return g.fence.failed }

// Err is why the group failed, or nil.
func (g *Group) Err() error { return g.fence.cause() }

// Campaign makes this replica start an election at once, without a pre-vote, by
// injecting a TimeoutNow. It does nothing where the replica leads or campaigns already (a leader
// would depose itself), is no voter, or the transport cannot inject. Choose the most
// up-to-date voter: any other loses and disturbs the term.
func (g *Group) Campaign() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.injector == nil || g.fence.silent() != nil || !g.voter() {
		return
	}
	if g.campaign != nil {
		select {
		case <-g.campaign: // Raft has taken the last one and is a candidate, or more, since
			g.campaign = nil
		default:
			return
		}
	}
	if s := g.raft.State(); s != raft.Follower {
		return
	}
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: answer,
	}
	if g.injector.Inject(rpc) {
		g.campaign = answer
	} else {
		g.campaign = nil
	}
}

// Muted tells whether a disk call of the group takes so long that the group is silent: it sends, answers and
// leads nothing until the call returns.
func (g *Group) Muted() bool { return g.fence.muted() }

// Stalled is how long the oldest disk call under way has been taking; 0 when there is none.
func (g *Group) Stalled() time.Duration { return g.fence.stall.longest() }

// voters are those of the newest configuration, committed or not.
func (g *Group) voters() (ids []raft.ServerID) {
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (g *Group) voter() bool { return slices.Contains(g.voters(), g.cfg.ID) }

func (g *Group) soleVoter() bool {
	v := g.voters()
	return len(v) == 1 && v[0] == g.cfg.ID
}

// Stop stops the group and waits for Raft's goroutines until ctx is done. After an
// error the group may still use its log: the process should exit. The shared transport
// stays open.
func (g *Group) Stop(ctx context.Context) error {
	g.barriers.Cancel()
	g.awaitBarrier(ctx)
	g.fence.stop()
	g.beginShutdown()
	defer g.fence.stall.close()
	// A goroutine of its own, since Raft's future knows no deadline.
	waiter := run.Owned("raftgroup " + g.cfg.Name + " shutdown")
	waiter.Go("wait", func(context.Context) { g.shutdownFuture().Error() })
	if err := waiter.StopWithin(ctx); err != nil {
		g.runs.Cancel()
		return fmt.Errorf("stop group %s: raft still runs: %w", g.cfg.Name, err)
	}
	return g.runs.StopWithin(ctx)
}

// awaitBarrier lets the barrier of a new leader end first, because its future
// might never be answered after the shutdown. Without a majority it waits no longer
// than it takes a leader to notice.
func (g *Group) awaitBarrier(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for g.unanswered.Load() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// beginShutdown calls Raft's Shutdown once and keeps its future: only the first one waits.
func (g *Group) beginShutdown() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shutdown == nil {
		g.shutdown = g.raft.Shutdown()
	}
}

func (g *Group) shutdownFuture() raft.Future {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shutdown
}

// Retire fences the group although nothing has failed: its owner has replaced what it stands on, and stops it next.
// From now on nothing is stored, sent, applied or answered, and OnFailure is not called.
func (g *Group) Retire(why error) {
	g.fence.stop()
	g.fence.trip(why)
}

// failed runs on Raft's own goroutines, so it must not wait. Raft is shut down when the last barrier
// was answered: Raft leaves unanswered what lies in its queue.
func (g *Group) failed(err error) {
	g.cfg.Logger.Error("raft group fenced after a storage error; it answers nothing any more", "err", err)
	g.cfg.Metrics.failures.Inc()
	g.barriers.Cancel()
	g.runs.Go("fence", func(ctx context.Context) {
		g.awaitBarrier(ctx)
		g.beginShutdown()
	})
	if g.cfg.OnFailure != nil {
		g.runs.Go("failure", func(context.Context) { g.cfg.OnFailure(err) })
	}
}
