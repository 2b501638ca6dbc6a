package log

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// An fsync or a write hangs: the watchdog says so, nothing is called durable, and after the power went
// what hung has never happened.
func TestAHungDiskIsNoticedAndAcknowledgesNothing(t *testing.T) {
	for _, kind := range []sim.Kind{sim.OpSync, sim.OpWrite} {
		synctest.Test(t, func(t *testing.T) {
			var d dogLog
			dog := NewWatchdog(d.config())
			dog.Start()
			w := newWorld(2)
			w.cfg.Watchdog = dog
			must(t, w.open())
			must(t, w.write())
			must(t, w.sync())
			acked := w.log.Durable()
			must(t, w.write())
			w.fs.SetHook(sim.Plan(w.rng, sim.Rule{Path: "*" + logSuffix, Kinds: []sim.Kind{kind}, Do: sim.Hang(make(chan struct{}))}))
			done := make(chan error, 1)
			go func() {
				if kind == sim.OpWrite {
					done <- w.write()
				} else {
					done <- w.log.Sync()
				}
			}()
			<-time.After(5 * time.Second)
			if !w.log.Stalled() {
				t.Errorf("%s hangs for 5 s and is no stall", string(kind))
			}
			<-time.After(30 * time.Second)
			dog.Stop()
			if len(d.hangs) != 1 {
				t.Errorf("%s: %d hangs were told", string(kind), len(d.hangs))
			}
			if got := w.log.Durable(); got != acked {
				t.Errorf("%s hangs, and %d became durable after %d", string(kind), got, acked)
			}
			w.fs = w.fs.Reboot(w.rng, false)
			if err := <-done; !errors.Is(err, sim.ErrCrashed) {
				t.Errorf("%s after the crash: %v", string(kind), err)
			}
			_ = w.log.Close()
			must(t, w.open())
			if w.log.LastIndex() != acked {
				t.Errorf("%s: the log ends at %d, not %d: what hung has happened", string(kind), w.log.LastIndex(), acked)
			}
			must(t, w.log.Close())
		})
	}
}

// Slow syncs change what is durable when, and nothing else.
func TestASlowDiskLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(5)
		must(t, w.open())
		w.fs.SetHook(sim.Plan(w.rng, sim.Rule{Kinds: []sim.Kind{sim.OpSync, sim.OpSyncDir, sim.OpRead}, P: 0.3, Do: sim.Slow(time.Millisecond, 20*time.Second)}))
		began := time.Now()
		must(t, w.run(80))
		must(t, w.compare())
		if time.Since(began) < time.Second {
			t.Error("nothing was slow")
		}
		must(t, w.log.Close())
	})
}

// The disk is full at any byte: the log says so and is poisoned. With room again it opens,
// holds what was durable, and goes on.
func TestAFullDiskAtEveryByte(t *testing.T) {
	full := 0
	for seed := range uint64(60) {
		w := newWorld(seed)
		must(t, w.open())
		must(t, w.write())
		must(t, w.sync())
		free, total, err := w.fs.Space("/")
		must(t, err)
		w.fs.SetQuota(int64(total-free) + w.rng.Int64N(100_000))
		err = w.run(60)
		switch {
		case errors.Is(err, errModel) || err != nil && !errors.Is(err, syscall.ENOSPC):
			t.Fatalf("seed %d: %v", seed, err)
		case errors.Is(err, ErrPoisoned):
			checkPoisoned(t, w)
			full++
		}
		_ = w.log.Close()
		w.fs.SetQuota(int64(total))
		if seed%2 == 0 {
			w.fs = w.fs.Reboot(w.rng, seed%4 == 0)
		}
		if err := w.open(); err != nil {
			t.Fatalf("seed %d, with room again: %v", seed, err)
		}
		if err := w.run(10); err != nil {
			t.Fatalf("seed %d, going on: %v", seed, err)
		}
	}
	if full < 20 {
		t.Errorf("the disk was full %d times only", full)
	}
}
