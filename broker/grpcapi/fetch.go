package grpcapi

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Fetch delivers what the client has credit for. The reader changes the
// stream's state and never waits; this goroutine picks partitions in turn, reads and
// sends. It sleeps while there is no credit or nothing to deliver.
func (a *API) Fetch(s grpc.BidiStreamingServer[pb.FetchRequest, pb.FetchResponse]) error {
	f := newFetchStream(a, s.Context())
	defer f.close()
	if !a.readers.Go("fetch", func(context.Context) { f.read(s) }) {
		return errShuttingDown
	}
	return f.deliver(s)
}

// The defaults of a fetch stream, as tidemark.proto has them.
const (
	defaultFetchWait           = 500 * time.Millisecond
	defaultMaxPartitionBytes   = 1 << 20
	maxCreditBytes             = 1 << 40 // keeps sums from overflowing
	maxErrorsPerRequestPending = 4096
)

// fetchStream is the state of one stream.
type fetchStream struct {
	api  *API
	ctx  context.Context // of the stream
	wake chan struct{}   // one slot; replicas and the reader knock here

	mu     sync.Mutex
	parts  map[partKey]*fetchPart // guarded by mu
	order  []*fetchPart           // guarded by mu; the turn of the partitions
	turn   int                    // guarded by mu; next in order
	credit int64                  // guarded by mu; what may still be sent
	params fetchParams            // guarded by mu
	ended  bool                   // guarded by mu; the reader has ended, with err
	err    error                  // guarded by mu
	failed []*pb.FetchResponse    // guarded by mu; errors to be sent, which need no credit
}

type partKey struct {
	topic     string
	partition int32
}

type fetchParams struct {
	maxWait           time.Duration
	minBytes          int
	maxPartitionBytes int
	consistency       pb.Consistency
}

func newFetchStream(a *API, ctx context.Context) *fetchStream {
	return &fetchStream{
		api: a, ctx: ctx, wake: make(chan struct{}, 1), parts: make(map[partKey]*fetchPart),
		params: fetchParams{maxWait: defaultFetchWait, minBytes: 1, maxPartitionBytes: defaultMaxPartitionBytes},
	}
}

// close gives up all watches.
func (f *fetchStream) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for _, p := range f.order {
		p.leave()
	}
	f.parts, f.order, f.failed = nil, nil, nil
}

func (f *fetchStream) knock() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// read never waits for anything but the client: everything it does is
// bounded by the number of partitions.
func (f *fetchStream) read(s grpc.BidiStreamingServer[pb.FetchRequest, pb.FetchResponse]) {
	end := func(err error) {
		f.mu.Lock()
		f.ended, f.err = true, err
		f.mu.Unlock()
		f.knock()
	}
	defer func() {
		if v := recover(); v != nil {
			end(f.api.panicked("Fetch", v))
		}
	}()
	for {
		req, err := s.Recv()
		if err != nil {
			end(endOf(err))
			return
		}
		if err := f.request(req); err != nil {
			end(err)
			return
		}
		f.knock()
	}
}

// request applies what a client asks for. An error ends the stream.
func (f *fetchStream) request(req *pb.FetchRequest) error {
	if req.CreditBytes < 0 {
		return errs.Errorf(errs.InvalidRequest, "fetch request gives %d bytes of credit: credit cannot be taken back", req.CreditBytes)
	}
	if _, ok := pb.Consistency_name[int32(req.Consistency)]; !ok {
		return errs.Errorf(errs.InvalidRequest, "consistency %d does not exist", int32(req.Consistency))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return nil
	}
	f.credit = min(f.credit+min(req.CreditBytes, maxCreditBytes), maxCreditBytes)
	f.setParamsLocked(req)
	for _, tp := range req.Remove {
		f.removeLocked(partKey{tp.GetTopic(), tp.GetPartition()})
	}
	for _, add := range req.Add {
		if len(f.failed) > maxErrorsPerRequestPending {
			return errs.Errorf(errs.LimitExceeded, "too many errors on this stream are not read")
		}
		f.addLocked(add)
	}
	return nil
}

func (f *fetchStream) setParamsLocked(req *pb.FetchRequest) {
	if req.MaxWaitMs > 0 {
		f.params.maxWait = min(time.Duration(req.MaxWaitMs)*time.Millisecond, f.api.cfg.MaxFetchWait)
	}
	if req.MinBytes > 0 {
		f.params.minBytes = int(min(int64(req.MinBytes), int64(f.api.cfg.MaxFetchBytes)))
	}
	if req.MaxPartitionBytes > 0 {
		f.params.maxPartitionBytes = int(min(int64(req.MaxPartitionBytes), int64(f.api.cfg.MaxFetchBytes)))
	}
	if req.Consistency != pb.Consistency_CONSISTENCY_LEADER {
		f.params.consistency = req.Consistency
	}
}

func (f *fetchStream) addLocked(add *pb.FetchPartition) {
	key := partKey{add.GetTopic(), add.GetPartition()}
	f.removeLocked(key)
	p := &fetchPart{key: key, session: add.GetSession(), next: record.Offset(add.GetOffset()), changed: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(f.ctx)
	if len(f.order) >= f.api.cfg.MaxFetchPartitions {
		p.cancel()
		f.failLocked(p, errs.Errorf(errs.LimitExceeded, "stream has %d partitions, which is the limit; open another", len(f.order)))
		return
	}
	r, err := f.api.deps.Replicas.Find(key.topic, key.partition)
	if err != nil {
		p.cancel()
		f.failLocked(p, err)
		return
	}
	p.replica = r
	p.gate = newGate(add, f.params.consistency, func() { p.change(); f.knock() })
	if t, ok := f.api.deps.Metadata.Topic(key.topic); ok {
		p.topicID = t.ID
	}
	// Watch first and look afterwards: a change in between is not missed. The
	// partition is told before the stream, which then finds it changed.
	first, second := r.Notify(p.changed), r.Notify(f.wake)
	p.unwatch = func() { first(); second() }
	f.parts[key] = p
	f.order = append(f.order, p)
}

func (f *fetchStream) removeLocked(key partKey) {
	p, ok := f.parts[key]
	if !ok {
		return
	}
	p.leave()
	delete(f.parts, key)
	for i, o := range f.order {
		if o == p {
			f.order = append(f.order[:i], f.order[i+1:]...)
			if f.turn > i {
				f.turn--
			}
			return
		}
	}
}

// failLocked ends a partition's place on the stream.
func (f *fetchStream) failLocked(p *fetchPart, err error) {
	f.failed = append(f.failed, p.failure(f.api, err))
	if f.parts[p.key] == p {
		f.removeLocked(p.key)
	}
}

// deliver sends until the stream ends.
func (f *fetchStream) deliver(s grpc.ServerStream) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		out, wait, err := f.next()
		if err != nil || out == nil && wait == ended {
			return err
		}
		if out != nil {
			f.api.metrics.requests.WithLabelValues("Fetch", codeName(out.head.Error)).Inc()
			if err := s.SendMsg(out); err != nil {
				return err
			}
			if f.api.isStopping() {
				return errShuttingDown
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-f.wake:
		case <-timer.C:
		case <-f.ctx.Done():
			return f.ctx.Err()
		case <-f.api.stopping:
			return errShuttingDown
		}
	}
}

const (
	ended   time.Duration = -1
	forever               = time.Hour
)

// next finds something to send, or how long to sleep unless somebody knocks.
// Partitions are read without the lock, so the reader never waits for a disk.
func (f *fetchStream) next() (*fetchOut, time.Duration, error) {
	f.mu.Lock()
	rounds, endedNow, err := len(f.order), f.ended, f.err
	out := f.failedLocked()
	f.mu.Unlock()
	if endedNow {
		return nil, ended, err
	}
	if out != nil {
		return out, 0, nil
	}
	wait := forever
	for {
		p, params := f.pick(&rounds)
		if p == nil {
			break
		}
		out, again, err := p.poll(f.api, params)
		if out, err = f.settle(p, out, err); out != nil || err != nil {
			return out, 0, err
		}
		wait = min(wait, again)
	}
	return nil, wait, nil
}

// pick takes the next partition in turn that does not rest, unless there is no
// credit. It looks at no more than steps of them, and counts down.
func (f *fetchStream) pick(steps *int) (*fetchPart, fetchParams) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.credit <= 0 {
		return nil, fetchParams{}
	}
	for ; *steps > 0 && len(f.order) > 0; *steps-- {
		if f.turn >= len(f.order) {
			f.turn = 0
		}
		p := f.order[f.turn]
		f.turn++
		if p.rests() {
			continue
		}
		*steps--
		params := f.params
		params.maxPartitionBytes = int(min(int64(params.maxPartitionBytes), f.credit))
		return p, params
	}
	return nil, fetchParams{}
}

// settle pays for a response, or ends the partition's place. The client may
// have removed or moved the partition meanwhile: then there is nothing to send.
func (f *fetchStream) settle(p *fetchPart, out *fetchOut, err error) (*fetchOut, error) {
	if out == nil && err == nil {
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || f.parts[p.key] != p {
		return nil, nil
	}
	if err != nil {
		f.failLocked(p, err)
		return f.failedLocked(), nil
	}
	f.credit -= batchesBytes(out.batches)
	return out, nil
}

// failedLocked takes the first error that waits to be sent.
func (f *fetchStream) failedLocked() *fetchOut {
	if len(f.failed) == 0 {
		return nil
	}
	out := &fetchOut{head: f.failed[0]}
	f.failed = f.failed[1:]
	return out
}

func batchesBytes(batches []record.Raw) int64 {
	n := 0
	for _, b := range batches {
		n += len(b)
	}
	return int64(n)
}

// stopwatch starts when it is first read.
type stopwatch struct {
	running bool
	start   clock.Mono
}

func (w *stopwatch) elapsed() time.Duration {
	if !w.running {
		w.running, w.start = true, clock.Monotonic()
	}
	return clock.Since(w.start)
}
