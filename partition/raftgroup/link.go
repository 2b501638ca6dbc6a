package raftgroup

import (
	"context"
	"io"

	"github.com/hashicorp/raft"
)

// Link is one group's transport between brokers: what raft.Transport asks for, and what
// hashicorp/raft does not know that it needs. One group uses it, from Start to Stop; the
// connections below are shared and outlive it.
//
// An implementation keeps these rules (the regression tests name their sources):
//   - SetHeartbeatHandler runs no handler (hashicorp/raft #695).
//   - A commit index that leaves is never above PrevLogEntry + len(Entries) of its request: a follower
//     commits up to the lesser of it and its own last index, which may be that of a divergent tail.
//   - Every request has a deadline. A pipeline is bounded, and closed by the first request that
//     failed or was refused, so that Raft probes again (#612).
//   - InstallSnapshot is answered by the Interceptor and never reaches Raft.
type Link interface {
	raft.Transport
	raft.WithPreVote
	Injector

	// Intercept has InstallSnapshot requests of peers answered by i; nil has them refused.
	Intercept(i Interceptor)
	// OnMatch has tell called, from any goroutine, each time a follower has answered that it holds all
	// entries through index, durably, under the leader's term. tell has returned before Raft sees the answer: else
	// a new leader serves before it knows that anybody is in sync, and its first appends fail with NOT_ENOUGH_REPLICAS.
	// tell must not block.
	OnMatch(tell func(term uint64, follower raft.ServerID, index uint64))
	// Confirm asks the other voters, by a request that leaves after the call, whether their term is still term.
	// It returns nil as soon as a majority of voters, this replica included, says so, and an
	// error when that cannot happen any more or ctx ends. VerifyLeader is no
	// substitute: it counts answers to requests that were sent before it.
	Confirm(ctx context.Context, term uint64, voters []raft.ServerID) error
	// AnswerTerm gives what a peer's Confirm is answered with: the group's term, or false where
	// the group is fenced or muted and must answer nothing. What an Interceptor answers goes out all the same: a
	// replica that was reset is fenced by then, and its leader waits.
	AnswerTerm(term func() (uint64, bool))
}

// Interceptor answers InstallSnapshot in Raft's place: a data group must never lose what it retains
// to a snapshot that holds none of it, and Raft's own installation wedges a follower
// whose log conflicts (hashicorp/raft #697).
type Interceptor interface {
	// InstallSnapshot resets the replica to the snapshot, or finds that it need not and changes nothing. It returns
	// when the outcome is durable. Success is answered in both cases, for a request of the replica's own term. One of a
	// lower term is refused for good; one of a higher term until Raft has adopted the term through a
	// heartbeat, durably, which is not for the Interceptor to do. The replica's owner restarts the group after
	// a reset. state is at most req.Size bytes and is read before the call returns.
	InstallSnapshot(req *raft.InstallSnapshotRequest, state io.Reader) (*raft.InstallSnapshotResponse, error)
}
