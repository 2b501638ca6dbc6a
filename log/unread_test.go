package log

import (
	"errors"
	"syscall"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// A file that cannot be opened or read for the moment is no damage: the log opens when it can be.
func TestAFailedReadAtTheStartQuarantinesNobody(t *testing.T) {
	w := filled(t, 2)
	must(t, w.open())
	must(t, w.log.SetStart(w.entries[5].BaseOffset))
	w.log.SetRetention(Retention{Age: -1, Bytes: 0})
	if _, err := w.log.Retain(w.last()); err != nil {
		t.Fatal(err)
	}
	w.start = w.log.StartOffset()
	must(t, w.log.Close())
	for n := 0; ; n++ {
		seen, failed := 0, false
		w.fs.SetHook(func(op sim.Op) sim.Fault {
			if op.Kind != sim.OpOpen && op.Kind != sim.OpRead {
				return sim.Fault{}
			}
			if seen++; seen != n+1 {
				return sim.Fault{}
			}
			failed = true
			return sim.Fault{Err: syscall.EMFILE}
		})
		l, _, err := Open(w.cfg)
		w.fs.SetHook(nil)
		if err == nil {
			must(t, l.Close())
		} else if errors.Is(err, ErrCorrupt) {
			t.Fatalf("read %d fails: %v", n, err)
		}
		if l, _, err = Open(w.cfg); err != nil {
			t.Fatalf("after read %d failed: %v", n, err)
		}
		if l.LastIndex() != w.last() {
			t.Fatalf("after read %d failed the log ends at %d, not %d", n, l.LastIndex(), w.last())
		}
		must(t, l.Close())
		if !failed {
			t.Logf("%d reads", n)
			return
		}
	}
}
