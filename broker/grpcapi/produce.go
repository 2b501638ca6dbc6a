package grpcapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Produce appends what comes and answers in order. The reader takes requests,
// waits for room in the window, and dispatches; this goroutine waits for the
// answers and sends them. The window and the queue between the two are what
// bounds the stream's memory: when either is full the reader stops reading, and
// the transport's flow control stops the client.
func (a *API) Produce(s grpc.BidiStreamingServer[pb.ProduceRequest, pb.ProduceResponse]) error {
	if err := s.Send(&pb.ProduceResponse{WindowBytes: int64(a.cfg.ProduceWindowBytes)}); err != nil {
		return err
	}
	p := &produceStream{api: a, stream: s, window: newWindow(a.cfg.ProduceWindowBytes), queue: make(chan *produceItem, a.cfg.ProduceWindowRequests)}
	// When this handler returns gRPC cancels the stream's context, which ends the reader.
	if !a.readers.Go("produce", func(context.Context) { p.read() }) {
		return errShuttingDown
	}
	return p.answer()
}

type produceStream struct {
	api    *API
	stream grpc.BidiStreamingServer[pb.ProduceRequest, pb.ProduceResponse]
	window *window
	queue  chan *produceItem
	err    error // why the reader ended; set before queue is closed
}

// produceItem is a request that waits for its answer.
type produceItem struct {
	correlation uint64
	topic       string
	partition   int32
	acks        partition.Acks
	bytes       int
	start       clock.Mono
	ctx         context.Context // of this request: ends at its deadline
	cancel      context.CancelFunc
	pending     Pending // nil: err says why
	err         error
}

// read never sends, and waits for nothing but the answers to earlier requests.
func (p *produceStream) read() {
	defer close(p.queue)
	defer func() {
		if v := recover(); v != nil {
			p.err = p.api.panicked("Produce", v)
		}
	}()
	ctx := p.stream.Context()
	for {
		var in produceIn
		if err := p.stream.RecvMsg(&in); err != nil {
			p.err = endOf(err)
			return
		}
		if in.err != nil {
			p.err = in.err
			return
		}
		if in.correlation == 0 {
			p.err = errs.Errorf(errs.InvalidRequest, "produce request with correlation 0: it must be above 0")
			return
		}
		if err := p.window.take(ctx, in.batchBytes); err != nil {
			p.err = err
			return
		}
		if p.api.isStopping() {
			p.err = errShuttingDown
			return
		}
		select {
		case p.queue <- p.dispatch(ctx, &in):
		case <-ctx.Done():
			p.err = ctx.Err()
			return
		}
	}
}

// endOf turns what ended the reading of a stream into what the call ends with.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// dispatch fixes the request's place in the order of its partition.
func (p *produceStream) dispatch(ctx context.Context, in *produceIn) *produceItem {
	item := &produceItem{correlation: in.correlation, topic: in.topic, partition: in.partition, bytes: in.batchBytes, start: clock.Monotonic()}
	timeout := p.api.produceTimeout(in.timeoutMs)
	item.ctx, item.cancel = context.WithTimeout(ctx, timeout)
	add, err := p.api.toAppend(in, timeout)
	if err != nil {
		item.err = err
		return item
	}
	item.acks = add.Acks
	item.pending, item.err = p.api.deps.Replicas.Produce(item.ctx, in.topic, in.partition, add)
	return item
}

func (a *API) produceTimeout(ms uint32) time.Duration {
	if ms == 0 {
		return a.cfg.ProduceTimeout
	}
	return min(time.Duration(ms)*time.Millisecond, a.cfg.MaxProduceTimeout)
}

func (a *API) toAppend(in *produceIn, timeout time.Duration) (partition.Append, error) {
	acks, err := toAcks(in.acks)
	if err != nil {
		return partition.Append{}, err
	}
	if in.batchBytes > a.cfg.MaxBatchBytes {
		return partition.Append{}, errs.Errorf(errs.MessageTooLarge, "batch of %d bytes is larger than this broker's limit of %d; send smaller batches", in.batchBytes, a.cfg.MaxBatchBytes)
	}
	if in.batchBytes == 0 {
		return partition.Append{}, errs.Errorf(errs.InvalidRecord, "produce request has no batch")
	}
	add := partition.Append{Batch: in.batch, Room: true, Acks: acks, Enqueue: timeout}
	if in.expect != nil {
		add.Conditional, add.Expect = true, record.Offset(*in.expect)
	}
	return add, nil
}

func toAcks(acks pb.Acks) (partition.Acks, error) {
	switch acks {
	case pb.Acks_ACKS_ALL:
		return partition.AcksAll, nil
	case pb.Acks_ACKS_NONE:
		return partition.AcksNone, nil
	case pb.Acks_ACKS_LEADER:
		return partition.AcksLeader, nil
	case pb.Acks_ACKS_QUORUM:
		return partition.AcksQuorum, nil
	}
	return 0, errs.Errorf(errs.InvalidRequiredAcks, "acks %d do not exist", int32(acks))
}

func fromAcks(acks partition.Acks) pb.Acks {
	switch acks {
	case partition.AcksNone:
		return pb.Acks_ACKS_NONE
	case partition.AcksLeader:
		return pb.Acks_ACKS_LEADER
	case partition.AcksQuorum:
		return pb.Acks_ACKS_QUORUM
	}
	return pb.Acks_ACKS_ALL
}

// answer ends when the reader has ended and everything dispatched is answered,
// or when the client is gone. A reader that waits for a client at the
// time of a shutdown is left behind: it ends when this function returns.
func (p *produceStream) answer() error {
	var stopping <-chan struct{} = p.api.stopping
	for {
		select {
		case item, ok := <-p.queue:
			if !ok {
				return p.err
			}
			if err := p.finish(item); err != nil {
				return err
			}
		case <-stopping:
			if p.window.idle() {
				return errShuttingDown
			}
			stopping = p.window.whenIdle()
		}
	}
}

func (p *produceStream) finish(item *produceItem) error {
	defer item.cancel()
	resp := &pb.ProduceResponse{Correlation: item.correlation, BaseOffset: -1, LogAppendTimeMs: -1, LogStartOffset: -1}
	if done, err := item.result(); err != nil {
		resp.Error = p.api.partitionError("Produce", item.topic, item.partition, err)
	} else {
		p.api.fillAppended(resp, item, done)
	}
	p.api.metrics.answered("Produce", resp.Error, since(item.start))
	if err := p.stream.Send(resp); err != nil {
		return err
	}
	p.window.give(item.bytes)
	return nil
}

// result waits for the answer of the replica. A deadline is an outcome that nobody knows.
func (item *produceItem) result() (partition.Appended, error) {
	if item.pending == nil {
		return partition.Appended{}, item.err
	}
	return item.pending.Result(item.ctx)
}

func (a *API) fillAppended(resp *pb.ProduceResponse, item *produceItem, done partition.Appended) {
	resp.Acked = fromAcks(done.Acked)
	resp.LogStartOffset = int64(done.LogStart)
	if item.acks == partition.AcksNone {
		return // it is on its way: nobody knows where to
	}
	resp.BaseOffset = int64(done.BaseOffset)
	resp.LogAppendTimeMs = done.LogAppendTime
	resp.Duplicate = done.Duplicate
	resp.Position = a.position(item.topic, item.partition, done.Epoch, done.EndOffset)
}

// position is a session token.
func (a *API) position(topic string, p int32, e record.Epoch, next record.Offset) *pb.Position {
	t, ok := a.deps.Metadata.Topic(topic)
	if !ok {
		return nil // deleted meanwhile
	}
	return &pb.Position{TopicId: t.ID[:], Partition: p, LeaderEpoch: int32(e), Offset: int64(next)}
}

// window bounds the bytes of one stream that are unanswered. One request may
// be larger than the window: it then goes alone.
type window struct {
	limit int

	mu       sync.Mutex
	taken    int           // guarded by mu
	requests int           // guarded by mu
	room     chan struct{} // guarded by mu; closed when there may be room; nil when nobody waits
	empty    chan struct{} // guarded by mu; closed when nothing is taken; nil when nobody waits
}

func newWindow(limit int) *window { return &window{limit: limit} }

// take waits for room. Only the reader calls it.
func (w *window) take(ctx context.Context, n int) error {
	for {
		w.mu.Lock()
		if w.requests == 0 || w.taken+n <= w.limit {
			w.taken += n
			w.requests++
			w.mu.Unlock()
			return nil
		}
		w.room = make(chan struct{})
		room := w.room
		w.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *window) give(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken -= n
	w.requests--
	if w.room != nil {
		close(w.room)
		w.room = nil
	}
	if w.requests == 0 && w.empty != nil {
		close(w.empty)
		w.empty = nil
	}
}

func (w *window) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests == 0
}

// whenIdle is closed when nothing is taken any more.
func (w *window) whenIdle() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.requests == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if w.empty == nil {
		w.empty = make(chan struct{})
	}
	return w.empty
}
