package raftgroup

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/log/statelog"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// StateMachine is what a state group replicates: all of it lies in memory.
// Apply, Snapshot and Restore are called by one goroutine at a time, and each
// must depend on nothing but its arguments and earlier calls, so that all replicas agree.
type StateMachine interface {
	// Apply applies a committed command. A command that cannot be decoded, or that
	// the state refuses, gives an error value and changes nothing; Apply must not panic.
	// index is Raft's: it grows, with gaps.
	Apply(index uint64, command []byte) any
	// Snapshot returns the whole state. The slice belongs to the caller.
	Snapshot() ([]byte, error)
	// Restore replaces the whole state. A nil snapshot is the empty state.
	Restore(snapshot []byte) error
}

// StateConfig describes a state group.
type StateConfig struct {
	Name   string
	Dir    string // of this group alone
	FS     fsx.FS
	ID     raft.ServerID
	Timing Timing
	// Transport and Stable are shared with other groups; see Parts.
	Transport raft.Transport
	Stable    raft.StableStore
	// Log keeps the entries; the group closes it. Nil: a statelog in Dir.
	Log StateLog
	// Voters, when not empty, bootstraps a group that has no state. Give
	// it only when the group is new: a group that was formed and has lost its state must not be formed again.
	Voters []raft.Server
	// SnapshotEvery is after how many commands a snapshot is taken; 0 means 4096.
	SnapshotEvery uint64
	// SnapshotBytes is after how many bytes of commands a snapshot is taken; 0 means 8 MiB. It
	// bounds the memory of the group's log, which lies in memory as a whole.
	SnapshotBytes int64
	// OnFailure and Watchdog: see Config.
	OnFailure func(error)
	Watchdog  *log.Watchdog
	Metrics   *Metrics
	Logger    *slog.Logger
}

// Limits of a state group.
const (
	// MaxCommandBytes bounds one command.
	MaxCommandBytes = 4 << 20

	// maxProposals may be open at a time. They all fit into Raft's queue, so that handing one over never blocks.
	maxProposals  = maxAppendEntries - 8
	proposeLimit  = 30 * time.Second
	trailingState = 128 // entries that stay behind a snapshot, for followers that lag a little
	snapshotRetry = 5 * time.Second
)

// StateGroup is a replicated state machine.
type StateGroup struct {
	cfg   StateConfig
	log   StateLog
	fsm   *stateFSM
	waits *waits

	matches  matches
	transfer sync.Mutex // held by the one transfer

	snapshots *snapshotStore

	// group is another one after a snapshot of the leader was installed.
	group atomic.Pointer[Group]
	// life is held, one token, by whoever stops Raft or needs it to run on.
	life chan struct{}

	runs  *run.Group
	due   chan struct{} // capacity 1: a snapshot is due
	ended chan struct{} // closed by Stop

	since struct { // the last snapshot; written on Raft's FSM goroutine, reset by snapshots
		commands atomic.Uint64
		bytes    atomic.Int64
	}
	stop sync.Once
}

// OpenState restores the state machine from disk and starts the group. It fails with ErrCorrupt
// when the state on disk is damaged in a way that no crash explains.
func OpenState(cfg StateConfig, sm StateMachine) (*StateGroup, error) {
	cfg = cfg.withDefaults()
	g := &StateGroup{cfg: cfg, runs: run.Owned("state group " + cfg.Name), life: make(chan struct{}, 1),
		due: make(chan struct{}, 1), ended: make(chan struct{})}
	err := g.openParts(sm)
	if err == nil {
		err = g.startGroup()
	}
	if err != nil {
		if g.log != nil {
			err = errors.Join(err, g.log.Close())
		}
		return nil, fmt.Errorf("open state group %s: %w", cfg.Name, err)
	}
	g.runs.Go("snapshots", g.takeSnapshots)
	if link, ok := cfg.Transport.(Link); ok {
		link.Intercept(g)
		link.OnMatch(g.matches.note)
	}
	return g, nil
}

func (c StateConfig) withDefaults() StateConfig {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.SnapshotEvery == 0 {
		c.SnapshotEvery = 4096
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 8 << 20
	}
	return c
}

// openParts opens log and snapshots.
func (g *StateGroup) openParts(sm StateMachine) error {
	var session [8]byte
	if _, err := rand.Read(session[:]); err != nil {
		return err
	}
	g.waits = newWaits(binary.LittleEndian.Uint64(session[:]), maxProposals)
	g.fsm = &stateFSM{sm: sm, waits: g.waits, metrics: g.cfg.Metrics, applied: g.applied}
	// A power cut must not take the name of the directory, and all in it, after something was acknowledged.
	if err := errors.Join(g.cfg.FS.MkdirAll(g.cfg.Dir, 0o700), g.cfg.FS.SyncDir(filepath.Dir(g.cfg.Dir))); err != nil {
		return err
	}
	if err := g.openLog(); err != nil {
		return err
	}
	_, last, err := ends(g.log)
	if err != nil {
		return err
	}
	snapshots, damaged, err := openSnapshots(g.cfg.FS, filepath.Join(g.cfg.Dir, "snapshots"), g.cfg.Logger, g.cfg.Metrics)
	if err != nil {
		return err
	}
	g.snapshots = snapshots
	newest := snapshots.newest()
	if newest == nil && damaged > 0 && last == 0 {
		return fmt.Errorf("no sound snapshot is left: %w", ErrCorrupt)
	}
	// A snapshot has its name only when it is whole on disk, and the log may have been dropped for it.
	// What it held must be in the log or in a newer one.
	if snapshots.lost > last && (newest == nil || snapshots.lost > newest.Index) {
		return fmt.Errorf("the snapshot at entry %d is damaged, and the log ends at entry %d: %w; "+
			"replace this replica, or restore its directory", snapshots.lost, last, ErrCorrupt)
	}
	return nil
}

func (g *StateGroup) openLog() error {
	if g.cfg.Log != nil {
		g.log = g.cfg.Log
		return nil
	}
	l, rec, err := statelog.Open(statelog.Config{Dir: filepath.Join(g.cfg.Dir, "log"), FS: g.cfg.FS, Logger: g.cfg.Logger})
	if err != nil {
		return err
	}
	g.log = stateLogs{l}
	g.cfg.Metrics.cut.Add(float64(rec.CutBytes))
	return nil
}

// restore gives the state machine the newest snapshot, and makes the log agree with it.
func (g *StateGroup) restore() error {
	newest := g.snapshots.newest()
	if newest == nil {
		if err := g.fsm.restart(0, nil); err != nil {
			return err
		}
		return reconcile(g.log, nil)
	}
	_, state, err := g.snapshots.read(newest.ID)
	if err != nil {
		return err
	}
	if err := g.fsm.restart(newest.Index, state); err != nil {
		return err
	}
	return reconcile(g.log, newest)
}

// startGroup starts Raft from what is on disk.
func (g *StateGroup) startGroup() error {
	if err := g.restore(); err != nil {
		return err
	}
	cfg := Config{
		Name: g.cfg.Name, ID: g.cfg.ID, Timing: g.cfg.Timing, Logger: g.cfg.Logger, Metrics: g.cfg.Metrics,
		OnFailure: g.cfg.OnFailure, OnWedged: g.wedged, Watchdog: g.cfg.Watchdog, trailing: trailingState,
	}
	parts := Parts{FSM: g.fsm, Logs: basedLog{g.log, g.snapshots}, Stable: g.cfg.Stable, Snapshots: g.snapshots, Transport: g.cfg.Transport}
	if len(g.cfg.Voters) > 0 {
		if err := g.bootstrapOnce(cfg, parts); err != nil {
			return err
		}
	}
	group, err := Start(cfg, parts)
	if err != nil {
		return err
	}
	g.group.Store(group)
	group.OnLeadership(func(term uint64, leading bool) {
		if !leading {
			g.waits.fail(term, errs.Unknown(errs.RequestTimedOut, "the leadership ended before the command was known to be applied"))
		}
	})
	return nil
}

// bootstrapOnce forms a group that has no state. A vote without a log and a snapshot
// means that these were lost.
func (g *StateGroup) bootstrapOnce(cfg Config, parts Parts) error {
	err := Bootstrap(cfg, parts, g.cfg.Voters)
	if !errors.Is(err, raft.ErrCantBootstrap) {
		return err
	}
	snapshots, err := parts.Snapshots.List()
	if err != nil {
		return err
	}
	_, last, err := ends(g.log)
	if err == nil && len(snapshots) == 0 && last == 0 {
		err = fmt.Errorf("the group has voted but its log and snapshots are gone: %w; restore %s", ErrCorrupt, g.cfg.Dir)
	}
	return err
}

// Propose has a command applied by all replicas and returns what Apply returned here. An error for which
// errs.OutcomeUnknown is false, such as one with errs.NotLeaderOrFollower, says that the
// command is not and never will be applied. Without a deadline in ctx it waits at most 30 seconds.
func (g *StateGroup) Propose(ctx context.Context, command []byte) (result any, err error) {
	if len(command) > MaxCommandBytes {
		return nil, errs.Errorf(errs.MessageTooLarge, "a command of %d bytes to %s: the limit is %d", len(command), g.cfg.Name, MaxCommandBytes)
	}
	if size := g.log.Size(); size > 8*g.cfg.SnapshotBytes {
		return nil, errs.Errorf(errs.KafkaStorageError, "%s takes no commands: its log has %d bytes and no snapshot can be written; free disk space", g.cfg.Name, size)
	}
	began := clock.Monotonic()
	result, err = g.propose(ctx, command)
	g.cfg.Metrics.propose.Observe(clock.Since(began).Seconds())
	return result, err
}

func (g *StateGroup) propose(ctx context.Context, command []byte) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeLimit)
	defer cancel()
	term, ok := g.Leading()
	if !ok {
		return nil, g.notLeading()
	}
	select {
	case <-g.waits.free:
	case <-ctx.Done():
		return nil, errs.Errorf(errs.RequestTimedOut, "%s is busy with %d commands; the command was not proposed: %w", g.cfg.Name, maxProposals, ctx.Err())
	case <-g.ended:
		return nil, g.notLeading()
	}
	w := g.waits.add(term)
	// The select above may have found a place for a caller that is gone. Such a command may be the late copy of one
	// that was repeated: applied now, it would come after newer ones.
	if err := ctx.Err(); err != nil {
		g.waits.drop(w)
		return nil, errs.Errorf(errs.RequestTimedOut, "the caller of a command to %s is gone; the command was not proposed: %w", g.cfg.Name, err)
	}
	// Look again: the end of the term fails only those waiters that were there.
	if now, ok := g.Leading(); !ok || now != term {
		if g.waits.drop(w) {
			return nil, g.notLeading()
		}
		<-w.answer
		return nil, g.notLeading() // never handed to Raft, whatever the answer says
	}
	// Transfer holds all places before it begins: Raft then refuses what is proposed through the future alone.
	g.Group().Raft().Apply(encodeEnvelope(w.id, command), 0)
	select {
	case a := <-w.answer:
		return a.result, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("propose to %s: %w: %w", g.cfg.Name,
			errs.Unknown(errs.RequestTimedOut, "no result in time; the command may still be applied"), ctx.Err())
	}
}

func (g *StateGroup) notLeading() error {
	if err := g.Group().Err(); err != nil {
		return errs.Errorf(errs.KafkaStorageError, "%s stopped after a storage error: %v", g.cfg.Name, err)
	}
	return errs.Errorf(errs.NotLeaderOrFollower, "this replica does not lead %s", g.cfg.Name)
}

// Read waits until everything that was acknowledged anywhere before the call is applied here; it
// fails with errs.NotLeaderOrFollower where this replica does not lead. Without a deadline in ctx
// it waits at most 30 seconds.
//
// Raft's VerifyLeader is no help: it counts answers to requests that were sent before it. A sole voter needs to ask
// nobody, because nobody else can lead, and what it has acknowledged it has applied. Others note the commit
// index, which covers their predecessors' acknowledgements as soon as they lead, and ask a majority.
func (g *StateGroup) Read(ctx context.Context) error {
	term, ok := g.Leading()
	if !ok {
		return g.notLeading()
	}
	if g.Group().soleVoter() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proposeLimit)
	defer cancel()
	committed := g.Group().Raft().CommitIndex()
	if err := g.Group().Confirm(ctx, term); err != nil {
		return fmt.Errorf("read from %s: %w", g.cfg.Name, err)
	}
	return g.awaitApplied(ctx, term, committed)
}

// awaitApplied waits until all commands up to an index are applied.
func (g *StateGroup) awaitApplied(ctx context.Context, term, index uint64) error {
	last, err := g.lastCommand(index)
	if err != nil {
		return fmt.Errorf("read from %s: %w", g.cfg.Name, err)
	}
	for {
		applied, moved := g.fsm.done.now()
		if applied >= last {
			return nil
		}
		if now, ok := g.Leading(); !ok || now != term {
			return g.notLeading()
		}
		select {
		case <-moved:
		case <-g.ended:
			return g.notLeading()
		case <-g.Group().Failed():
			return g.notLeading()
		case <-ctx.Done():
			return errs.Errorf(errs.RequestTimedOut, "read from %s: command %d was not applied in time: %w", g.cfg.Name, last, ctx.Err())
		}
	}
}

// lastCommand is the last entry up to index that the state machine sees, or one that it has seen.
func (g *StateGroup) lastCommand(index uint64) (uint64, error) {
	for ; ; index-- {
		if applied, _ := g.fsm.done.now(); index <= applied {
			return applied, nil
		}
		var e raft.Log
		err := g.log.GetLog(index, &e)
		if errors.Is(err, raft.ErrLogNotFound) { // in a snapshot, and so applied
			return 0, nil
		}
		if err != nil || e.Type == raft.LogCommand {
			return index, err
		}
	}
}

// Leading returns the term in which this replica leads.
func (g *StateGroup) Leading() (term uint64, ok bool) { return g.Group().LeadsIn() }

// Group is the Raft group underneath. It is another one after the leader's snapshot was installed here.
func (g *StateGroup) Group() *Group { return g.group.Load() }

// applied runs on Raft's FSM goroutine.
func (g *StateGroup) applied(bytes int) {
	commands, size := g.since.commands.Add(1), g.since.bytes.Add(int64(bytes))
	if commands >= g.cfg.SnapshotEvery || size >= g.cfg.SnapshotBytes {
		select {
		case g.due <- struct{}{}:
		default:
		}
	}
}

func (g *StateGroup) takeSnapshots(ctx context.Context) {
	for {
		select {
		case <-g.due:
		case <-ctx.Done():
			return
		}
		commands, size := g.since.commands.Load(), g.since.bytes.Load()
		if commands < g.cfg.SnapshotEvery && size < g.cfg.SnapshotBytes {
			continue
		}
		err := g.Snapshot()
		if err == nil {
			g.since.commands.Add(^(commands - 1))
			g.since.bytes.Add(-size)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		// Nothing is lost: the log still has everything. It is tried again, but not at every command.
		g.cfg.Logger.Error("no snapshot could be written; the log keeps growing", "group", g.cfg.Name, "err", err)
		retry := time.NewTimer(snapshotRetry)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return
		}
	}
}

// Snapshot writes a snapshot now and drops the log before it.
func (g *StateGroup) Snapshot() error {
	if !g.hold() {
		return raft.ErrRaftShutdown
	}
	defer g.free()
	err := g.Group().Raft().Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if err != nil {
		return err
	}
	return g.trim()
}

// hold keeps Raft from being stopped until free; false means that the group has ended.
func (g *StateGroup) hold() bool {
	select {
	case g.life <- struct{}{}:
	case <-g.ended:
		return false
	}
	select {
	case <-g.ended:
		g.free()
		return false
	default:
		return true
	}
}

func (g *StateGroup) free() { <-g.life }

// trim drops the entries that Raft keeps behind a snapshot, where few of them are so large that the
// log would stay above its bound. A follower that needs them gets the snapshot.
func (g *StateGroup) trim() error {
	newest := g.snapshots.newest()
	if newest == nil || g.log.Size() <= 4*g.cfg.SnapshotBytes {
		return nil
	}
	return fencedLog{g.log, g.Group().fence}.DeleteRange(1, newest.Index)
}

// Stop stops the group and closes its files. After an error Raft may still use them.
func (g *StateGroup) Stop(ctx context.Context) error {
	g.stop.Do(func() { close(g.ended) })
	select {
	case g.life <- struct{}{}:
		defer g.free()
	case <-ctx.Done():
		return fmt.Errorf("stop state group %s: a snapshot is still being taken or installed: %w", g.cfg.Name, ctx.Err())
	}
	if err := g.Group().Stop(ctx); err != nil {
		return err
	}
	if err := g.runs.StopWithin(ctx); err != nil {
		return err
	}
	return g.log.Close()
}
