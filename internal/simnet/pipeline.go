package simnet

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// pipeline sends AppendEntries requests to one follower without waiting for answers, and hands over the
// answers in the order of the requests.
//
// The first request that fails or is refused closes it, and Raft goes back to probing. A failure is not handed
// over: Raft takes whatever it is handed for a sign of life, and a leader
// without followers would keep its lease.
type pipeline struct {
	e  *Endpoint
	id raft.ServerID
	to raft.ServerAddress

	queue  chan *pending          // in the order of sending
	ready  chan raft.AppendFuture // what Raft consumes
	room   chan struct{}          // capacity 1: the window may have room
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	requests int // guarded by mu; under way
	bytes    int // guarded by mu; under way
}

// pending is a request under way. It is what Raft calls a future.
type pending struct {
	args  *raft.AppendEntriesRequest // Raft's
	sent  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse // Raft's; written before done is closed
	size  int
	start time.Time
	came  chan answer // capacity 1
	done  chan struct{}
	err   error // written before done is closed
}

// AppendEntriesPipeline implements raft.Transport.
func (e *Endpoint) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	window := e.net.cfg.WindowRequests
	if e.net.cfg.Traps.DeafPipeline {
		window = 0 // Raft's own transport: unbuffered channels
	}
	p := &pipeline{
		e: e, id: id, to: to, queue: make(chan *pending, window), ready: make(chan raft.AppendFuture, window),
		room: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	if !e.runs.Go("pipeline", p.run) {
		return nil, errEnded
	}
	return p, nil
}

// AppendEntries implements raft.AppendPipeline. It waits while the window is full.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	sent, size := p.e.outgoing(args)
	x := &pending{args: args, sent: sent, resp: resp, size: size, start: clock.Deadline(0), came: make(chan answer, 1), done: make(chan struct{})}
	for !p.enter(x) {
		select {
		case <-p.room:
		case <-p.closed:
		case <-p.e.runs.Context().Done():
			p.Close()
		}
		if p.isClosed() {
			return nil, raft.ErrPipelineShutdown
		}
	}
	if err := p.e.launch(p.to, sent, nil, x.came); err != nil {
		p.Close()
		return nil, err
	}
	select {
	case p.queue <- x:
		return x, nil
	case <-p.closed:
		return nil, raft.ErrPipelineShutdown
	case <-p.e.runs.Context().Done():
		return nil, errEnded
	}
}

// enter takes a request into the window; a request that is too large for it goes alone.
func (p *pipeline) enter(x *pending) bool {
	if p.isClosed() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests > 0 && (p.requests >= p.e.net.cfg.WindowRequests || p.bytes+x.size > p.e.net.cfg.WindowBytes) {
		return false
	}
	p.requests++
	p.bytes += x.size
	return true
}

func (p *pipeline) leave(x *pending) {
	p.mu.Lock()
	p.requests--
	p.bytes -= x.size
	p.mu.Unlock()
	offer(p.room, struct{}{})
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.ready }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipeline) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// run hands over answers until the first that failed or was refused.
func (p *pipeline) run(ctx context.Context) {
	defer p.Close()
	deaf := p.e.net.cfg.Traps.DeafPipeline
	for {
		var x *pending
		select {
		case x = <-p.queue:
		case <-p.closed:
			return
		case <-ctx.Done():
			return
		}
		if !p.await(ctx, x) && !deaf {
			return
		}
		p.leave(x)
		select {
		case p.ready <- x:
		case <-p.closed:
			return
		case <-ctx.Done():
			return
		}
		if (!x.resp.Success || x.resp.Term > x.sent.Term) && !deaf {
			return
		}
	}
}

// await waits for a request's answer, at most until its deadline, and tells whether there is one.
func (p *pipeline) await(ctx context.Context, x *pending) bool {
	defer close(x.done)
	var late <-chan time.Time
	if !p.e.net.cfg.Traps.DeafPipeline {
		t := time.NewTimer(p.e.net.cfg.Timeout - clock.Deadline(0).Sub(x.start))
		defer t.Stop()
		late = t.C
	}
	x.err = ErrNoAnswer
	select {
	case a := <-x.came:
		x.err = a.err
		if a.err == nil {
			x.err = fill(x.resp, a.body)
		}
	case <-late:
	case <-p.closed:
	case <-ctx.Done():
	}
	if x.err == nil {
		p.e.matched(p.id, x.sent, x.resp)
	}
	return x.err == nil
}

// Error implements raft.Future.
func (x *pending) Error() error {
	<-x.done
	return x.err
}

// Start implements raft.AppendFuture.
func (x *pending) Start() time.Time { return x.start }

// Request implements raft.AppendFuture.
func (x *pending) Request() *raft.AppendEntriesRequest { return x.args }

// Response implements raft.AppendFuture.
func (x *pending) Response() *raft.AppendEntriesResponse { return x.resp }
