// Package producer writes records to Tidemark.
//
// A Producer gathers records into batches, one open batch per partition, and
// sends them to the partitions' leaders. It holds to this:
//
//   - Every record that Produce accepted gets exactly one result: an offset, or
//     an error. Close delivers or fails them all; none is lost silently.
//   - Records of one partition are appended in the order of the Produce calls,
//     retries included, and their results and callbacks come in that order.
//   - An error says "refused" (nothing happened) or "outcome unknown" (it may have
//     been appended); errs.OutcomeUnknown tells which.
//   - An idempotent producer (the default) appends a batch once, however often it is sent.
//   - The memory of records without a result is bounded.
//
// A Producer is safe for concurrent use.
package producer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	"github.com/tidemarkhq/tidemark/proto/session"
)

// Errors of a Producer. Errors of the broker carry the codes of package errs.
var (
	// ErrBufferFull: the buffer is full and the producer was told not to wait.
	ErrBufferFull = errs.New(errs.LimitExceeded, "the producer's buffer is full; wait for results, or raise the bound")
	// ErrClosed: Produce was called after Close, or Close gave up on the record.
	ErrClosed = errs.New(errs.InvalidRequest, "the producer is closed")
)

// ExpectationError is the error of a conditional append whose partition ends
// elsewhere than expected; Actual tells where. Its code is errs.ExpectationFailed.
type ExpectationError = client.ExpectationError

// Record is one record to write. Its bytes are copied: they may be used again
// once Produce has returned.
type Record struct {
	Topic string
	// Partition is used by ExplicitPartitioner, and ignored otherwise.
	Partition int32
	Key       []byte // nil: no key
	Value     []byte // nil: a tombstone
	Headers   []record.Header
	Timestamp time.Time // zero: now
}

// Result is what became of a record.
type Result struct {
	Topic     string
	Partition int32
	Offset    record.Offset // -1 with AcksNone
	Epoch     record.Epoch  // leader epoch under which it was appended
	Timestamp time.Time
	// Duplicate: the batch had been appended by an earlier attempt.
	Duplicate bool
	// Acked is the durability that was reached.
	Acked Acks

	topicID [16]byte
	end     record.Offset
}

// Token lets a consumer wait until it can read this record
// (consumer.WithNotBefore). Tokens merge.
func (r Result) Token() session.Token {
	var t session.Token
	if r.end > 0 && r.topicID != [16]byte{} {
		t.Advance(session.Partition{TopicID: r.topicID, Partition: r.Partition}, session.Position{Epoch: r.Epoch, Offset: r.end})
	}
	return t
}

// Producer writes records. New makes one; Close ends it.
type Producer struct {
	cfg     config
	client  *client.Client
	group   *run.Group // owns links, streams, results, deadlines, ids, metadata
	refresh *client.Refresher
	wantID  chan struct{} // an identity is needed
	results chan struct{} // something stands in settled

	closing sync.Mutex // held by Close

	mu       sync.Mutex
	closed   bool              // guarded by mu: no more records
	topics   map[string]*topic // guarded by mu
	links    map[int32]*link   // guarded by mu; by broker
	parts    []*part           // guarded by mu; all of them
	bytes    int               // guarded by mu: of records without a result
	records  int               // guarded by mu
	space    chan struct{}     // guarded by mu; closed when bytes shrinks, nil when nobody waits
	choosing Record            // guarded by mu; the one the partitioner looks at
	flushing int               // guarded by mu: Flush calls under way
	settled  []*batch          // guarded by mu; finished, callbacks not run yet
	id       struct {          // guarded by mu; the newest identity
		ok    bool
		pid   int64
		epoch int16
	}
}

// topic is the partitions of a topic.
type topic struct {
	parts []*part
}

// New returns a producer that finds the cluster through any of brokers
// (host:port of gRPC listeners, all tried in turn). It does not connect yet.
func New(brokers []string, opts ...Option) (*Producer, error) {
	cfg := defaults()
	for _, o := range opts {
		o(&cfg)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.partitioner == nil {
		cfg.partitioner = DefaultPartitioner()
	}
	cfg.client.Brokers = brokers
	// Records wait for metadata too, and no record may fail sooner than it was told.
	forCalls := cfg.client
	forCalls.RequestTimeout = cfg.deliveryTimeout
	c, err := client.Open(forCalls)
	if err != nil {
		return nil, err
	}
	p := &Producer{
		cfg:     cfg,
		client:  c,
		group:   run.Owned("producer"),
		wantID:  make(chan struct{}, 1),
		results: make(chan struct{}, 1),
		topics:  make(map[string]*topic),
		links:   make(map[int32]*link),
	}
	p.refresh = client.NewRefresher(c, p.topicNames, p.refreshed)
	p.group.Go("metadata", p.refresh.Run)
	p.group.Go("results", p.settle)
	p.group.Go("deadlines", p.expire)
	p.group.Go("ids", p.identify)
	return p, nil
}

// Produce puts a record on its way and returns its future. It waits for the
// topic's metadata and, where the buffer is full, for space; ctx bounds that
// wait, and nothing else: once accepted a record is delivered or fails by the
// delivery timeout. Every error is the future's. The record's bytes are copied.
func (p *Producer) Produce(ctx context.Context, r Record) Future {
	f, err := p.add(ctx, r, nil)
	if err != nil {
		return refused(r.Topic, r.Partition, err)
	}
	return f
}

// ProduceFunc is Produce with a callback. Callbacks of one partition come in the order
// of the calls, from one goroutine; done must not block, so it must not call Produce
// with a full buffer, Flush or Close. A record that is refused at once has its callback
// before ProduceFunc returns.
func (p *Producer) ProduceFunc(ctx context.Context, r Record, done func(Result, error)) {
	if _, err := p.add(ctx, r, done); err != nil {
		done(Result{Topic: r.Topic, Partition: r.Partition, Offset: -1, Timestamp: r.Timestamp}, err)
	}
}

// ProduceSync produces records and waits for all results. The error is the
// first that a record had; it names the record.
func (p *Producer) ProduceSync(ctx context.Context, records ...Record) ([]Result, error) {
	futures := make([]Future, len(records))
	for i, r := range records {
		futures[i] = p.Produce(ctx, r)
	}
	results := make([]Result, len(records))
	var first error
	for i, f := range futures {
		var err error
		if results[i], err = f.Wait(ctx); err != nil && first == nil {
			first = fmt.Errorf("produce record %d of %d to %s: %w", i+1, len(records), records[i].Topic, err)
		}
	}
	return results, first
}

// AppendOption modifies one Append.
type AppendOption func(*appendOptions)

type appendOptions struct {
	conditional bool
	expect      record.Offset
}

// ExpectOffset appends only if the partition ends at offset n when the batch
// gets there; else the error is an *ExpectationError.
func ExpectOffset(n record.Offset) AppendOption {
	return func(o *appendOptions) { o.conditional, o.expect = true, n }
}

// Append appends records to one partition as one batch, all or nothing, after what was
// produced to it before, and waits for the result, which is that of the first
// record; the others follow densely. Topic and Partition of the records are
// not used. With ExpectOffset it is conditional. When ctx ends first, the
// batch stays on its way and the error says that the outcome is unknown.
func (p *Producer) Append(ctx context.Context, topic string, partition int32, records []Record, opts ...AppendOption) (Result, error) {
	var o appendOptions
	for _, opt := range opts {
		opt(&o)
	}
	b, err := p.addBatch(ctx, topic, partition, records, o)
	if err != nil {
		return Result{Topic: topic, Partition: partition, Offset: -1}, err
	}
	r, err := Future{batch: b, timestamp: b.records[0].timestamp}.Wait(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = client.WithOutcome(errs.Errorf(errs.RequestTimedOut, "append to %s/%d: %w", topic, partition, err), "the batch is still on its way")
	}
	return r, err
}

// Flush sends what is buffered without lingering and waits until every record accepted
// before has its result and its callback has run. Its error is ctx's alone: results tell of records.
func (p *Producer) Flush(ctx context.Context) error {
	p.mu.Lock()
	p.flushing++
	var last []*batch
	for _, t := range p.parts {
		if n := len(t.queue); n > 0 {
			last = append(last, t.queue[n-1])
			if t.open != nil {
				p.sealLocked(t)
			}
			p.enqueueLocked(t)
		}
	}
	last = append(last, p.settled...)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.flushing--
		p.mu.Unlock()
	}()
	for _, b := range last {
		select {
		case <-b.done:
		case <-ctx.Done():
			return fmt.Errorf("flush: %w", ctx.Err())
		}
	}
	return nil
}

// Close flushes, then stops. When ctx ends first, the remaining records fail:
// with ErrClosed where nothing was sent, else with an error whose outcome is
// unknown. Close returns once every record has its result and its callback has run; its error is
// ctx's where records failed for it. It must not be called from a callback.
func (p *Producer) Close(ctx context.Context) error {
	p.closing.Lock() // a second call waits for the first, and finds nothing to do
	defer p.closing.Unlock()
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.mu.Unlock()
	var err error
	if !again {
		err = p.Flush(ctx)
	}
	p.mu.Lock()
	p.abortLocked()
	p.mu.Unlock()
	p.group.Stop()
	p.settleAll()
	return errors.Join(err, p.client.Close())
}

// Buffered is the number of records without a result, and their bytes.
func (p *Producer) Buffered() (records int, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.records, p.bytes
}
