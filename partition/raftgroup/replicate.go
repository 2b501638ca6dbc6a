package raftgroup

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

var (
	errDeposed = errors.New("this replica does not lead in the request's term any more")
	errStub    = errors.New("the request reaches below the log's first entry")
)

// office tells whether Raft leads.
//
// hashicorp/raft's replicating goroutines read the log beside its main loop. When another leader deposes this
// replica the main loop replaces the end of the log under them, and a request that was begun before may hold
// the entry before of the old log, and entries of the new one. A follower that has not heard of the
// new term takes both, and has from then on, under the new leader's index and term, another past than the new leader.
//
// A leader never cuts its log. So what was read while it still leads in the request's term is of one log.
type office struct{ raft atomic.Pointer[raft.Raft] }

// check tells why a request must not leave. It comes after the request was put together.
func (o *office) check(f *fence, req *raft.AppendEntriesRequest) error {
	if err := f.silent(); err != nil {
		return err
	}
	r := o.raft.Load()
	// The state is given up before the term is, and both before the log is cut.
	if r == nil || r.State() != raft.Leader || r.CurrentTerm() != req.Term {
		return errDeposed
	}
	return nil
}

// stub is where a request holds what a log shows in place of the entry before its first one: a command without
// data, of which only the term is known. Raft asks for it as the entry before, and takes it for an entry where it
// did not ask for the one before that: at the beginning of all, behind the snapshot from which it
// started, and when the log's front goes while it reads. -1: nowhere.
func stub(entries []*raft.Log) int {
	return slices.IndexFunc(entries, func(e *raft.Log) bool { return e.Type == raft.LogCommand && len(e.Data) == 0 })
}

// offer sends the snapshot in place of a stub, as Raft does where the log has nothing at all. Whoever has taken
// it has all entries through the stub's index.
func (t fencedTransport) offer(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	index := req.Entries[0].Index
	all, err := t.snapshots.List()
	if err != nil || len(all) == 0 {
		return fmt.Errorf("entry %d is given up, and there is no snapshot: %w", index, errors.Join(err, errStub))
	}
	meta, state, err := t.snapshots.Open(all[0].ID)
	if err != nil {
		return err
	}
	defer state.Close()
	if meta.Index < index {
		return fmt.Errorf("the snapshot ends at entry %d, before entry %d: %w", meta.Index, index, errStub)
	}
	install := raft.InstallSnapshotRequest{
		RPCHeader: req.RPCHeader, SnapshotVersion: meta.Version, Term: req.Term,
		//lint:ignore SA1019 Raft fills it in as well
		Leader: req.Leader, LastLogIndex: meta.Index, LastLogTerm: meta.Term, Size: meta.Size,
		Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex,
	}
	var got raft.InstallSnapshotResponse
	if err := t.InstallSnapshot(id, to, &install, &got, state); err != nil {
		return err
	}
	req.Entries = req.Entries[:1]
	*resp = raft.AppendEntriesResponse{RPCHeader: got.RPCHeader, Term: got.Term, LastLog: req.PrevLogEntry, Success: got.Success}
	return nil
}
