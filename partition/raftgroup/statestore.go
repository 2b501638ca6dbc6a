package raftgroup

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/log/statelog"
)

// StateLog is the Raft log of a state group: package log/statelog, unless StateConfig.Log says
// otherwise. What StoreLogs and DeleteRange have done when they return is durable.
type StateLog interface {
	raft.LogStore
	// Size is about how many bytes the entries take.
	Size() int64
	Close() error
}

// stateLogs is a statelog as a StateLog.
type stateLogs struct{ *statelog.Log }

// FirstIndex implements raft.LogStore.
func (l stateLogs) FirstIndex() (uint64, error) { return l.First(), nil }

// LastIndex implements raft.LogStore.
func (l stateLogs) LastIndex() (uint64, error) { return l.Last(), nil }

// GetLog implements raft.LogStore.
func (l stateLogs) GetLog(index uint64, out *raft.Log) error {
	e, err := l.Entry(index)
	if errors.Is(err, statelog.ErrNotFound) {
		return raft.ErrLogNotFound // Raft compares with ==
	}
	if err != nil {
		return err
	}
	*out = raft.Log{Index: e.Index, Term: e.Term, Type: raft.LogType(e.Type), Data: e.Data, Extensions: e.Extensions}
	if e.AppendedAt != 0 {
		out.AppendedAt = time.Unix(0, e.AppendedAt)
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (l stateLogs) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (l stateLogs) StoreLogs(entries []*raft.Log) error {
	out := make([]statelog.Entry, len(entries))
	for i, e := range entries {
		out[i] = statelog.Entry{Index: e.Index, Term: e.Term, Type: uint8(e.Type), Data: e.Data, Extensions: e.Extensions}
		if !e.AppendedAt.IsZero() {
			out[i].AppendedAt = e.AppendedAt.UnixNano()
		}
	}
	return l.Append(out)
}

// basedLog is the log that Raft sees: for the entry of the newest snapshot it has a stub with the term where the log has
// nothing. Raft looks there when a leader's entries replace all that came after the snapshot.
type basedLog struct {
	StateLog
	snapshots *snapshotStore
}

// GetLog implements raft.LogStore.
func (l basedLog) GetLog(index uint64, out *raft.Log) error {
	err := l.StateLog.GetLog(index, out)
	if newest := l.snapshots.newest(); errors.Is(err, raft.ErrLogNotFound) && newest != nil && newest.Index == index {
		*out, err = raft.Log{Index: index, Term: newest.Term}, nil
	}
	return err
}

// reconcile makes the log fit the newest snapshot. A crash, or a snapshot from the
// leader, may leave a log that ends below the snapshot or that disagrees at it: then the snapshot
// says all, and the log starts anew behind it. A log that starts too late
// means that a snapshot is lost.
func reconcile(l raft.LogStore, snapshot *raft.SnapshotMeta) error {
	first, last, err := ends(l)
	if err != nil || last == 0 {
		return err
	}
	var base uint64
	if snapshot != nil {
		base = snapshot.Index
	}
	if first > base+1 {
		return fmt.Errorf("the log starts at entry %d and the newest sound snapshot ends at %d: %w; "+
			"replace this replica, or restore its directory", first, base, ErrCorrupt)
	}
	if snapshot == nil || base+1 == first {
		return nil
	}
	if last >= base {
		var e raft.Log
		if err := l.GetLog(base, &e); err != nil {
			return err
		}
		if e.Term == snapshot.Term {
			return nil
		}
	}
	return l.DeleteRange(first, last)
}

// ends are the first and the last index of a log.
func ends(l raft.LogStore) (first, last uint64, err error) {
	first, err = l.FirstIndex()
	if err == nil {
		last, err = l.LastIndex()
	}
	return first, last, err
}
