package consumer

import (
	"context"
	"errors"
	"io"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// link fetches from one broker, over one stream at a time.
//
// What the broker may still send (credit) and what was received and not
// returned yet (held) never exceed share together, but for one batch.
type link struct {
	c      *Consumer
	broker int32
	wake   chan struct{}

	// These are guarded by Consumer.mu.
	parts  map[TopicPartition]*part
	adds   map[*part]bool
	drops  map[TopicPartition]bool
	share  int64
	credit int64
	held   int64
	grant  int64 // to be told with the next request
	stream *stream
}

type stream struct {
	link   *link
	call   tidemarkv1.Log_FetchClient
	cancel context.CancelFunc
	failed bool // guarded by Consumer.mu
}

func (c *Consumer) linkLocked(broker int32) *link {
	l := c.links[broker]
	if l == nil {
		l = &link{
			c: c, broker: broker, wake: make(chan struct{}, 1),
			parts: make(map[TopicPartition]*part), adds: make(map[*part]bool), drops: make(map[TopicPartition]bool),
			share: max(c.cfg.prefetchBytes/int64(c.client.Brokers()), 1),
		}
		c.links[broker] = l
		c.group.Go("fetch", l.run)
	}
	return l
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// add puts a partition on the stream, under a new session, so that responses
// from before are told apart.
func (l *link) addLocked(t *part) {
	l.c.session++
	t.link, t.session = l, l.c.session
	l.parts[t.TopicPartition] = t
	l.adds[t] = true
	delete(l.drops, t.TopicPartition)
	l.poke()
}

func (l *link) removeLocked(t *part) {
	delete(l.parts, t.TopicPartition)
	if l.adds[t] {
		delete(l.adds, t)
	}
	l.drops[t.TopicPartition] = true
	t.link, t.session = nil, 0
	l.poke()
}

// consumed gives back the credit of n bytes that were returned or dropped.
func (l *link) consumedLocked(n int64) {
	l.held -= n
	l.topUpLocked()
}

// topUp grants what is free, in larger pieces: a request per batch would be waste.
func (l *link) topUpLocked() {
	free := l.share - l.held - l.credit - l.grant
	if free >= max(l.share/4, 1) || free > 0 && l.credit+l.grant <= 0 {
		l.grant += free
		l.poke()
	}
}

func (l *link) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		l.talk(ctx)
	}
}

// talk tells the broker what changed, opening a stream if need be.
func (l *link) talk(ctx context.Context) {
	s, err := l.open(ctx)
	if err != nil {
		l.c.mu.Lock()
		l.lostLocked(err)
		l.c.mu.Unlock()
		return
	}
	if s == nil {
		return
	}
	l.c.mu.Lock()
	req := l.requestLocked()
	if s.failed || req == nil {
		l.c.mu.Unlock()
		return
	}
	l.c.mu.Unlock()
	if err := s.call.Send(req); err != nil && !errors.Is(err, io.EOF) {
		s.fail(ctx, err) // with EOF the receiver learns why
	}
}

// open returns the stream; nil when there is nothing to fetch.
func (l *link) open(ctx context.Context) (*stream, error) {
	l.c.mu.Lock()
	s, idle := l.stream, len(l.parts) == 0
	l.c.mu.Unlock()
	if s != nil || idle {
		return s, nil
	}
	conn, err := l.c.client.Broker(l.broker)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(ctx)
	call, err := tidemarkv1.NewLogClient(conn).Fetch(life)
	if err != nil {
		cancel()
		l.c.client.Nudge(l.broker)
		return nil, client.FromCall(ctx, err, false)
	}
	s = &stream{link: l, call: call, cancel: cancel}
	l.c.mu.Lock()
	l.stream = s
	l.credit, l.grant = 0, 0
	l.topUpLocked()
	clear(l.drops)
	for _, t := range l.parts {
		l.adds[t] = true
	}
	l.c.mu.Unlock()
	if !l.c.group.Go("receive", s.receive) {
		cancel()
		return nil, ErrClosed
	}
	// The first request carries the settings, before any partition is added.
	if err := call.Send(l.settings()); err != nil && !errors.Is(err, io.EOF) {
		return nil, client.FromCall(ctx, err, false)
	}
	return s, nil
}

func (l *link) settings() *tidemarkv1.FetchRequest {
	cfg := &l.c.cfg
	return &tidemarkv1.FetchRequest{
		MaxWaitMs: uint32(cfg.maxWait.Milliseconds()), MinBytes: uint32(cfg.minBytes), MaxPartitionBytes: uint32(cfg.maxPartitionBytes),
		Consistency: tidemarkv1.Consistency(cfg.consistency), MaxStalenessMs: uint32(cfg.maxStaleness.Milliseconds()),
	}
}

// request gathers what the broker was not told yet, or nil.
func (l *link) requestLocked() *tidemarkv1.FetchRequest {
	if len(l.adds) == 0 && len(l.drops) == 0 && l.grant == 0 {
		return nil
	}
	req := &tidemarkv1.FetchRequest{CreditBytes: l.grant}
	l.credit += l.grant
	l.grant = 0
	for tp := range l.drops {
		req.Remove = append(req.Remove, &tidemarkv1.TopicPartition{Topic: tp.Topic, Partition: tp.Partition})
	}
	for t := range l.adds {
		add := &tidemarkv1.FetchPartition{Topic: t.Topic, Partition: t.Partition, Offset: int64(t.fetchAt), Session: t.session}
		if t.fetchEpoch >= 0 {
			e := int32(t.fetchEpoch)
			add.LeaderEpoch = &e
		}
		add.NotBefore = l.c.notBeforeLocked(t)
		req.Add = append(req.Add, add)
	}
	clear(l.drops)
	clear(l.adds)
	return req
}

func (s *stream) receive(ctx context.Context) {
	defer s.cancel()
	for {
		res, err := s.call.Recv()
		if err != nil {
			s.fail(ctx, err)
			return
		}
		batches, err := check(res)
		s.link.c.received(s, res, batches, err)
	}
}

// check verifies every batch, outside the lock.
func check(res *tidemarkv1.FetchResponse) ([]record.Raw, error) {
	batches := make([]record.Raw, 0, len(res.GetBatches()))
	for _, b := range res.GetBatches() {
		raw, err := record.Check(b)
		if err != nil {
			return nil, err
		}
		batches = append(batches, raw)
	}
	return batches, nil
}

// fail ends the stream. Its partitions look for their leader again and go on
// where the buffer ends.
func (s *stream) fail(ctx context.Context, cause error) {
	s.cancel()
	c := s.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.failed {
		return
	}
	s.failed = true
	if s.link.stream == s {
		s.link.stream = nil
	}
	if ctx.Err() != nil {
		return
	}
	c.cfg.client.Logger.Info("fetch stream lost", "broker", s.link.broker, "err", cause)
	s.link.lostLocked(client.FromCall(ctx, cause, false))
}

// lost takes all partitions off the link; they come back after a pause.
func (l *link) lostLocked(err error) {
	clear(l.adds)
	clear(l.drops)
	l.credit, l.grant = 0, 0
	for tp, t := range l.parts {
		delete(l.parts, tp)
		t.link, t.session = nil, 0
		l.c.delayLocked(t)
	}
	l.c.refresh.Trigger()
	l.c.lastErr = err
}
