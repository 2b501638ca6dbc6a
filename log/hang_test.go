package log

import (
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// Whichever call to the disk hangs while the log's locks are held, the watchdog sees a step that runs.
func TestEveryChangeOnTheDiskIsAStepOfTheWatchdog(t *testing.T) {
	w := newWorld(1) // with a pool
	must(t, w.open())
	for range 3 {
		for range 4 {
			must(t, w.write())
		}
		must(t, w.sync())
		must(t, w.roll())
	}
	check := func(what string, f func() error) {
		t.Helper()
		w.fs.SetHook(func(op sim.Op) sim.Fault {
			if op.Kind.Mutates() && w.log.writeOp.seq.Load()%2 == 0 && w.log.syncOp.seq.Load()%2 == 0 {
				t.Errorf("%s: operation %s on %s is no step", what, string(op.Kind), op.Name)
			}
			return sim.Fault{}
		})
		must(t, f())
		w.fs.SetHook(nil)
	}
	check("write", w.write)
	check("sync", w.sync)
	check("roll", w.roll)
	check("start", func() error { return w.log.SetStart(w.log.EndOffset()) })
	check("retain", func() error {
		w.log.SetRetention(Retention{Age: -1, Bytes: 0})
		n, err := w.log.Retain(w.last())
		if n == 0 {
			t.Error("nothing was given up")
		}
		return err
	})
	must(t, w.log.Close())
}
