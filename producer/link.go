package producer

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// link sends batches to one broker, over one stream at a time.
type link struct {
	p      *Producer
	broker int32
	wake   chan struct{}

	ready  []*part // guarded by Producer.mu; partitions to look at
	stream *stream // guarded by Producer.mu; nil when there is none
}

// stream is one Produce call. One goroutine sends, another receives and never
// waits for the sender, so flow control cannot lock the two up.
type stream struct {
	link   *link
	call   tidemarkv1.Log_ProduceClient
	cancel context.CancelFunc

	// These are guarded by Producer.mu.
	failed      bool
	correlation uint64
	unanswered  []sent // in the order in which they were sent
	bytes       int64  // of unanswered
	window      int64  // how many bytes may be unanswered
}

type sent struct {
	batch       *batch
	correlation uint64
	bytes       int64
	at          clock.Mono
}

// windowUntilTold is how much is sent before the broker says what it takes.
const windowUntilTold = 1 << 20

// linkLocked returns the link to the leader of t, or nil when none is known.
// A partition with batches in flight stays where it is: what is sent
// elsewhere could overtake them.
func (p *Producer) linkLocked(t *part) *link {
	id, _ := p.client.LeaderOf(t.topic, t.number)
	if id < 0 {
		return nil
	}
	l := p.links[id]
	if l == nil {
		l = &link{p: p, broker: id, wake: make(chan struct{}, 1)}
		p.links[id] = l
		p.group.Go("send", l.run)
	}
	return l
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *link) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		for b := l.next(); b != nil; b = l.next() {
			l.send(ctx, b)
		}
	}
}

// next takes a batch from the ready partitions, in turn.
func (l *link) next() *batch {
	p := l.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := l.stream; s != nil && s.bytes >= s.window {
		return nil // an answer pokes us
	}
	for len(l.ready) > 0 {
		t := l.ready[0]
		l.ready[0] = nil
		l.ready = l.ready[1:]
		t.queued = false
		if now := p.linkLocked(t); now != l && t.inFlight == 0 {
			p.enqueueLocked(t)
			continue
		}
		if b := t.nextLocked(p); b != nil {
			p.enqueueLocked(t)
			return b
		}
	}
	return nil
}

func (l *link) send(ctx context.Context, b *batch) {
	if err := b.build(l.p.cfg.idempotent); err != nil {
		l.p.answered(b, nil, err)
		return
	}
	s, err := l.open(ctx)
	if err != nil {
		l.p.answered(b, nil, err)
		return
	}
	req := &tidemarkv1.ProduceRequest{
		Topic: b.part.topic, Partition: b.part.number, Batch: b.raw,
		Acks: tidemarkv1.Acks(l.p.cfg.acks), TimeoutMs: brokerTimeout(l.p.cfg.client.RequestTimeout),
	}
	if b.conditional {
		expect := int64(b.expect)
		req.ExpectOffset = &expect
	}
	if !l.register(s, b, req) {
		l.p.answered(b, nil, errs.New(errs.NetworkException, "the stream to the broker ended before the batch was sent"))
		return
	}
	if err := s.call.Send(req); err != nil && !errors.Is(err, io.EOF) {
		// The receiver learns why the stream ended where the error is EOF.
		s.fail(ctx, err)
	}
}

// brokerTimeout is how long the broker may try: less than we wait, so that its
// own account of the outcome reaches us.
func brokerTimeout(request time.Duration) uint32 { return uint32((request * 2 / 3).Milliseconds()) }

func (l *link) register(s *stream, b *batch, req *tidemarkv1.ProduceRequest) bool {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if s.failed {
		return false
	}
	s.correlation++
	req.Correlation = s.correlation
	n := int64(len(req.Batch))
	s.unanswered = append(s.unanswered, sent{b, s.correlation, n, clock.Monotonic()})
	s.bytes += n
	return true
}

// open returns the stream, and makes one where there is none.
func (l *link) open(ctx context.Context) (*stream, error) {
	l.p.mu.Lock()
	s := l.stream
	l.p.mu.Unlock()
	if s != nil {
		return s, nil
	}
	conn, err := l.p.client.Broker(l.broker)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(ctx)
	call, err := tidemarkv1.NewLogClient(conn).Produce(life)
	if err != nil {
		cancel()
		l.p.client.Nudge(l.broker)
		return nil, client.FromCall(ctx, err, false)
	}
	s = &stream{link: l, call: call, cancel: cancel, window: windowUntilTold}
	l.p.mu.Lock()
	l.stream = s
	l.p.mu.Unlock()
	if !l.p.group.Go("receive", s.receive) {
		s.fail(ctx, ErrClosed)
		return nil, ErrClosed
	}
	return s, nil
}

func (s *stream) receive(ctx context.Context) {
	defer s.cancel()
	for {
		res, err := s.call.Recv()
		if err != nil {
			s.fail(ctx, err)
			return
		}
		if err := s.answer(res); err != nil {
			s.fail(ctx, err)
			return
		}
	}
}

// answer gives a response to the batch at the head of the line.
func (s *stream) answer(res *tidemarkv1.ProduceResponse) error {
	p := s.link.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if res.GetCorrelation() == 0 {
		if err := client.FromProto(res.GetError()); err != nil {
			return err
		}
		s.window = max(res.GetWindowBytes(), 1)
		return nil
	}
	if len(s.unanswered) == 0 || s.unanswered[0].correlation != res.GetCorrelation() {
		return errs.Errorf(errs.UnknownServerError, "the broker answered request %d out of turn", res.GetCorrelation())
	}
	head := s.unanswered[0]
	s.unanswered[0] = sent{}
	s.unanswered = s.unanswered[1:]
	s.bytes -= head.bytes
	s.link.poke()
	p.answeredLocked(head.batch, res, client.FromProto(res.GetError()))
	return nil
}

// fail ends the stream. What it left unanswered may have been appended.
func (s *stream) fail(ctx context.Context, cause error) {
	p := s.link.p
	s.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.failed {
		return
	}
	s.failed = true
	if s.link.stream == s {
		s.link.stream = nil
	}
	left := s.unanswered
	s.unanswered, s.bytes = nil, 0
	if len(left) > 0 && ctx.Err() == nil {
		p.cfg.client.Logger.Info("produce stream lost", "broker", s.link.broker, "unanswered", len(left), "err", cause)
	}
	err := lost(ctx, cause)
	for _, u := range left {
		p.answeredLocked(u.batch, nil, err)
	}
	s.link.poke()
}

func lost(ctx context.Context, cause error) error {
	err := cause
	if errors.Is(cause, io.EOF) {
		err = errs.New(errs.NetworkException, "the broker ended the stream")
	} else if !errors.As(cause, new(*errs.Error)) {
		err = client.FromCall(ctx, cause, true)
	}
	return client.WithOutcome(err, "the connection was lost before the answer")
}

// build encodes the batch once, and stamps its number when that has changed.
func (b *batch) build(idempotent bool) error {
	if b.raw == nil {
		raw, err := b.builder.Build()
		if err != nil {
			return err
		}
		b.raw, b.builder = raw, nil
	}
	if idempotent && !b.stamped {
		b.raw.SetProducer(b.pid, b.epoch, b.seq)
		b.stamped = true
	}
	return nil
}
