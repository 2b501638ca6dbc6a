package simnet

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/run"
)

// maxServed is how many calls a host serves at once; more are refused.
const maxServed = 256

// Handler serves calls. ctx ends with the host.
type Handler func(ctx context.Context, from string, request any) (any, error)

// Host is a machine with one process: a broker or a client. It is safe for concurrent use.
type Host struct {
	net  *Net
	name string

	// Guarded by the net's lock.
	life   *life
	paused bool
	held   []func() // messages that wait for Resume
}

// life is one process of a host.
type life struct {
	runs *run.Group // owns what serves calls

	// Guarded by the net's lock.
	dead      bool
	endpoints map[key]*Endpoint
	handler   Handler
	serving   int
}

// key names an endpoint. Addresses are unique within a group.
type key struct {
	group string
	addr  raft.ServerAddress
}

func (n *Net) newLifeLocked(host string) *life {
	l := &life{runs: run.Owned("simnet " + host), endpoints: map[key]*Endpoint{}}
	n.owners = append(n.owners, l.runs)
	return l
}

// Name is what the net calls the host.
func (h *Host) Name() string { return h.name }

// Crash ends the host's process: its endpoints are dead for ever, what waits for it is lost, and a new process may
// begin at once. The goroutines of the old one that are not the network's are somebody else's to stop.
func (h *Host) Crash() {
	n := h.net
	n.mu.Lock()
	old := h.life
	old.dead = true
	h.life = n.newLifeLocked(h.name)
	h.held, h.paused = nil, false
	for _, e := range old.endpoints {
		e.runs.Cancel()
	}
	n.mu.Unlock()
	old.runs.Cancel()
}

// Pause keeps all messages from and to the host until Resume, as a stopped process would. The
// goroutines of the host run on.
func (h *Host) Pause() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.paused = true
}

// Resume lets the messages go, in their order.
func (h *Host) Resume() {
	h.net.mu.Lock()
	held := h.held
	h.held, h.paused = nil, false
	h.net.mu.Unlock()
	for _, let := range held {
		let()
	}
}

// Serve has calls to the host answered by f, until it crashes. A call that was duplicated is served twice.
func (h *Host) Serve(f Handler) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.life.handler = f
}

// Call sends request from this host to another and waits for its answer, without a deadline in ctx ten times
// Config.Timeout. ErrRefused is certain; ErrNoAnswer leaves open whether, and how often, the
// request was served. Any other error is the handler's. See Cloner for what may be sent.
func (h *Host) Call(ctx context.Context, to string, request any) (any, error) {
	n := h.net
	n.mu.Lock()
	mine := h.life
	n.mu.Unlock()
	n.Host(to)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 10*n.cfg.Timeout)
		defer cancel()
	}
	answers := make(chan answer, 1)
	n.launch(&Message{From: h.name, To: to, Body: copyOf(request), life: mine}, n.serve, answers)
	select {
	case a := <-answers:
		return a.body, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: call from %s to %s: %w", ErrNoAnswer, h.name, to, ctx.Err())
	case <-mine.runs.Context().Done():
		return nil, fmt.Errorf("%w: %s has ended", ErrNoAnswer, h.name)
	}
}

// serve has a call served by its host.
func (n *Net) serve(m *Message) {
	n.mu.Lock()
	l := n.hosts[m.To].life
	f := l.handler
	full := l.serving >= maxServed
	if f != nil && !full {
		l.serving++
	}
	n.mu.Unlock()
	if f == nil || full {
		n.refuse(m)
		return
	}
	l.runs.Go("serve", func(ctx context.Context) {
		body, err := f(ctx, m.From, m.Body)
		n.mu.Lock()
		l.serving--
		n.mu.Unlock()
		n.reply(l, m, body, err)
	})
}
