package simnet

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Message is a request or an answer on its way. It belongs to the network and to nobody else, so that
// who intercepts it may change Body.
type Message struct {
	From, To string // hosts
	Answer   bool
	// Of a group; empty for calls.
	Group          string
	Source, Target raft.ServerAddress
	// Body is a pointer to Raft's request or response, a *Confirm, or what a caller sent
	// or was answered. It is nil where Err is not.
	Body any
	// Asked is the body of the request that an answer answers. It must not be changed.
	Asked any
	// State is the snapshot behind an InstallSnapshotRequest.
	State []byte
	// Err is why a request has no answer.
	Err error

	life   *life   // of the process that sends it
	flight *flight // of a request and its answers
}

// Confirm is the question of raftgroup.Link's Confirm, and with the term filled in its answer.
type Confirm struct{ Nonce, Term uint64 }

// Cloner is a request or answer of Host.Call that must be copied for each delivery. Others
// arrive as they were sent, and must not be changed by anybody.
type Cloner interface{ Clone() any }

// Fate is what becomes of a message that was intercepted. The zero Fate lets it go.
type Fate struct {
	Drop   bool
	Gate   *Gate         // keeps the message until it opens
	Copies int           // arrive in addition; not for answers
	Delay  time.Duration // more than the path's; later messages may overtake
}

// Gate keeps messages until it opens. The zero Gate is shut.
type Gate struct {
	mu   sync.Mutex
	open bool     // guarded by mu
	held []func() // guarded by mu
}

func (g *Gate) hold(let func()) {
	g.mu.Lock()
	if !g.open {
		g.held = append(g.held, let)
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	let()
}

// Held is how many messages wait.
func (g *Gate) Held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.held)
}

// Open lets all messages go, in their order; later ones pass.
func (g *Gate) Open() {
	g.mu.Lock()
	held := g.held
	g.held, g.open = nil, true
	g.mu.Unlock()
	for _, let := range held {
		let()
	}
}

func (m *Message) clone() *Message {
	c := *m
	c.Body = copyOf(m.Body)
	c.State = slices.Clone(m.State)
	return &c
}

// copyOf copies a body as a wire would: no memory is shared, an empty slice arrives as none,
// and times lose their monotonic part.
func copyOf(body any) any {
	switch b := body.(type) {
	case *raft.AppendEntriesRequest:
		c := *b
		//lint:ignore SA1019 Raft still fills it in and reads it
		c.RPCHeader, c.Leader, c.Entries = header(b.RPCHeader), octets(b.Leader), entries(b.Entries)
		return &c
	case *raft.AppendEntriesResponse:
		c := *b
		c.RPCHeader = header(b.RPCHeader)
		return &c
	case *raft.RequestVoteRequest:
		c := *b
		//lint:ignore SA1019 as above
		c.RPCHeader, c.Candidate = header(b.RPCHeader), octets(b.Candidate)
		return &c
	case *raft.RequestVoteResponse:
		c := *b
		c.RPCHeader, c.Peers = header(b.RPCHeader), octets(b.Peers)
		return &c
	case *raft.RequestPreVoteRequest:
		c := *b
		c.RPCHeader = header(b.RPCHeader)
		return &c
	case *raft.RequestPreVoteResponse:
		c := *b
		c.RPCHeader = header(b.RPCHeader)
		return &c
	case *raft.InstallSnapshotRequest:
		c := *b
		c.RPCHeader, c.Leader, c.Peers, c.Configuration = header(b.RPCHeader), octets(b.Leader), octets(b.Peers), octets(b.Configuration)
		return &c
	case *raft.InstallSnapshotResponse:
		c := *b
		c.RPCHeader = header(b.RPCHeader)
		return &c
	case *raft.TimeoutNowRequest:
		return &raft.TimeoutNowRequest{RPCHeader: header(b.RPCHeader)}
	case *raft.TimeoutNowResponse:
		return &raft.TimeoutNowResponse{RPCHeader: header(b.RPCHeader)}
	case *Confirm:
		c := *b
		return &c
	case Cloner:
		return b.Clone()
	default:
		return body
	}
}

func header(h raft.RPCHeader) raft.RPCHeader {
	h.ID, h.Addr = octets(h.ID), octets(h.Addr)
	return h
}

func octets(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return slices.Clone(b)
}

func entries(of []*raft.Log) []*raft.Log {
	if len(of) == 0 {
		return nil
	}
	out := make([]*raft.Log, len(of))
	for i, e := range of {
		c := *e
		c.Data, c.Extensions = octets(e.Data), octets(e.Extensions)
		if !e.AppendedAt.IsZero() {
			c.AppendedAt = time.Unix(0, e.AppendedAt.UnixNano())
		}
		out[i] = &c
	}
	return out
}

// fill copies an answer's body into Raft's own response.
func fill(into, from any) error {
	switch to := into.(type) {
	case *raft.AppendEntriesResponse:
		return assign(to, from)
	case *raft.RequestVoteResponse:
		return assign(to, from)
	case *raft.RequestPreVoteResponse:
		return assign(to, from)
	case *raft.InstallSnapshotResponse:
		return assign(to, from)
	case *raft.TimeoutNowResponse:
		return assign(to, from)
	case *Confirm:
		return assign(to, from)
	}
	return fmt.Errorf("simnet: no place for an answer of type %T", into)
}

func assign[T any](to *T, from any) error {
	f, ok := from.(*T)
	if !ok {
		return fmt.Errorf("simnet: answered with %T, want %T", from, to)
	}
	*to = *f
	return nil
}
