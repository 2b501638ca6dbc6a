package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// restartFor bounds how long a restart waits for Raft to stop. A disk that hangs has ended the process by then.
const restartFor = time.Minute

var errStateEnded = errors.New("the state group has ended")

// InstallSnapshot implements Interceptor. Raft's own installation leaves a log that conflicts with the snapshot in
// place, and then livelocks or panics (hashicorp/raft #697). Here Raft is stopped, the snapshot becomes durable,
// the log is made to agree with it as at every start, and Raft starts again from both. A crash on
// the way finds the old state, or the snapshot and a log that a start knows how to treat.
//
// What was acknowledged stays, however late the request comes: it counts only in the term of this replica, and
// where its entry is neither committed here nor in the log.
func (g *StateGroup) InstallSnapshot(req *raft.InstallSnapshotRequest, state io.Reader) (*raft.InstallSnapshotResponse, error) {
	if !g.hold() {
		return nil, errStateEnded
	}
	defer g.free()
	if err := g.Group().fence.silent(); err != nil {
		return nil, err
	}
	resp, needed, err := g.judge(req)
	if err != nil || !needed {
		return resp, err
	}
	meta, content, err := readSnapshot(req, state)
	if err != nil {
		return nil, fmt.Errorf("snapshot at entry %d of %s: %w", req.LastLogIndex, g.cfg.Name, err)
	}
	began := clock.Monotonic()
	if resp, err = g.replace(req, meta, content); err != nil {
		g.cfg.Logger.Error("the leader's snapshot was not installed", "group", g.cfg.Name, "index", req.LastLogIndex, "err", err)
		return nil, err
	}
	g.cfg.Logger.Info("the leader's snapshot was installed", "group", g.cfg.Name, "index", req.LastLogIndex,
		"bytes", len(content), "took", clock.Since(began))
	return resp, nil
}

// judge decides whether a snapshot is needed. It is asked twice: while Raft runs, to spare the work, and
// when nothing can change any more, where it counts.
func (g *StateGroup) judge(req *raft.InstallSnapshotRequest) (resp *raft.InstallSnapshotResponse, needed bool, err error) {
	if req.SnapshotVersion != 1 || req.LastLogIndex == 0 || req.LastLogTerm == 0 || req.LastLogTerm > req.Term {
		return nil, false, fmt.Errorf("snapshot of version %d at entry %d, term %d, by a leader of term %d",
			req.SnapshotVersion, req.LastLogIndex, req.LastLogTerm, req.Term)
	}
	resp = &raft.InstallSnapshotResponse{Term: g.Group().Term()}
	if req.Term != resp.Term {
		return resp, false, nil // a higher term comes by a heartbeat first, durably
	}
	have, err := g.has(req.LastLogIndex, req.LastLogTerm)
	if err != nil {
		return nil, false, err
	}
	resp.Success = have
	return resp, !have, nil
}

// has tells whether all entries up to one that is committed are here: they are known to be committed, or the log has
// the entry itself, and then, as Raft keeps it, the same entries before.
func (g *StateGroup) has(index, term uint64) (bool, error) {
	applied, _ := g.fsm.done.now()
	if index <= max(applied, g.Group().Raft().CommitIndex()) {
		return true, nil
	}
	_, last, err := ends(g.log)
	if err != nil || index > last {
		return false, err
	}
	var e raft.Log
	if err := g.log.GetLog(index, &e); err != nil {
		return false, err
	}
	return e.Term == term, nil
}

// readSnapshot reads exactly what was announced.
func readSnapshot(req *raft.InstallSnapshotRequest, from io.Reader) (*raft.SnapshotMeta, []byte, error) {
	if req.Size < 0 || req.Size > maxSnapshotBytes {
		return nil, nil, fmt.Errorf("%d bytes are announced, at most %d are taken", req.Size, maxSnapshotBytes)
	}
	configuration, err := decodeConfiguration(req.Configuration)
	if err != nil || req.ConfigurationIndex > req.LastLogIndex {
		return nil, nil, fmt.Errorf("configuration of entry %d: %w", req.ConfigurationIndex, errors.Join(err, ErrCorrupt))
	}
	// The memory grows with what comes, not with what was announced.
	state, err := io.ReadAll(io.LimitReader(from, req.Size+1))
	if err == nil && int64(len(state)) != req.Size {
		err = fmt.Errorf("%d bytes came, %d were announced", len(state), req.Size)
	}
	return &raft.SnapshotMeta{
		Version: 1, ID: snapshotID(req.LastLogIndex, req.LastLogTerm), Index: req.LastLogIndex, Term: req.LastLogTerm,
		Configuration: configuration, ConfigurationIndex: req.ConfigurationIndex, Size: req.Size,
	}, state, err
}

// decodeConfiguration is Raft's, which panics at what it does not understand.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("it cannot be decoded")
		}
	}()
	if c = raft.DecodeConfiguration(b); len(c.Servers) == 0 {
		err = errors.New("it is empty")
	}
	return c, err
}

// replace keeps the snapshot, if it is still needed when Raft has stopped. It fails, with Raft running as before,
// where the snapshot could not be written.
func (g *StateGroup) replace(req *raft.InstallSnapshotRequest, meta *raft.SnapshotMeta, state []byte) (resp *raft.InstallSnapshotResponse, err error) {
	gauge := g.cfg.Watchdog.Gauge("snapshot of " + g.cfg.Name)
	defer gauge.Close()
	gauge.Begin()
	defer gauge.End()
	failed := g.restart(func() {
		var needed bool
		if resp, needed, err = g.judge(req); err != nil || !needed {
			return
		}
		err = g.snapshots.keep(meta, state)
		resp.Success = err == nil
	})
	if failed != nil {
		return nil, failed
	}
	return resp, err
}

// restart stops Raft, calls between, and starts Raft from what is on disk. Where it does not stop or start the group
// has failed. The caller holds life.
func (g *StateGroup) restart(between func()) error {
	ctx, cancel := context.WithTimeout(g.runs.Context(), restartFor)
	defer cancel()
	if err := g.Group().Stop(ctx); err != nil {
		return g.broken(err)
	}
	if err := g.Group().Err(); err != nil { // fenced meanwhile
		if g.Group().fence.untold() {
			return g.broken(err)
		}
		return err
	}
	between()
	if err := g.startGroup(); err != nil {
		return g.broken(err)
	}
	return nil
}

// broken says that there is no group any more.
func (g *StateGroup) broken(err error) error {
	g.Group().Retire(err)
	g.cfg.Metrics.failures.Inc()
	if g.cfg.OnFailure != nil {
		g.runs.Go("failure", func(context.Context) { g.cfg.OnFailure(err) })
	}
	return err
}
