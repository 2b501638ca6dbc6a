package simnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

const (
	// inboxRequests is how many requests wait for Raft; more are lost.
	inboxRequests = 256
	// snapshotBytes bounds a snapshot's state.
	snapshotBytes = 64 << 20
)

var errEnded = errors.New("simnet: the endpoint has ended")

var _ raftgroup.Link = (*Endpoint)(nil)

// Endpoint is one group's transport at one host. It has no Close, so that the shutdown of a
// group cannot end it.
type Endpoint struct {
	net  *Net
	host *Host
	life *life
	key  key
	runs *run.Group // owns serve, install, fast and the pipelines

	inbox     chan request
	rpcs      chan raft.RPC // what Raft consumes
	snapshots chan *Message
	beats     chan *Message // of the fast path, which is a trap

	mu          sync.Mutex
	interceptor raftgroup.Interceptor               // guarded by mu
	tell        func(uint64, raft.ServerID, uint64) // guarded by mu
	term        func() (uint64, bool)               // guarded by mu
	heartbeat   func(raft.RPC)                      // guarded by mu; a trap
}

// request is what waits for Raft: a message, or an RPC that was injected.
type request struct {
	message *Message
	rpc     raft.RPC
}

// Endpoint makes the transport of a group's replica at this host. It takes the place of an earlier one of
// the same name, which ends.
func (h *Host) Endpoint(group string, addr raft.ServerAddress) *Endpoint {
	n := h.net
	e := &Endpoint{
		net: n, host: h, key: key{group, addr}, runs: run.Owned(fmt.Sprintf("simnet %s %s", h.name, group)),
		inbox: make(chan request, inboxRequests), rpcs: make(chan raft.RPC), snapshots: make(chan *Message, 1), beats: make(chan *Message, 16),
	}
	n.mu.Lock()
	e.life = h.life
	old := e.life.endpoints[e.key]
	e.life.endpoints[e.key] = e
	n.where[e.key] = h.name
	n.owners = append(n.owners, e.runs)
	n.mu.Unlock()
	if old != nil {
		old.runs.Cancel()
	}
	e.runs.Go("serve", e.serve)
	e.runs.Go("install", e.install)
	if n.cfg.Traps.FastHeartbeat {
		e.runs.Go("fast", e.fast)
	}
	return e
}

// Stop ends the endpoint: requests to it are refused.
func (e *Endpoint) Stop() {
	e.net.mu.Lock()
	if e.life.endpoints[e.key] == e {
		delete(e.life.endpoints, e.key)
	}
	e.net.mu.Unlock()
	e.runs.Stop()
}

// Consumer implements raft.Transport.
func (e *Endpoint) Consumer() <-chan raft.RPC { return e.rpcs }

// LocalAddr implements raft.Transport.
func (e *Endpoint) LocalAddr() raft.ServerAddress { return e.key.addr }

// EncodePeer implements raft.Transport: an address is an opaque name.
func (e *Endpoint) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer implements raft.Transport.
func (e *Endpoint) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler runs no handler, unless that is the trap. See raftgroup.Loopback.
func (e *Endpoint) SetHeartbeatHandler(f func(raft.RPC)) {
	if e.net.cfg.Traps.FastHeartbeat {
		e.mu.Lock()
		e.heartbeat = f
		e.mu.Unlock()
	}
}

// Intercept implements raftgroup.Link.
func (e *Endpoint) Intercept(i raftgroup.Interceptor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.interceptor = i
}

// OnMatch implements raftgroup.Link.
func (e *Endpoint) OnMatch(tell func(term uint64, follower raft.ServerID, index uint64)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tell = tell
}

// AnswerTerm implements raftgroup.Link. While term says false, nothing at all is answered. It must not block.
func (e *Endpoint) AnswerTerm(term func() (uint64, bool)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.term = term
}

// Inject implements raftgroup.Injector.
func (e *Endpoint) Inject(rpc raft.RPC) bool {
	select {
	case e.inbox <- request{rpc: rpc}:
		return true
	default:
		return false
	}
}

// AppendEntries implements raft.Transport. args may come back with fewer entries: those that were sent.
func (e *Endpoint) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	req, _ := e.outgoing(args)
	if err := e.ask(to, req, nil, resp, e.net.cfg.Timeout); err != nil {
		return err
	}
	e.matched(id, req, resp)
	return nil
}

// outgoing makes the request that leaves. Raft's own is cut to the byte budget before Raft looks at
// it again: it takes what stands there for sent, and then for matched. The commit
// index is no more than what the request shows to agree: a follower goes by its own last index.
func (e *Endpoint) outgoing(args *raft.AppendEntriesRequest) (req *raft.AppendEntriesRequest, size int) {
	for i, entry := range args.Entries {
		size += len(entry.Data) + len(entry.Extensions)
		if i > 0 && size > e.net.cfg.RequestBytes {
			size -= len(entry.Data) + len(entry.Extensions)
			args.Entries = args.Entries[:i]
			break
		}
	}
	req = copyOf(args).(*raft.AppendEntriesRequest)
	if !e.net.cfg.Traps.LooseCommit {
		req.LeaderCommitIndex = min(req.LeaderCommitIndex, req.PrevLogEntry+uint64(len(req.Entries)))
	}
	return req, size
}

// matched tells what a successful answer proves.
func (e *Endpoint) matched(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	index := req.PrevLogEntry + uint64(len(req.Entries))
	if !resp.Success || resp.Term != req.Term || index == 0 {
		return
	}
	e.mu.Lock()
	tell := e.tell
	e.mu.Unlock()
	if tell != nil {
		tell(req.Term, id, index)
	}
}

// RequestVote implements raft.Transport.
func (e *Endpoint) RequestVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return e.ask(to, args, nil, resp, e.net.cfg.Timeout)
}

// RequestPreVote implements raft.WithPreVote.
func (e *Endpoint) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return e.ask(to, args, nil, resp, e.net.cfg.Timeout)
}

// TimeoutNow implements raft.Transport.
func (e *Endpoint) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return e.ask(to, args, nil, resp, e.net.cfg.Timeout)
}

// InstallSnapshot implements raft.Transport.
func (e *Endpoint) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if args.Size < 0 || args.Size > snapshotBytes {
		return fmt.Errorf("simnet: snapshot of %d bytes, at most %d are sent", args.Size, snapshotBytes)
	}
	state := make([]byte, args.Size)
	if _, err := io.ReadFull(data, state); err != nil {
		return fmt.Errorf("simnet: read the snapshot to send: %w", err)
	}
	return e.ask(to, args, state, resp, 10*e.net.cfg.Timeout)
}

// ask sends a request and waits for its answer.
func (e *Endpoint) ask(to raft.ServerAddress, body any, state []byte, resp any, wait time.Duration) error {
	answers := make(chan answer, 1)
	if err := e.launch(to, body, state, answers); err != nil {
		return err
	}
	late := time.NewTimer(wait)
	defer late.Stop()
	select {
	case a := <-answers:
		if a.err != nil {
			return a.err
		}
		return fill(resp, a.body)
	case <-late.C:
		return fmt.Errorf("%w: %T from %s to %s within %v", ErrNoAnswer, body, e.key.addr, to, wait)
	case <-e.runs.Context().Done():
		return errEnded
	}
}

// launch sends a copy of a request.
func (e *Endpoint) launch(to raft.ServerAddress, body any, state []byte, answers chan<- answer) error {
	if e.runs.Context().Err() != nil {
		return errEnded
	}
	n := e.net
	n.mu.Lock()
	host, ok := n.where[key{e.key.group, to}]
	n.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: group %q has no replica %s anywhere", ErrRefused, e.key.group, to)
	}
	n.launch(&Message{
		From: e.host.name, To: host, Group: e.key.group, Source: e.key.addr, Target: to, Body: copyOf(body), State: state, life: e.life,
	}, n.accept, answers)
	return nil
}

// accept gives a request that has arrived to its endpoint.
func (n *Net) accept(m *Message) {
	n.mu.Lock()
	e := n.hosts[m.To].life.endpoints[key{m.Group, m.Target}]
	n.mu.Unlock()
	if e == nil {
		n.refuse(m)
		return
	}
	took := false
	switch b := m.Body.(type) {
	case *Confirm:
		e.confirmed(m, b)
		return
	case *raft.InstallSnapshotRequest:
		if n.cfg.Traps.PlainSnapshot {
			took = offer(e.inbox, request{message: m})
		} else {
			took = offer(e.snapshots, m)
		}
	case *raft.AppendEntriesRequest:
		if beat(b) && e.beatHandler() != nil {
			took = offer(e.beats, m)
		} else {
			took = offer(e.inbox, request{message: m})
		}
	default:
		took = offer(e.inbox, request{message: m})
	}
	if !took {
		n.mu.Lock()
		n.stats.Lost++
		n.mu.Unlock()
	}
}

func offer[T any](to chan<- T, x T) bool {
	select {
	case to <- x:
		return true
	default:
		return false
	}
}

// serve hands Raft one request after the other.
func (e *Endpoint) serve(ctx context.Context) {
	for {
		var next request
		select {
		case next = <-e.inbox:
		case <-ctx.Done():
			return
		}
		answers := make(chan raft.RPCResponse, 1)
		rpc := next.rpc
		if m := next.message; m != nil {
			rpc = raft.RPC{Command: m.Body, RespChan: answers}
			if m.State != nil {
				rpc.Reader = bytes.NewReader(m.State)
			}
		}
		select {
		case e.rpcs <- rpc:
		case <-ctx.Done():
			return
		}
		if next.message == nil {
			continue
		}
		select {
		case a := <-answers:
			e.answer(next.message, a.Response, a.Error)
		case <-ctx.Done():
			return
		}
	}
}

// answer sends an answer, unless the group must answer nothing.
func (e *Endpoint) answer(to *Message, body any, err error) {
	if _, ok := e.answerable(); ok {
		e.net.reply(e.life, to, body, err)
	}
}

func (e *Endpoint) answerable() (term uint64, ok bool) {
	e.mu.Lock()
	f := e.term
	e.mu.Unlock()
	if f != nil {
		term, ok = f()
	} else {
		ok = true
	}
	return term, ok && e.runs.Context().Err() == nil
}

// install has snapshots answered by the interceptor, one at a time; a second one waits, more are lost.
func (e *Endpoint) install(ctx context.Context) {
	for {
		select {
		case m := <-e.snapshots:
			e.mu.Lock()
			i := e.interceptor
			e.mu.Unlock()
			if i == nil {
				e.answer(m, nil, errors.New("simnet: nobody intercepts snapshots here; this one was not installed"))
				continue
			}
			resp, err := i.InstallSnapshot(m.Body.(*raft.InstallSnapshotRequest), bytes.NewReader(m.State))
			if err != nil {
				e.answer(m, nil, err)
				continue
			}
			e.net.reply(e.life, m, resp, nil) // a replica that was reset says so although it is silent by now
		case <-ctx.Done():
			return
		}
	}
}

// beat tells whether a request is what hashicorp/raft's network transport takes for a heartbeat.
func beat(r *raft.AppendEntriesRequest) bool {
	return r.Term != 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}

func (e *Endpoint) beatHandler() func(raft.RPC) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heartbeat
}

// fast runs Raft's heartbeat handler beside Raft's main loop, as hashicorp/raft's transport does.
func (e *Endpoint) fast(ctx context.Context) {
	for {
		select {
		case m := <-e.beats:
			answers := make(chan raft.RPCResponse, 1)
			e.beatHandler()(raft.RPC{Command: m.Body, RespChan: answers})
			select {
			case a := <-answers:
				e.answer(m, a.Response, a.Error)
			case <-ctx.Done(): // a Raft that shuts down answers nothing
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
