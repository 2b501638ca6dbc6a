package log

import (
	"errors"
	"flag"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// More seeds, and others: go test ./log -run Power -seeds 100 -from 1000
var (
	seeds = flag.Uint64("seeds", 3, "how many seeds the crash tests run")
	from  = flag.Uint64("from", 0, "their first seed")
)

func TestModel(t *testing.T) {
	for seed := *from; seed < *from+10**seeds; seed++ {
		w := newWorld(seed)
		if err := w.open(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := w.run(120); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := w.compare(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		must(t, w.log.Close())
	}
}

// crashSteps is long enough for rolls, truncations and retention to meet.
const crashSteps = 45

// A power cut at every single operation leaves a log that opens, that holds all that was
// durable, and that invents nothing; twice in a row, so that recovery itself is cut too.
func TestPowerCutAtEveryOperation(t *testing.T) {
	for seed := *from; seed < *from+*seeds; seed++ {
		for n := 1; ; n++ {
			tear := n%3 != 0
			w := newWorld(seed)
			w.fs.CrashAt(n)
			err := w.open()
			if err == nil {
				err = w.run(crashSteps)
			}
			if err == nil {
				break // n is beyond the last operation
			}
			if errors.Is(err, errModel) || !errors.Is(err, sim.ErrCrashed) {
				t.Fatalf("seed %d, cut at %d: %v", seed, n, err)
			}
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			w.fs = w.fs.Reboot(rng, tear)
			w.fs.CrashAt(1 + n%11)
			if err = w.open(); err != nil {
				if !errors.Is(err, sim.ErrCrashed) {
					t.Fatalf("seed %d, cut at %d, tear %v: %v", seed, n, tear, err)
				}
				w.fs = w.fs.Reboot(rng, tear)
				if err := w.open(); err != nil {
					t.Fatalf("seed %d, cut at %d and %d later, tear %v: %v", seed, n, 1+n%11, tear, err)
				}
			}
			w.fs.SetHook(nil)
			if err := w.run(10); err != nil {
				t.Fatalf("seed %d, cut at %d, going on: %v", seed, n, err)
			}
		}
	}
}

// An operation that fails ends the log, and says so once. A new start on the
// same machine, where the kernel may hold pages it could not write, and a power cut after
// that lose nothing that was durable, either time.
func TestFailedOperationPoisons(t *testing.T) {
	for seed := *from; seed < *from+*seeds; seed++ {
		for n := 1; ; n++ {
			w := newWorld(seed)
			must(t, w.open())
			at, failed := w.fs.Ops()+n, false
			w.fs.SetHook(func(op sim.Op) sim.Fault {
				if op.N == at && op.Kind.Mutates() {
					failed = true
					return sim.Fault{Err: []error{syscall.EIO, syscall.ENOSPC}[n%2], Short: n % 3 * 500}
				}
				return sim.Fault{}
			})
			err := w.run(crashSteps)
			if !failed {
				break // n is beyond the last operation
			}
			if errors.Is(err, errModel) {
				t.Fatalf("seed %d, failure at %d: %v", seed, n, err)
			}
			if errors.Is(err, ErrPoisoned) {
				checkPoisoned(t, w)
			}
			_ = w.log.Close()
			w.fs.SetHook(nil)
			if err := w.open(); err != nil {
				t.Fatalf("seed %d, failure at %d, new start: %v", seed, n, err)
			}
			if n%2 == 0 {
				if err := w.run(8); err != nil {
					t.Fatalf("seed %d, failure at %d, going on: %v", seed, n, err)
				}
			}
			w.fs = w.fs.Reboot(rand.New(rand.NewPCG(seed, uint64(n))), n%3 == 0)
			if err := w.open(); err != nil {
				t.Fatalf("seed %d, failure at %d, power cut after the new start: %v", seed, n, err)
			}
		}
	}
}

func checkPoisoned(t *testing.T, w *world) {
	t.Helper()
	ops := w.fs.Ops()
	e := Entry{Index: w.log.LastIndex() + 1, Term: w.term, BaseOffset: w.log.EndOffset()}
	for what, err := range map[string]error{
		"write": w.log.Write([]Entry{e}, 0), "sync": w.log.Sync(), "roll": w.log.Roll(nil), "set start": w.log.SetStart(1 << 40),
	} {
		if !errors.Is(err, ErrPoisoned) {
			t.Fatalf("%s after poison: %v", what, err)
		}
	}
	if w.fs.Ops() != ops {
		t.Fatal("a poisoned log touched the disk")
	}
	if w.poisoned != 1 {
		t.Fatalf("OnPoison was called %d times", w.poisoned)
	}
}
