//go:build failpoint

package log

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// At every failpoint of the package, at its first hits, the power goes: the log opens
// again and holds what was durable. Each place must be reached by the test at all.
func TestPowerCutAtEveryFailpoint(t *testing.T) {
	defer failpoint.SetHook(nil)
	for _, place := range failpoints(t) {
		reached := false
		for seed := range uint64(12) {
			for hit := 1; hit <= 3; hit++ {
				w := newWorld(seed)
				left := hit
				failpoint.SetHook(func(at string) {
					if at == place {
						if left--; left == 0 {
							reached = true
							w.fs.CrashAt(1)
						}
					}
				})
				err := w.open()
				for err == nil && left > 0 {
					if err = w.run(10); left > 0 && len(w.entries) > 300 {
						break
					}
				}
				if err == nil {
					err = w.run(3)
				}
				if errors.Is(err, errModel) || err != nil && !errors.Is(err, sim.ErrCrashed) {
					t.Fatalf("%s, hit %d, seed %d: %v", place, hit, seed, err)
				}
				failpoint.SetHook(nil)
				w.fs = w.fs.Reboot(rand.New(rand.NewPCG(seed, uint64(hit))), seed%2 == 0)
				if err := w.open(); err != nil {
					t.Fatalf("%s, hit %d, seed %d, after the cut: %v", place, hit, seed, err)
				}
			}
		}
		if !reached && place != "log/recover/cut" {
			t.Errorf("%s was never reached", place)
		}
	}
}

// failpoints are the names in the package's source.
func failpoints(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.go")
	must(t, err)
	var all []string
	for _, name := range names {
		b, err := os.ReadFile(name)
		must(t, err)
		for _, m := range regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`).FindAllSubmatch(b, -1) {
			all = append(all, string(m[1]))
		}
	}
	if len(all) < 20 {
		t.Fatalf("only %d failpoints", len(all))
	}
	return all
}
