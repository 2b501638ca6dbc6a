package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

var _ raftgroup.Interceptor = (*Replica)(nil)

var (
	// errReset is of a replica that its owner opens again: its leader has reset it, or a transfer of its leadership wedged.
	errReset     = errs.New(errs.NotLeaderOrFollower, "this replica starts anew: ask for metadata and retry")
	errResetLate = errs.Unknown(errs.NotLeaderOrFollower, "this replica started anew before the append had committed; it may or may not be done")

	errOffersBusy = errors.New("another offer is being looked at")
)

// intercept has i answer the offers of leaders, where there is a transport that can do it.
func (r *Replica) intercept(i raftgroup.Interceptor) {
	if link, ok := r.deps.Transport.(raftgroup.Link); ok {
		link.Intercept(i)
	}
}

// InstallSnapshot implements raftgroup.Interceptor: the leader offers its log's origin. The replica begins
// anew there when it ends below or disagrees there; otherwise it answers success and changes nothing, since
// a request may come late, and what was acknowledged in the meantime must stay.
//
// Only an offer of the replica's own term counts. A lower one is of a deposed leader. A higher one is refused as well, but
// not for good: Raft adopts terms, durably, and this is not Raft; the leader's heartbeats bring
// the term, and then it asks again.
func (r *Replica) InstallSnapshot(req *raft.InstallSnapshotRequest, state io.Reader) (resp *raft.InstallSnapshotResponse, err error) {
	defer func() { _, _ = io.Copy(io.Discard, io.LimitReader(state, maxOriginBytes)) }() // leave nothing in the stream
	if !r.offered.CompareAndSwap(false, true) {
		return nil, errOffersBusy
	}
	defer r.offered.Store(false)
	var needed bool
	resp, err = nil, errStopping
	r.whileOpen(func() { resp, needed, err = r.judgeOffer(req) })
	if err != nil || !needed {
		return resp, err
	}
	o, err := r.readOffer(req, state) // from the network, which Stop must not wait for
	if err != nil {
		return nil, fmt.Errorf("offer of entry %d: %w", req.LastLogIndex, err)
	}
	resp, err = nil, errStopping
	r.whileOpen(func() { resp, err = r.reset(req, o) })
	return resp, err
}

// whileOpen calls f, and Stop waits for it; once the replica stops it does not call it.
func (r *Replica) whileOpen(f func()) {
	done := make(chan struct{})
	if r.runs.Go("offer", func(context.Context) {
		defer close(done)
		f()
	}) {
		<-done
	}
}

// judgeOffer decides on an offer. A needed reset is decided on twice: here, where Raft may store and commit
// beside it, to spare the bytes, and once more with the append lock held, where it counts.
func (r *Replica) judgeOffer(req *raft.InstallSnapshotRequest) (resp *raft.InstallSnapshotResponse, needed bool, err error) {
	g := r.group.Load()
	if err := r.failure(); err != nil || g == nil || g.Muted() || g.Err() != nil { // what a fenced group takes for its term may not be durable
		return nil, false, errors.Join(errNotServing, err)
	}
	if req.SnapshotVersion != raft.SnapshotVersionMax {
		return nil, false, fmt.Errorf("offer of version %d, this build knows %d", req.SnapshotVersion, raft.SnapshotVersionMax)
	}
	base, term := log.Index(req.LastLogIndex), log.Term(req.LastLogTerm)
	if base == 0 || base+1 == 0 || term == 0 || uint64(term) > req.Term {
		return nil, false, fmt.Errorf("offer of entry %d, term %d, by a leader of term %d", base, term, req.Term)
	}
	resp = &raft.InstallSnapshotResponse{Term: g.Raft().CurrentTerm()}
	if err := g.Err(); err != nil {
		return nil, false, err // the term may be one that could not be made durable
	}
	if req.Term != resp.Term {
		return resp, false, nil
	}
	if g.Raft().State() == raft.Leader {
		return nil, false, fmt.Errorf("offer of entry %d by another leader of term %d, in which this replica leads", base, req.Term)
	}
	agrees, err := r.agreesAt(base, term)
	if err != nil {
		return nil, false, fmt.Errorf("offer of entry %d, term %d: %w", base, term, err)
	}
	resp.Success = agrees
	return resp, !agrees, nil
}

// agreesAt tells whether all entries up to base are here: they are known to be committed, or the log has
// base with the same term, and then, as Raft keeps it, the same entries before. The leader's base is committed: only
// what is committed is ever given up. So an entry of another term there, and what stands on it, never was.
func (r *Replica) agreesAt(base log.Index, term log.Term) (bool, error) {
	if bug.On(bug.ResetUnchecked) {
		return false, nil
	}
	if base <= r.commitIndex() {
		return true, nil
	}
	if base > r.log.LastIndex() {
		return false, nil
	}
	e, err := r.log.Entry(base)
	if err != nil {
		return false, err
	}
	return e.Term == term, nil
}

// readOffer reads exactly what was announced, and checks all of it.
func (r *Replica) readOffer(req *raft.InstallSnapshotRequest, state io.Reader) (o log.Origin, err error) {
	if req.Size <= 0 || req.Size > maxOriginBytes {
		return o, fmt.Errorf("%d bytes are announced, at most %d are taken", req.Size, maxOriginBytes)
	}
	// The memory grows with what comes, not with what was announced.
	b, err := io.ReadAll(io.LimitReader(state, req.Size+1))
	if err != nil {
		return o, err
	}
	if int64(len(b)) != req.Size {
		return o, fmt.Errorf("%d bytes came, %d were announced", len(b), req.Size)
	}
	if o, err = log.DecodeOrigin(b, r.cfg.Topic, r.cfg.Partition); err != nil {
		return o, err
	}
	s, err := stateAt(o, r.store.limits)
	if err != nil {
		return o, err
	}
	if uint64(o.Index) != req.LastLogIndex || uint64(o.Term) != req.LastLogTerm || uint64(s.configIndex) != req.ConfigurationIndex {
		return o, fmt.Errorf("entry %d of term %d, configuration of %d, came for entry %d of term %d, configuration of %d",
			o.Index, o.Term, s.configIndex, req.LastLogIndex, req.LastLogTerm, req.ConfigurationIndex)
	}
	return o, nil
}

// reset makes the next generation of the replica, and has it be the one in force. The append lock
// is held throughout: nothing is stored, truncated or acknowledged in the old one meanwhile, and
// after the switch nothing ever is.
func (r *Replica) reset(req *raft.InstallSnapshotRequest, o log.Origin) (*raft.InstallSnapshotResponse, error) {
	resp, retired, err := r.resetLocked(req, o)
	if retired {
		r.deps.Metrics.reset()
		r.leave()
	}
	return resp, err
}

func (r *Replica) resetLocked(req *raft.InstallSnapshotRequest, o log.Origin) (resp *raft.InstallSnapshotResponse, retired bool, err error) {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	if r.store.failed != nil {
		return nil, false, r.store.failed
	}
	resp, needed, err := r.judgeOffer(req)
	if err != nil || !needed {
		return resp, false, err
	}
	r.store.onDisk()
	defer r.store.offDisk()
	next := r.gen.next
	err = r.build(next, o)
	if err == nil {
		failpoint.Hit("partition/reset/built")
		err = switchTo(r.deps.FS, r.cfg.Dir, next)
	}
	if err != nil {
		return nil, false, r.resetFailed(next, fmt.Errorf("reset to entry %d: %w", o.Index, err))
	}
	failpoint.Hit("partition/reset/switched")
	r.logger.Warn("replica was reset: its leader no longer has the entries that it lacked; it starts anew where the leader's log begins",
		"was_index", r.log.LastIndex(), "was_offset", r.log.EndOffset(), "base_index", o.Index, "base_offset", o.Offset, "generation", next)
	resp.Success = true
	return resp, r.retire(), nil
}

// build makes a generation, durably: its log without entries, and the checkpoint from which Raft starts.
func (r *Replica) build(n uint64, o log.Origin) error {
	fs, cfg := r.deps.FS, r.logConfig()
	cfg.Dir = generationDir(r.cfg.Dir, n)
	// An attempt before this one may have run out of space.
	if err := fs.RemoveAll(cfg.Dir); err != nil {
		return err
	}
	if err := fs.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	failpoint.Hit("partition/reset/begun")
	if err := log.Create(cfg, o); err != nil {
		return err
	}
	failpoint.Hit("partition/reset/log")
	if err := writeCheckpoint(fs, cfg.Dir, r.cfg, o.State); err != nil {
		return err
	}
	failpoint.Hit("partition/reset/checkpoint")
	return fs.SyncDir(r.cfg.Dir)
}

// resetFailed decides what an error of the disk means. Where there was no room, for bytes or descriptors,
// the old generation goes on as if nothing had been: nothing of it was touched. Anything else is the
// disk itself, and final as always. So is an error after CURRENT has its new content: which
// one a power cut leaves is not known.
func (r *Replica) resetFailed(next uint64, err error) error {
	if noRoom(err) {
		if n, readErr := readCurrent(r.deps.FS, r.cfg.Dir); readErr == nil && n == r.gen.n {
			_ = r.deps.FS.RemoveAll(generationDir(r.cfg.Dir, next)) // litter, if it stays
			_ = r.deps.FS.Remove(filepath.Join(r.cfg.Dir, currentName+newSuffix))
			r.logger.Warn("no room to reset the replica; it stays behind until there is", "err", err)
			return err
		}
	}
	r.store.failed = err
	r.fatal(err)
	return err
}

func noRoom(err error) bool {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// retire ends this generation in memory: nothing is stored, sent, applied or served any more. The append lock
// is held. False says that somebody else has ended it already, and has told the owner.
func (r *Replica) retire() bool {
	var err error = errReset
	r.store.failed = err
	if !r.failed.CompareAndSwap(nil, &err) {
		return false
	}
	r.group.Load().Retire(err)
	return true
}

// leave answers all who wait, and calls for the owner.
func (r *Replica) leave() {
	r.proposals.end(errReset, errResetLate)
	r.watch.wake()
	if r.deps.OnReset != nil {
		r.runs.Go("tell of reset", func(context.Context) { r.deps.OnReset() }) // not while it stops: the owner knows
	}
}

// refusal is err, unless the replica was reset: then it is only this moment's.
func (r *Replica) refusal(err error) error {
	if errors.Is(r.failure(), errReset) {
		return errReset
	}
	return err
}
