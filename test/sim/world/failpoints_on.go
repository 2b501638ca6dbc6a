//go:build failpoint

package world

import (
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
)

// failpoints fires the places that failpoint.Hit names. In each run a quarter of them is active: they delay now and
// then, and when the nemesis has armed one, the process that meets it dies before its next operation on disk.
type failpoints struct {
	mu     sync.Mutex
	active map[string]bool
	names  []string // active ones, as they were met first
	armed  string   // the place that kills, or empty
	left   int      // after so many more hits
}

// install makes the process-wide hook this world's.
func (f *failpoints) install(w *World) (remove func()) {
	rng := source(w.options.Seed, "failpoints")
	f.active = map[string]bool{}
	failpoint.SetHook(func(place string) {
		f.mu.Lock()
		on, met := f.active[place]
		if !met {
			on = source(w.options.Seed, "failpoint "+place).IntN(4) == 0
			f.active[place] = on
			if on {
				f.names = append(f.names, place)
			}
		}
		var delay time.Duration
		if on && rng.IntN(100) == 0 {
			delay = time.Duration(rng.IntN(20_000)) * time.Microsecond
		}
		if on && f.armed == place {
			if f.left--; f.left < 0 {
				f.armed = ""
				w.dying.Store(&place)
				delay = 0
			}
		}
		f.mu.Unlock()
		if delay > 0 {
			time.Sleep(delay)
		}
	})
	return func() { failpoint.SetHook(nil) }
}

// arm makes the nemesis's choice of an active place kill.
func (f *failpoints) arm(pick func(n int) int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.names) == 0 {
		return ""
	}
	f.armed, f.left = f.names[pick(len(f.names))], pick(5)
	return f.armed
}
