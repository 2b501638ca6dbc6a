package raftgroup

import (
	"io"

	"github.com/hashicorp/raft"
)

// fencedTransport is the Transport that Raft sees. It never has a Close, so that one group's
// shutdown cannot close a transport that all groups share, and it never runs a heartbeat
// handler (see Loopback.SetHeartbeatHandler), whatever the transport below does. While the group must be
// silent it sends no request, and relay gives no answer.
type fencedTransport struct {
	raft.Transport
	fence     *fence
	relay     *relay
	office    *office
	snapshots raft.SnapshotStore
}

func (t fencedTransport) Consumer() <-chan raft.RPC { return t.relay.to }

func (t fencedTransport) SetHeartbeatHandler(func(raft.RPC)) {}

func (t fencedTransport) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := t.office.check(t.fence, req); err != nil {
		return err
	}
	switch at := stub(req.Entries); {
	case at == 0:
		return t.offer(id, to, req, resp)
	case at > 0:
		req.Entries = req.Entries[:at]
	}
	return t.Transport.AppendEntries(id, to, req, resp)
}

func (t fencedTransport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := t.fence.silent(); err != nil {
		return nil, err
	}
	p, err := t.Transport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	return fencedPipeline{p, t.fence, t.office}, nil
}

func (t fencedTransport) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.fence.silent(); err != nil {
		return err
	}
	return t.Transport.RequestVote(id, to, req, resp)
}

func (t fencedTransport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := t.fence.silent(); err != nil {
		return err
	}
	return t.Transport.InstallSnapshot(id, to, req, resp, data)
}

func (t fencedTransport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if err := t.fence.silent(); err != nil {
		return err
	}
	return t.Transport.TimeoutNow(id, to, req, resp)
}

// preVoter is a fencedTransport whose transport speaks pre-vote.
type preVoter struct{ fencedTransport }

func (t preVoter) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.fence.silent(); err != nil {
		return err
	}
	return t.Transport.(raft.WithPreVote).RequestPreVote(id, to, req, resp)
}

type fencedPipeline struct {
	raft.AppendPipeline
	fence  *fence
	office *office
}

func (p fencedPipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.office.check(p.fence, req); err != nil {
		return nil, err
	}
	if stub(req.Entries) >= 0 {
		return nil, errStub // Raft goes back to single requests
	}
	return p.AppendPipeline.AppendEntries(req, resp)
}
