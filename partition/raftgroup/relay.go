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
