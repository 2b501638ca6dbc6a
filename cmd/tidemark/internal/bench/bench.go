// Package bench measures a cluster from a client's side.
//
// With a rate the load is an open loop: each record has a time at which it is
// due, and latency counts from then, so a stall of the broker is not hidden by
// a client that waits for it (coordinated omission). Without a rate the client
// sends as fast as its buffer allows, and latency counts from the send.
package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/format"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/link"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
)

// Load is what to send.
type Load struct {
	Topic      string              `json:"topic"`
	Partitions int                 `json:"partitions"`
	Size       int                 `json:"record_bytes"`
	Rate       float64             `json:"records_per_second"` // 0: as fast as it goes
	Duration   time.Duration       `json:"-"`
	Records    int64               `json:"records,omitempty"` // stop after so many; 0: after Duration
	Producer   link.ProducerConfig `json:"-"`
	Acks       string              `json:"acks"`
	Codec      string              `json:"compression"`
	BatchBytes int                 `json:"batch_bytes"`
	// BufferBytes may wait for their answer in the client.
	BufferBytes int `json:"buffer_bytes"`
}

// Result is what was measured.
type Result struct {
	Kind       string     `json:"kind"` // produce, consume, e2e
	Load       Load       `json:"load"`
	Records    int64      `json:"records"`
	Bytes      int64      `json:"bytes"`
	Failed     int64      `json:"failed"`
	Seconds    float64    `json:"seconds"`
	PerSecond  float64    `json:"records_per_second"`
	MiBPerSec  float64    `json:"mib_per_second"`
	Ack        *Latency   `json:"ack_latency_ms,omitempty"`
	EndToEnd   *Latency   `json:"end_to_end_latency_ms,omitempty"`
	OpenLoop   bool       `json:"open_loop"`
	PlainFile  *PlainFile `json:"plain_file,omitempty"`
	Machine    Machine    `json:"machine"`
	FirstError string     `json:"first_error,omitempty"`
	Notes      []string   `json:"notes,omitempty"`
}

// Machine is where it was measured; clients and broker share it when the
// broker is local.
type Machine struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPUs int    `json:"cpus"`
	Go   string `json:"go"`
}

// Latency is a distribution in milliseconds.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

// recorder gathers latencies. It is safe for concurrent use.
type recorder struct {
	mu     sync.Mutex
	h      *hdrhistogram.Histogram // guarded by mu; microseconds
	n      int64                   // guarded by mu
	failed int64                   // guarded by mu
	first  error                   // guarded by mu
}

func newRecorder() *recorder {
	return &recorder{h: hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 3)}
}

func (r *recorder) add(took time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if r.failed++; r.first == nil {
			r.first = err
		}
		return
	}
	r.n++
	_ = r.h.RecordValue(max(took.Microseconds(), 1)) // out of range only after ten minutes
}

func (r *recorder) latency() *Latency {
	r.mu.Lock()
	defer r.mu.Unlock()
	ms := func(q float64) float64 { return float64(r.h.ValueAtQuantile(q)) / 1000 }
	return &Latency{
		Mean: r.h.Mean() / 1000, P50: ms(50), P90: ms(90), P95: ms(95), P99: ms(99), P999: ms(99.9), Max: float64(r.h.Max()) / 1000,
	}
}

// payload gives each record its number and bytes that do not compress.
type payload struct {
	noise []byte
	size  int
}

func newPayload(size int) *payload {
	p := &payload{noise: make([]byte, size+1<<16), size: size}
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(p.noise) // never fails
	return p
}

func (p *payload) value(n int64) []byte {
	v := make([]byte, p.size)
	copy(v, p.noise[(n*61)%(1<<16):])
	if len(v) >= 8 {
		binary.BigEndian.PutUint64(v, uint64(n))
	}
	return v
}

func result(kind string, l Load, r *recorder, took time.Duration) Result {
	r.mu.Lock()
	n, failed, first := r.n, r.failed, r.first
	r.mu.Unlock()
	bytes := n * int64(l.Size)
	sec := max(took.Seconds(), 1e-9)
	res := Result{
		Kind: kind, Load: l, Records: n, Bytes: bytes, Failed: failed, Seconds: took.Seconds(),
		PerSecond: float64(n) / sec, MiBPerSec: float64(bytes) / sec / (1 << 20), OpenLoop: l.Rate > 0,
		Machine: Machine{runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version()},
	}
	if first != nil {
		res.FirstError = first.Error()
	}
	return res
}

// Produce sends the load and waits for every answer.
func Produce(ctx context.Context, c link.Config, l Load) (Result, error) {
	p, err := link.NewProducer(c, l.Producer)
	if err != nil {
		return Result{}, err
	}
	acks := newRecorder()
	begun := clock.Monotonic()
	err = l.send(ctx, p, begun, acks)
	err = errors.Join(err, p.Close(ctx))
	res := result("produce", l, acks, clock.Since(begun))
	res.Ack = acks.latency()
	return res, err
}

// send paces the load.
func (l *Load) send(ctx context.Context, p link.Producer, begun clock.Mono, acks *recorder) error {
	data := newPayload(l.Size)
	for n := int64(0); l.Records == 0 || n < l.Records; n++ {
		due := l.due(n)
		now := clock.Since(begun)
		if l.Records == 0 && max(now, due) >= l.Duration {
			return nil
		}
		if wait := due - now; wait > 0 {
			if err := sleep(ctx, wait); err != nil {
				return err
			}
		}
		if l.Rate == 0 {
			due = now
		}
		p.Produce(ctx, format.Record{Topic: l.Topic, Partition: format.Unset, Timestamp: format.Unset, Value: data.value(n)}, func(_ link.Result, err error) {
			acks.add(clock.Since(begun)-due, err)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// due is when record n is to be sent.
func (l *Load) due(n int64) time.Duration {
	if l.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(n) / l.Rate * float64(time.Second))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Consume reads a topic from its start to what is its end now.
func Consume(ctx context.Context, c link.Config, l Load) (Result, error) {
	from, left, err := l.bounds(ctx, c)
	if err != nil {
		return Result{}, err
	}
	in, err := link.NewConsumer(ctx, c, link.ConsumerConfig{Topics: []string{l.Topic}, Assigned: from})
	if err != nil {
		return Result{}, err
	}
	r := newRecorder()
	begun := clock.Monotonic()
	var bytes int64
	for left > 0 && err == nil {
		var records []format.Record
		if records, err = in.Poll(ctx); ctx.Err() != nil {
			err = ctx.Err()
		}
		for _, rec := range records {
			bytes += int64(len(rec.Key) + len(rec.Value))
		}
		left -= int64(len(records))
		r.n += int64(len(records))
	}
	took := clock.Since(begun)
	res := result("consume", l, r, took)
	res.Bytes, res.MiBPerSec = bytes, float64(bytes)/max(took.Seconds(), 1e-9)/(1<<20)
	return res, errors.Join(err, in.Close(ctx))
}

// bounds is where to read from, and how many records there are.
func (l *Load) bounds(ctx context.Context, c link.Config) (map[link.TP]int64, int64, error) {
	t, err := link.NewTopics(c)
	if err != nil {
		return nil, 0, err
	}
	defer t.Close()
	bounds, err := t.Bounds(ctx, l.Topic)
	if err == nil {
		err = offsets.FirstErr(bounds)
	}
	from, left := map[link.TP]int64{}, int64(0)
	for p, b := range bounds {
		from[link.TP{Topic: l.Topic, Partition: p}] = b.Start
		left += b.End - b.Start
	}
	return from, left, err
}

// EndToEnd sends the load and reads it in the same process, so that one clock
// measures the way from the moment a record is due to the moment it is read.
func EndToEnd(ctx context.Context, c link.Config, l Load) (Result, error) {
	if l.Size < 8 {
		return Result{}, fmt.Errorf("a record of %d bytes has no room for its number: want 8 or more", l.Size)
	}
	if l.Rate <= 0 {
		return Result{}, errors.New("end-to-end latency needs a rate: without one it is the length of the queue")
	}
	t, err := link.NewTopics(c)
	if err != nil {
		return Result{}, err
	}
	bounds, err := t.Bounds(ctx, l.Topic)
	if err = errors.Join(err, offsets.FirstErr(bounds), t.Close()); err != nil {
		return Result{}, err
	}
	at := map[link.TP]int64{}
	for p, b := range bounds {
		at[link.TP{Topic: l.Topic, Partition: p}] = b.End
	}
	in, err := link.NewConsumer(ctx, c, link.ConsumerConfig{Topics: []string{l.Topic}, Assigned: at})
	if err != nil {
		return Result{}, err
	}
	res, err := l.endToEnd(ctx, c, in)
	return res, errors.Join(err, in.Close(ctx))
}

func (l *Load) endToEnd(ctx context.Context, c link.Config, in link.Consumer) (Result, error) {
	p, err := link.NewProducer(c, l.Producer)
	if err != nil {
		return Result{}, err
	}
	acks, ends := newRecorder(), newRecorder()
	begun := clock.Monotonic()
	group := run.NewGroup(ctx, "bench")
	defer group.Stop()
	group.Go("read", func(ctx context.Context) {
		for ctx.Err() == nil {
			records, err := in.Poll(ctx)
			if err != nil {
				ends.add(0, err)
				return
			}
			now := clock.Since(begun)
			for _, r := range records {
				if len(r.Value) >= 8 {
					ends.add(now-l.due(int64(binary.BigEndian.Uint64(r.Value))), nil)
				}
			}
		}
	})
	err = l.send(ctx, p, begun, acks)
	err = errors.Join(err, p.Close(ctx))
	took := clock.Since(begun)
	err = errors.Join(err, ends.wait(ctx, acks))
	res := result("e2e", *l, acks, took)
	res.Ack, res.EndToEnd = acks.latency(), ends.latency()
	return res, err
}

// wait waits until all that was acknowledged was read.
func (r *recorder) wait(ctx context.Context, acks *recorder) error {
	acks.mu.Lock()
	want := acks.n
	acks.mu.Unlock()
	for {
		r.mu.Lock()
		got, failed := r.n, r.first
		r.mu.Unlock()
		if got >= want || failed != nil {
			return failed
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("%d of %d records were read: %w", got, want, err)
		}
	}
}
