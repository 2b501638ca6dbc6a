package log

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type dogLog struct {
	mu     sync.Mutex
	stalls []bool
	hangs  []time.Duration
}

func (d *dogLog) config() WatchdogConfig {
	return WatchdogConfig{
		OnStall: func(_ string, stalled bool) { d.mu.Lock(); d.stalls = append(d.stalls, stalled); d.mu.Unlock() },
		OnHang:  func(_ string, after time.Duration) { d.mu.Lock(); d.hangs = append(d.hangs, after); d.mu.Unlock() },
	}
}

func TestWatchdogTellsOfAStallThenOfAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d dogLog
		w := NewWatchdog(d.config())
		w.Start()
		g := w.Gauge("disk")
		for range 1000 { // many short steps are no stall
			g.Begin()
			time.Sleep(10 * time.Millisecond)
			g.End()
		}
		if g.Stalled() {
			t.Fatal("stalled without a long step")
		}
		g.Begin()
		time.Sleep(4 * time.Second)
		if !g.Stalled() {
			t.Fatal("a step of 4 s is not stalled")
		}
		time.Sleep(60 * time.Second)
		g.End()
		time.Sleep(time.Second)
		if g.Stalled() {
			t.Fatal("still stalled after the step returned")
		}
		w.Stop()
		if len(d.hangs) != 1 || d.hangs[0] < 30*time.Second || d.hangs[0] > 32*time.Second || len(d.stalls) != 2 {
			t.Fatalf("hangs %v, stalls %v", d.hangs, d.stalls)
		}
		g.Close()
		if len(w.gauges) != 0 {
			t.Fatal("gauge still registered")
		}
	})
}

// A process that was stopped for a minute finds a step that began before; the disk had no
// chance to answer, so it counts as two ticks at most.
func TestWatchdogDiscountsItsOwnPauses(t *testing.T) {
	var d dogLog
	w := NewWatchdog(d.config())
	g := w.Gauge("disk")
	g.Begin()
	w.look(0)
	w.look(min(time.Minute, 2*w.tick))
	if g.Stalled() || len(d.hangs) > 0 {
		t.Fatal("a pause counted as a stall")
	}
	w.look(3 * time.Second)
	if !g.Stalled() {
		t.Fatal("not stalled after 3 s of looking")
	}
}

func TestSyncLimitBoundsHowManyRunAtOnce(t *testing.T) {
	s := NewSyncLimit(2)
	s.acquire()
	s.acquire()
	done := make(chan struct{})
	go func() { s.acquire(); close(done) }()
	select {
	case <-done:
		t.Fatal("a third one got in")
	default:
	}
	s.release()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("the third one never got in")
	}
}
