package raftgroup

import (
	"context"

	"github.com/hashicorp/raft"
)

// relay stands between the transport and Raft. It hands over one request after the other, which is how Raft takes
// them, and gives back the answer, unless the group must be silent by then: a fenced group may have
// answered out of what it could not store.
type relay struct {
	fence *fence
	logs  raft.LogStore // set before run
	from  <-chan raft.RPC
	to    chan raft.RPC
}

func newRelay(f *fence, from <-chan raft.RPC) *relay {
	return &relay{fence: f, from: from, to: make(chan raft.RPC)}
}

func (r *relay) run(ctx context.Context) {
	answers := make(chan raft.RPCResponse, 1)
	for {
		select {
		case rpc := <-r.from:
			r.pass(ctx, rpc, answers)
		case <-ctx.Done():
			return
		}
	}
}

// pass has Raft answer one request. Whoever sent it gets an answer in any case, or waits for nothing.
func (r *relay) pass(ctx context.Context, rpc raft.RPC, answers chan raft.RPCResponse) {
	if err := r.fence.silent(); err != nil {
		rpc.Respond(nil, err)
		return
	}
	inner := rpc
	inner.RespChan = answers
	if req, ok := rpc.Command.(*raft.AppendEntriesRequest); ok {
		inner.Command = r.begin(req)
	}
	select {
	case r.to <- inner:
	case <-r.fence.failed: // Raft takes nothing any more
		rpc.Respond(nil, errFenced)
		return
	case <-ctx.Done():
		rpc.Respond(nil, raft.ErrRaftShutdown)
		return
	}
	select {
	case a := <-answers:
		if err := r.fence.silent(); err != nil {
			a = raft.RPCResponse{Error: err}
		}
		rpc.RespChan <- a
	case <-ctx.Done():
		rpc.Respond(nil, raft.ErrRaftShutdown)
	}
}

// begin has a request begin where the log does, if it begins below. All that was there has committed, so every leader of
// this replica's term, or of a later one, has the same. But Raft would refuse the request, and have a leader go back that
// heard where this replica ended before it was reset: entry by entry, and in the end offer for ever a snapshot
// that is not needed.
func (r *relay) begin(req *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	if req.PrevLogEntry == 0 && len(req.Entries) == 0 {
		return req // a heartbeat
	}
	first, err := r.logs.FirstIndex()
	if err != nil || first < 2 || req.PrevLogEntry >= first-1 {
		return req
	}
	var base raft.Log // a stub
	if err := r.logs.GetLog(first-1, &base); err != nil || base.Term == 0 {
		return req
	}
	known := first - 1 - req.PrevLogEntry
	short := *req
	short.PrevLogEntry, short.PrevLogTerm, short.Entries = base.Index, base.Term, nil
	if n := uint64(len(req.Entries)); known <= n {
		if last := req.Entries[known-1]; last.Index != base.Index || last.Term != base.Term {
			return req // for Raft to refuse
		}
		short.Entries = req.Entries[known:]
	}
	return &short
}
