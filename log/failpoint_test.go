//go:build failpoint

package log

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// At every failpoint of the package, at its first and its second hit, the process is killed or the
// power goes: the log opens again and holds what was durable. Each place must be reached.
func TestCrashAtEveryFailpoint(t *testing.T) {
	defer failpoint.SetHook(nil)
	places, err := failpoint.Names(".")
	must(t, err)
	if len(places) < 20 {
		t.Fatalf("only %d failpoints", len(places))
	}
	for _, place := range places {
		for hit := 1; hit <= 2; hit++ {
			for mode := range uint64(3) { // kill, cut, cut and tear
				reached := 0
				for seed := mode; seed < 120 && reached < 3; seed++ {
					if crashAt(t, place, hit, mode, seed) {
						reached++
					}
				}
				if reached == 0 {
					t.Errorf("%s was never hit %d times", place, hit)
				}
			}
		}
	}
}

// crashAt uses a log, through power cuts now and then, until the place is hit so often.
func crashAt(t *testing.T, place string, hit int, mode, seed uint64) (reached bool) {
	t.Helper()
	w := newWorld(seed)
	crashed := failpoint.At(place, hit, func() { w.fs.CrashAt(1) })
	err := w.open()
	for n := 1; err == nil && n < 12 && !crashed(); n++ {
		if err = w.run(15); err == nil && n%2 == 0 {
			err = w.powerCut()
		}
	}
	if err == nil && crashed() {
		err = w.run(5)
	}
	if errors.Is(err, errModel) || err != nil && !errors.Is(err, sim.ErrCrashed) {
		t.Fatalf("%s, hit %d, mode %d, seed %d: %v", place, hit, mode, seed, err)
	}
	if !crashed() {
		return false
	}
	failpoint.SetHook(nil)
	if mode == 0 {
		w.fs = w.fs.Kill()
	} else {
		w.fs = w.fs.Reboot(rand.New(rand.NewPCG(seed, mode)), mode == 2)
	}
	if err := w.open(); err != nil {
		t.Fatalf("%s, hit %d, mode %d, seed %d, afterwards: %v", place, hit, mode, seed, err)
	}
	// What a killed process left in the page cache must not count as durable by itself.
	if err := w.run(5); err != nil {
		t.Fatalf("%s, hit %d, mode %d, seed %d, going on: %v", place, hit, mode, seed, err)
	}
	if err := w.powerCut(); err != nil {
		t.Fatalf("%s, hit %d, mode %d, seed %d, after a power cut: %v", place, hit, mode, seed, err)
	}
	return true
}
