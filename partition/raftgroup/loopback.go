package raftgroup

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// Loopback is the transport of a group of one: it reaches nobody. It has no
// Close, so that the shutdown of a group cannot close it.
type Loopback struct {
	addr     raft.ServerAddress
	requests chan raft.RPC
}

// NewLoopback returns a transport whose own address is addr.
func NewLoopback(addr raft.ServerAddress) *Loopback {
	return &Loopback{addr: addr, requests: make(chan raft.RPC, 4)}
}

// Inject gives Raft a request as if it had come from a peer. It never blocks;
// false means that Raft is busy with earlier ones.
func (t *Loopback) Inject(rpc raft.RPC) bool {
	select {
	case t.requests <- rpc:
		return true
	default:
		return false
	}
}

// Consumer implements raft.Transport.
func (t *Loopback) Consumer() <-chan raft.RPC { return t.requests }

// LocalAddr implements raft.Transport.
func (t *Loopback) LocalAddr() raft.ServerAddress { return t.addr }

// SetHeartbeatHandler runs no handler. Raft's fast path changes the term
// on the transport's goroutine, under the leader loop: an entry is then stamped
// with a term that its leader never won, and logs diverge (hashicorp/raft
// #695). A test holds every transport of ours to this.
func (t *Loopback) SetHeartbeatHandler(func(raft.RPC)) {}

// EncodePeer implements raft.Transport: an address is an opaque name.
func (t *Loopback) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer implements raft.Transport.
func (t *Loopback) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// AppendEntriesPipeline implements raft.Transport; there is no peer.
func (t *Loopback) AppendEntriesPipeline(_ raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, t.refuse(to)
}

// AppendEntries implements raft.Transport; there is no peer.
func (t *Loopback) AppendEntries(_ raft.ServerID, to raft.ServerAddress, _ *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) error {
	return t.refuse(to)
}

// RequestVote implements raft.Transport; there is no peer.
func (t *Loopback) RequestVote(_ raft.ServerID, to raft.ServerAddress, _ *raft.RequestVoteRequest, _ *raft.RequestVoteResponse) error {
	return t.refuse(to)
}

// RequestPreVote implements raft.WithPreVote; there is no peer.
func (t *Loopback) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, _ *raft.RequestPreVoteRequest, _ *raft.RequestPreVoteResponse) error {
	return t.refuse(to)
}

// InstallSnapshot implements raft.Transport; there is no peer.
func (t *Loopback) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, _ *raft.InstallSnapshotRequest, _ *raft.InstallSnapshotResponse, _ io.Reader) error {
	return t.refuse(to)
}

// TimeoutNow implements raft.Transport; there is no peer.
func (t *Loopback) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, _ *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	return t.refuse(to)
}

func (t *Loopback) refuse(to raft.ServerAddress) error {
	return fmt.Errorf("loopback transport of %s reaches no peer, asked for %s", t.addr, to)
}
