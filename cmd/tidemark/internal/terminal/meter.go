package terminal

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
)

// Meter counts records and their latencies. It is safe for concurrent use.
type Meter struct {
	start clock.Mono

	mu       sync.Mutex
	records  int64                   // guarded by mu
	bytes    int64                   // guarded by mu
	failed   int64                   // guarded by mu
	inflight int64                   // guarded by mu
	latency  *hdrhistogram.Histogram // guarded by mu; microseconds
}

// NewMeter starts to count.
func NewMeter() *Meter {
	return &Meter{start: clock.Monotonic(), latency: hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 3)}
}

// Sent counts a record that is on its way.
func (m *Meter) Sent() {
	m.mu.Lock()
	m.inflight++
	m.mu.Unlock()
}

// Done counts the answer to a record that was sent.
func (m *Meter) Done(bytes int, took time.Duration, failed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inflight--
	if failed {
		m.failed++
		return
	}
	m.records++
	m.bytes += int64(bytes)
	_ = m.latency.RecordValue(max(took.Microseconds(), 1)) // out of range only after ten minutes
}

// Add counts records that were read.
func (m *Meter) Add(records int, bytes int64) {
	m.mu.Lock()
	m.records += int64(records)
	m.bytes += bytes
	m.mu.Unlock()
}

// Snapshot is what a Meter has counted.
type Snapshot struct {
	Records, Bytes, Failed, InFlight int64
	Elapsed                          time.Duration
	Quantile                         func(q float64) time.Duration
}

// Snapshot reads the meter.
func (m *Meter) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := hdrhistogram.Import(m.latency.Export())
	return Snapshot{
		Records: m.records, Bytes: m.bytes, Failed: m.failed, InFlight: m.inflight,
		Elapsed:  clock.Since(m.start),
		Quantile: func(q float64) time.Duration { return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond },
	}
}

// PerSecond is records and bytes per second.
func (s Snapshot) PerSecond() (records, bytes float64) {
	sec := max(s.Elapsed.Seconds(), 1e-6)
	return float64(s.Records) / sec, float64(s.Bytes) / sec
}

// Produced is the closing line of a producer.
func (s Snapshot) Produced(topic string) string {
	records, bytes := s.PerSecond()
	return fmt.Sprintf("produced %s (%s) to %s in %s: %s rec/s, %s/s, p50 %s p99 %s, %s failed",
		Counted(s.Records, "record"), Bytes(float64(s.Bytes)), topic, Duration(s.Elapsed), Rate(records), Bytes(bytes),
		Duration(s.Quantile(50)), Duration(s.Quantile(99)), Count(s.Failed))
}

// Consumed is the closing line of a consumer.
func (s Snapshot) Consumed(topics string) string {
	records, bytes := s.PerSecond()
	return fmt.Sprintf("consumed %s (%s) from %s in %s: %s rec/s, %s/s",
		Counted(s.Records, "record"), Bytes(float64(s.Bytes)), topics, Duration(s.Elapsed), Rate(records), Bytes(bytes))
}

func (s Snapshot) line(last Snapshot) string {
	sec := max((s.Elapsed - last.Elapsed).Seconds(), 1e-6)
	line := fmt.Sprintf("  %s rec  %s  %s rec/s  %s/s", Count(s.Records), Bytes(float64(s.Bytes)),
		Rate(float64(s.Records-last.Records)/sec), Bytes(float64(s.Bytes-last.Bytes)/sec))
	if p99 := s.Quantile(99); p99 > 0 {
		line += fmt.Sprintf("  p99 %s  inflight %d  err %d", Duration(p99), s.InFlight, s.Failed)
	}
	return line
}

// Progress shows the meter on w while a command runs: rewritten ten times a
// second on a terminal, else as a line every ten seconds. The function that it
// returns ends it.
func (m *Meter) Progress(w io.Writer, tty bool) func() {
	group := run.Owned("progress")
	every, end := 10*time.Second, "\n"
	if tty {
		every, end = 100*time.Millisecond, "\x1b[K\r"
	}
	group.Go("line", func(ctx context.Context) {
		tick := time.NewTicker(every)
		defer tick.Stop()
		var past []Snapshot
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := m.Snapshot()
			if past = append(past, now); len(past) > 10 {
				past = past[1:]
			}
			fmt.Fprint(w, now.line(past[0])+end)
		}
	})
	return func() {
		group.Stop()
		if tty {
			fmt.Fprint(w, "\r\x1b[K")
		}
	}
}
