package log

import "testing"

// A cut inside a block is two changes on the disk: zeros to the block's end, and the size. When the power goes
// between them, the entries behind the block are still there, and they know the
// entries that the zeros took to have been durable. That is no damage: nobody counts on what was to be cut.
func TestPowerCutInsideATruncation(t *testing.T) {
	for seed := range uint64(400) {
		w := newWorld(seed)
		must(t, w.open())
		a := &appender{t: t, next: 1, term: 1}
		must(t, w.log.Write([]Entry{a.void("a"), a.void("b"), a.void("c")}, 0)) // one block
		must(t, w.log.Sync())
		for range 2 { // a block each
			must(t, w.log.Write([]Entry{a.void("d")}, 0))
			must(t, w.log.Sync())
		}
		w.fs.CrashAt(1 + int(seed%12))
		_, _, err := w.log.TruncateSuffix(3)
		if err == nil {
			continue // it takes fewer operations
		}
		_ = w.log.Close()
		w.fs = w.fs.Reboot(w.rng, true)
		w.cfg.FS = w.fs
		l, _, err := Open(w.cfg)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if last := l.LastIndex(); last < 2 || last > 5 {
			t.Errorf("seed %d: the log ends with entry %d", seed, last)
		}
		must(t, l.Close())
	}
}
