package partition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	// queueSlots is how many commands may wait in Raft's queue, which raftgroup makes as
	// long: a command that has a place never blocks its caller.
	queueSlots = 64
	// drainFor bounds how long Stop waits for answers that are on their way.
	drainFor = 5 * time.Second
	// fenceFor bounds how long a failed replica waits for Raft to end.
	fenceFor = 10 * time.Second
)

// Replica is this broker's replica of one partition.
//
// Lock order: order, store.mu, proposals.mu. The last is never held across anything slow.
type Replica struct {
	cfg       Config
	deps      Deps
	logger    *slog.Logger
	gen       generation    // where log and checkpoint lie; immutable after open
	swept     chan struct{} // closed when the litter of other generations is gone, or stays
	log       *log.Log
	store     *store
	proposals *proposals
	isr       *tracker // nil where Deps.ISR is given, or the replica is alone
	snapshots snapshots
	runs      *run.Group // owns the checkpoint that is being written, and the end after a failure
	watch     watchers
	holds     holds
	lease     lease // of the log's front, for followers that are fed from there

	topic atomic.Pointer[TopicConfig]
	group atomic.Pointer[raftgroup.Group] // nil until Start

	transfers sync.Mutex // held by the one transfer of the leadership

	// order makes the numbering of proposals and their order in Raft's queue the same.
	order sync.Mutex

	leading       atomic.Uint64 // the term in which proposals are taken; written by leadership
	high          atomic.Int64  // high watermark; written by Open and the state machine
	applied       atomic.Uint64 // index; written by Open and the state machine
	trimmed       atomic.Int64  // highest applied trim; written by the state machine
	checkpointing atomic.Bool   // one is being written
	offered       atomic.Bool   // an offer is being looked at: one at a time
	responses     []any         // the state machine's; all nil

	opened   atomic.Bool // until then Open tells what is wrong
	failed   atomic.Pointer[error]
	stopOnce sync.Once
	stopErr  error // written in stopOnce
}

// Open recovers the replica's log and state; it starts nothing. Damage is
// log.ErrCorrupt (errs.ReplicaQuarantined): the data stays where it is.
func Open(cfg Config, deps Deps) (*Replica, error) { return open(cfg, deps, releaseLimits) }

func open(cfg Config, deps Deps, lim limits) (*Replica, error) {
	r := &Replica{cfg: cfg, swept: make(chan struct{}), deps: deps.withDefaults()}
	r.logger = r.deps.Logger.With("topic", cfg.TopicName, "partition", cfg.Partition)
	r.runs = run.Owned(fmt.Sprintf("partition %s/%d", cfg.TopicName, cfg.Partition))
	r.topic.Store(cfg.TopicConfig.withDefaults())
	var err error
	if r.gen, err = openGeneration(r.deps.FS, cfg.Dir); err != nil {
		return nil, fmt.Errorf("open partition %s/%d: %w", cfg.TopicName, cfg.Partition, err)
	}
	l, recovery, err := log.Open(r.logConfig())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open partition %s/%d: %w", cfg.TopicName, cfg.Partition, err), r.gen.close())
	}
	r.log = l
	l.SetRetention(r.topic.Load().retention())
	if _, linked := deps.Transport.(raftgroup.Link); linked && deps.ISR == nil {
		r.isr = newTracker(cfg.ID, deps.LagTimeMax, l.LastIndex(), r.InSync)
		r.deps.ISR = r.isr
	}
	r.proposals = newProposals(queueSlots, answers{isr: r.deps.ISR, metrics: r.deps.Metrics, log: l})
	r.store = &store{log: l, clock: r.deps.Clock, limits: lim, proposals: r.proposals, topic: &r.topic, commit: r.commitIndex, isr: r.isr, began: clock.Monotonic()}
	if err := r.recover(recovery, lim); err != nil {
		return nil, errors.Join(fmt.Errorf("open partition %s/%d: %w", cfg.TopicName, cfg.Partition, err), r.close())
	}
	r.opened.Store(true)
	return r, nil
}

func (d Deps) withDefaults() Deps {
	if d.FS == nil {
		d.FS = fsx.OS()
	}
	if d.Clock == nil {
		d.Clock = clock.System()
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.ISR == nil {
		d.ISR = alone{}
	}
	return d
}

func (r *Replica) logConfig() log.Config {
	c := r.deps.Log
	t := r.topic.Load()
	c.Dir, c.Topic, c.Partition = r.gen.dir, r.cfg.Topic, r.cfg.Partition
	c.SegmentBytes, c.SegmentAge = t.SegmentBytes, t.SegmentAge
	c.FS, c.Clock, c.Logger = r.deps.FS, r.deps.Clock, r.logger
	c.OnPoison, c.OnCorrupt = r.fatal, r.fatal
	return c
}

// recover rebuilds the state at the log's end, and finds where Raft may start and
// up to where everything is known to be committed.
func (r *Replica) recover(rec log.Recovery, lim limits) error {
	if r.log.LastIndex() == 0 && len(r.cfg.Voters) == 0 && !r.cfg.Join && !bug.On(bug.SameIDAfterWipe) {
		return errs.Errorf(errs.ReplicaQuarantined, "the log of a replica that was formed before is missing; it must be replaced by a new replica")
	}
	sidecar, from := r.log.ActiveState()
	begin, err := decodeState(sidecar, lim)
	if err != nil {
		return fmt.Errorf("%w: start state of the active segment: %w", log.ErrCorrupt, err)
	}
	commit := rec.Commit
	if bug.On(bug.CommitIsTheEnd) {
		commit = r.log.LastIndex()
	}
	if first := r.log.FirstIndex(); first > 0 {
		commit = max(commit, first-1) // only what has committed is given up, or lies below a reset's base
	}
	base, err := r.base(begin, commit, lim)
	if err != nil {
		return err
	}
	r.store.state = begin
	if err := begin.catchUp(r.log, from); err != nil {
		return err
	}
	r.store.times.learn(begin.time)
	return r.recoverWatermark(base, commit)
}

// base finds the newest state that is committed for certain: the checkpoint, or the
// active segment's start where that is known to be committed. It
// becomes the snapshot that Raft starts from.
func (r *Replica) base(begin *state, commit log.Index, lim limits) (*state, error) {
	saved, err := readCheckpoint(r.deps.FS, r.gen.dir, r.cfg, lim)
	if err != nil {
		// The file is replaced atomically, so this is damage; but the log may tell as much.
		r.logger.Warn("checkpoint is damaged; it is made again", "err", err)
		saved = nil
	}
	if saved != nil && saved.index > r.log.LastIndex() {
		return nil, fmt.Errorf("%w: the checkpoint is at entry %d, the log ends at %d", log.ErrCorrupt, saved.index, r.log.LastIndex())
	}
	if saved != nil {
		r.snapshots.durable.Store(uint64(saved.index))
	}
	base := saved
	if begin.index > 0 && begin.index <= commit && (base == nil || begin.index > base.index) {
		base = begin
	}
	// Raft would look for the entries between the two, and panic.
	if first := r.log.FirstIndex(); first > 1 && (base == nil || base.index+1 < first) {
		return nil, fmt.Errorf("%w: the log begins at entry %d and no checkpoint reaches it", log.ErrCorrupt, first)
	}
	if base == nil {
		return newState(lim), nil
	}
	base = base.frozen()
	r.snapshots.advance(base)
	return base, nil
}

// recoverWatermark sets the high watermark to the end of what is known to be committed.
func (r *Replica) recoverWatermark(base *state, commit log.Index) error {
	high, index := base.end, base.index
	switch {
	case commit <= base.index:
	case commit >= r.log.LastIndex():
		high, index = r.log.EndOffset(), r.log.LastIndex()
	default:
		e, err := r.log.Entry(commit)
		if err != nil {
			return fmt.Errorf("find the high watermark at entry %d: %w", commit, err)
		}
		high, index = endOf(e), commit
	}
	r.high.Store(int64(max(high, r.log.StartOffset())))
	r.applied.Store(uint64(index))
	r.trimmed.Store(int64(r.log.StartOffset()))
	return nil
}

// endOf is the log end offset behind an entry.
func endOf(e log.Entry) record.Offset {
	if e.Verdict == log.Accepted && len(e.Body) >= metaBytes+record.HeaderBytes {
		return e.BaseOffset + record.Offset(record.Raw(e.Body[metaBytes:]).Count())
	}
	return e.BaseOffset
}

// Start forms (Config.Voters) or starts the Raft group. A group of one campaigns at once.
func (r *Replica) Start() error {
	name := fmt.Sprintf("%s/%d", r.cfg.TopicName, r.cfg.Partition)
	cfg := raftgroup.Config{
		Name: name, ID: r.cfg.ID, Timing: r.deps.Timing, Logger: r.logger,
		Metrics: r.deps.GroupMetrics, OnFailure: r.fatal, OnWedged: r.wedged, Stalled: r.store.stalled, Watchdog: r.deps.Log.Watchdog,
	}
	parts := raftgroup.Parts{FSM: fsm{r}, Logs: r.store, Stable: r.deps.Stable, Snapshots: &r.snapshots, Transport: r.deps.Transport}
	if parts.Transport == nil {
		parts.Transport = raftgroup.NewLoopback(raft.ServerAddress(r.cfg.ID))
	}
	if len(r.cfg.Voters) > 0 {
		err := raftgroup.Bootstrap(cfg, parts, r.cfg.Voters)
		if errors.Is(err, raft.ErrCantBootstrap) && r.log.LastIndex() == 0 {
			return errs.Errorf(errs.ReplicaQuarantined, "partition %s was formed before, this replica has voted, and its log is missing; it must be replaced by a new replica", name)
		}
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) { // formed by an earlier start
			return fmt.Errorf("form partition %s: %w", name, err)
		}
	}
	if r.isr != nil {
		parts.Transport.(raftgroup.Link).OnMatch(r.isr.match)
	}
	g, err := raftgroup.Start(cfg, parts)
	if err != nil {
		return fmt.Errorf("start partition %s: %w", name, err)
	}
	r.runs.Go("sweep", r.sweep)
	r.group.Store(g)
	offer := r.offer
	r.snapshots.offer.Store(&offer)
	r.intercept(r)
	g.OnLeadership(r.leadership)
	if err := r.failure(); err != nil { // between Raft's start and now
		return errors.Join(err, r.stopGroup(r.runs.Context()))
	}
	return nil
}

// leadership is told by the group when a term begins or ends here.
func (r *Replica) leadership(term uint64, leads bool) {
	epoch := epochOf(term)
	if leads && r.isr != nil { // first: with acks=all an append asks who is in sync
		r.isr.lead(term, r.group.Load().Raft().GetConfiguration().Configuration())
	}
	r.proposals.lead(log.Term(term), leads)
	if !leads {
		term = 0
		if r.isr != nil {
			r.isr.lead(0, raft.Configuration{})
		}
	}
	r.leading.Store(term)
	r.watch.wake()
	if r.deps.OnLeadership != nil {
		r.deps.OnLeadership(epoch, leads)
	}
}

// commitIndex is what is known to be committed here.
func (r *Replica) commitIndex() log.Index {
	known := r.applied.Load()
	if g := r.group.Load(); g != nil {
		known = max(known, g.Raft().CommitIndex())
	}
	return log.Index(known)
}

func (r *Replica) highWatermark() record.Offset { return record.Offset(r.high.Load()) }
func (r *Replica) trimmedTo() record.Offset     { return record.Offset(r.trimmed.Load()) }

// epochOf is the leader epoch of a term. A group would need four thousand million
// elections to leave the range.
func epochOf(term uint64) record.Epoch { return record.Epoch(min(term, math.MaxInt32)) }

// failure is why the replica can no longer be trusted, or nil.
func (r *Replica) failure() error {
	if err := r.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fatal ends the replica: nothing is answered but what is certain, and the group is stopped.
func (r *Replica) fatal(err error) {
	if !r.opened.Load() || errors.Is(err, log.ErrClosed) || !r.failed.CompareAndSwap(nil, &err) {
		return
	}
	r.logger.Error("replica has failed; it serves nothing any more", "err", err)
	r.deps.Metrics.fail()
	r.runs.Go("end", func(ctx context.Context) { r.end(ctx, err) })
}

func (r *Replica) end(ctx context.Context, err error) {
	r.proposals.end(errFailed, errFailedLate)
	r.watch.wake()
	if r.deps.OnFatal != nil {
		r.deps.OnFatal(err)
	}
	if err := r.stopGroup(ctx); err != nil {
		r.logger.Error("failed replica does not end", "err", err)
	}
}

func (r *Replica) stopGroup(ctx context.Context) error {
	g := r.group.Load()
	if g == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, fenceFor)
	defer cancel()
	return g.Stop(ctx)
}

// Stop refuses new appends, waits a while for the answers that are on their way, leaves
// a checkpoint, and stops the group, then the log. After an error Raft may still use the
// log: the process should exit.
func (r *Replica) Stop(ctx context.Context) error {
	r.stopOnce.Do(func() { r.stopErr = r.stop(ctx) })
	return r.stopErr
}

func (r *Replica) stop(ctx context.Context) error {
	r.intercept(nil)
	r.proposals.close(errStopping)
	r.drain(ctx)
	saved := within(ctx, "last checkpoint", r.lastCheckpoint)
	r.proposals.end(errStopping, errStopped)
	if g := r.group.Load(); g != nil {
		if err := g.Stop(ctx); err != nil {
			return errors.Join(saved, err)
		}
	}
	if err := r.runs.StopWithin(ctx); err != nil {
		return errors.Join(saved, err)
	}
	if r.isr != nil {
		r.isr.close()
	}
	r.watch.wake()
	return errors.Join(saved, within(ctx, "close log", r.close))
}

// close closes the log, then gives back the replica's directory.
func (r *Replica) close() error { return errors.Join(r.log.Close(), r.gen.close()) }

// within runs f, which may hang with the disk, and waits for it until ctx is done.
func within(ctx context.Context, name string, f func() error) error {
	var err error
	g := run.Owned(name)
	g.Go("run", func(context.Context) { err = f() })
	if late := g.StopWithin(ctx); late != nil {
		return late
	}
	return err
}

func (r *Replica) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainFor)
	defer cancel()
	select {
	case <-r.proposals.drained():
	case <-ctx.Done():
	}
}

// lastCheckpoint lets the next start begin at the log's end.
func (r *Replica) lastCheckpoint() error {
	if r.failure() != nil || r.group.Load() == nil {
		return nil
	}
	c := r.store.now()
	if c == nil || c.index <= r.snapshots.index() || !r.settled(c) || !r.checkpointing.CompareAndSwap(false, true) {
		return nil
	}
	defer r.checkpointing.Store(false)
	return r.checkpoint(c)
}
