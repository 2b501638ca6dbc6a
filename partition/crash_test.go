package partition

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// history is what the producers of a crash test were told.
type history struct {
	mu    sync.Mutex
	acked map[string]record.Offset // guarded by mu; value to offset
	start record.Offset            // guarded by mu; highest log start that was answered
}

func (h *history) ack(value string, at record.Offset) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked[value] = at
}

// source is a producer of a crash test. An idempotent one sends what was not
// acknowledged again, from the first such batch on; others never repeat anything.
type source struct {
	name string
	pid  int64 // -1: not idempotent
	acks Acks
	next int // first value that is not acknowledged, or that was never sent
}

// Values are long enough for segments to roll now and then.
func (s *source) value(i int) string { return fmt.Sprintf("%s-%d-%0400d", s.name, i, i) }

func (s *source) batch(i int) record.Raw {
	if s.pid < 0 {
		return batch(s.value(i))
	}
	return numbered(s.pid, 0, int32(i), s.value(i))
}

// run sends values, five in flight, until the replica fails or all are acknowledged.
func (s *source) run(r *rig, h *history, upTo int) error {
	for s.next < upTo {
		var flight []*Pending
		first := s.next
		for i := first; i < min(first+5, upTo); i++ {
			p, err := r.Append(context.Background(), Append{Batch: s.batch(i), Acks: s.acks})
			if err != nil {
				break
			}
			flight = append(flight, p)
		}
		if s.pid < 0 {
			s.next += len(flight)
		}
		if len(flight) == 0 {
			return nil
		}
		for i, p := range flight {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			a, err := p.Result(ctx)
			cancel()
			if errs.CodeOf(err) == errs.RequestTimedOut {
				return fmt.Errorf("%s: no answer: %w", s.value(first+i), err)
			}
			if err != nil {
				break
			}
			h.ack(s.value(first+i), a.BaseOffset)
			if s.pid >= 0 {
				s.next = first + i + 1
			}
		}
	}
	return nil
}

// check compares what is there with what was acknowledged.
func (h *history) check(r *rig) error {
	count := map[string]int{}
	start := r.View().LogStart
	if start < h.start {
		return fmt.Errorf("log start went back from %d to %d", h.start, start)
	}
	values, err := r.readAll()
	if err != nil {
		return err
	}
	for _, v := range values {
		count[v]++
	}
	for v, at := range h.acked {
		if at < start {
			continue // it may go by a trim or by retention
		}
		if i := int(at - start); i >= len(values) || values[i] != v {
			return fmt.Errorf("%q was acknowledged at offset %d and is not there (log start %d, %d records)", v, at, start, len(values))
		}
	}
	for v, n := range count {
		if n > 1 {
			return fmt.Errorf("%q is there %d times", v, n)
		}
	}
	return nil
}

func TestCrashAtAnyPointUnderLoadLosesNothingAcknowledged(t *testing.T) {
	rng, _ := seeded(t)
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for _, tear := range []bool{false, true} {
		t.Run(fmt.Sprintf("tear=%t", tear), func(t *testing.T) { crashRounds(t, rng, rounds, tear) })
	}
}

func crashRounds(t *testing.T, rng *rand.Rand, rounds int, tear bool) {
	h := &history{acked: map[string]record.Offset{}}
	sources := []*source{
		{name: "leader", pid: -1, acks: AcksLeader},
		{name: "quorum", pid: -1, acks: AcksQuorum},
		{name: "all", pid: -1, acks: AcksAll},
		{name: "idem-all", pid: 1, acks: AcksAll},
		{name: "idem-leader", pid: 2, acks: AcksLeader},
	}
	small := withTopic(func(c *TopicConfig) { c.SegmentBytes = 64 << 10 })
	fs := sim.New()
	formed, crashes := false, 0
	var high record.Offset
	for round := range rounds {
		r := newRig(t, fs, "/data", small)
		if formed {
			r.cfg.Voters = nil
		}
		fs.CrashAt(1 + rng.IntN(250))
		err := r.tryStart()
		if err == nil {
			if err = r.awaitLeader(); err == nil {
				formed = true
				v := r.View()
				if v.HighWatermark < high {
					t.Fatalf("round %d: high watermark went back from %d to %d", round, high, v.HighWatermark)
				}
				if err := h.check(r); err != nil && !errors.Is(err, sim.ErrCrashed) {
					t.Fatalf("round %d: %v", round, err)
				}
				load(t, rng, r, h, sources)
				high = max(high, r.View().HighWatermark)
			}
			_ = r.tryStop()
		}
		if err != nil && !errors.Is(err, sim.ErrCrashed) {
			t.Fatalf("round %d: %v", round, err)
		}
		crashes++
		fs = fs.Reboot(rng, tear)
	}
	finish(t, fs, small, h, sources, high)
	t.Logf("%d crashes, %d acknowledged, log start %d", crashes, len(h.acked), h.start)
}

func load(t *testing.T, rng *rand.Rand, r *rig, h *history, sources []*source) {
	var wg sync.WaitGroup
	if rng.IntN(2) == 0 {
		back := record.Offset(rng.IntN(2000))
		wg.Go(func() { tidy(r, h, back) })
	}
	for _, s := range sources {
		wg.Go(func() {
			if err := s.run(r, h, s.next+200); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// tidy trims and lets retention go, which writes a checkpoint, beside the load.
func tidy(r *rig, h *history, back record.Offset) {
	for range 3 {
		start, err := r.Trim(context.Background(), max(0, r.View().HighWatermark-back))
		if err != nil {
			return
		}
		h.mu.Lock()
		h.start = max(h.start, start)
		h.mu.Unlock()
		if _, err := r.Retain(); err != nil {
			return
		}
	}
}

// finish starts without faults: the idempotent producers send the rest, once more from
// their first unacknowledged batch, and everything is there once.
func finish(t *testing.T, fs *sim.FS, opt option, h *history, sources []*source, high record.Offset) {
	r := newRig(t, fs, "/data", opt)
	r.start()
	defer r.stop()
	if v := r.View(); v.HighWatermark < high {
		t.Fatalf("high watermark went back from %d to %d", high, v.HighWatermark)
	}
	for _, s := range sources {
		if s.pid < 0 {
			continue
		}
		to := s.next + 7
		if err := s.run(r, h, to); err != nil || s.next != to {
			t.Fatalf("%s stopped at %d of %d: %v", s.name, s.next, to, err)
		}
		for i := range s.next {
			if _, ok := h.acked[s.value(i)]; !ok {
				t.Fatalf("%s was never acknowledged", s.value(i))
			}
		}
	}
	// What the leader alone acknowledged is durable, and committed soon.
	if err := errors.Join(r.Linearize(t.Context()), h.check(r)); err != nil {
		t.Fatal(err)
	}
}

// The state that a start rebuilds from sidecar and log is the state that its writer had.
func TestStateAfterARestartIsTheStateBefore(t *testing.T) {
	rng, _ := seeded(t)
	r := simRig(t, withTopic(func(c *TopicConfig) { c.SegmentBytes = 64 << 10 }))
	next := map[int64]int32{}
	for round := range 6 {
		for range 150 {
			pid := int64(rng.IntN(40))
			seq := next[pid]
			switch rng.IntN(10) {
			case 0:
				seq += 3 // refused, unless the producer is new
			case 1:
				seq = max(0, seq-1) // a duplicate
			}
			a, err := r.append(Append{Batch: numbered(pid, 0, seq, string(make([]byte, 300)))})
			if err == nil && !a.Duplicate {
				next[pid] = seq + 1
			}
		}
		want := r.store.now()
		r.restart()
		got := replayed(t, r)
		// The new term's no-op is one entry more; nothing else may differ.
		want.index, want.term = got.index, got.term
		if got.hash() != thawed(t, want).hash() {
			t.Fatalf("round %d: the state after a restart differs", round)
		}
	}
}

func thawed(t *testing.T, s *state) *state {
	t.Helper()
	out, err := decodeState(s.encoded, releaseLimits)
	if err != nil {
		t.Fatal(err)
	}
	out.index, out.term = s.index, s.term
	return out
}

// replayed is the state from the active segment's sidecar, made anew.
func replayed(t *testing.T, r *rig) *state {
	t.Helper()
	sidecar, from := r.log.ActiveState()
	s, err := replay(r.log, sidecar, from, r.limits)
	if err != nil {
		t.Fatal(err)
	}
	if live := r.store.now(); s.hash() != thawed(t, live).hash() {
		t.Fatal("the live state is not the state of the log")
	}
	return s
}
