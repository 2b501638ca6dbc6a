package log

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// filled makes a log of several segments, synced and closed, and returns its
// file system.
func filled(t *testing.T, rolls int) *world {
	t.Helper()
	w := newWorld(7)
	must(t, w.open())
	for k := range rolls + 1 {
		for range 4 {
			must(t, w.write())
		}
		must(t, w.sync())
		if k < rolls {
			must(t, w.roll())
		}
	}
	must(t, w.log.Close())
	return w
}

func (w *world) names(t *testing.T, suffix string) []string {
	t.Helper()
	entries, err := w.fs.ReadDir(worldDir)
	must(t, err)
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			names = append(names, filepath.Join(worldDir, e.Name()))
		}
	}
	return names
}

// use opens the log and reads all of it: it must come back as it was written, or
// the damage must be found. It tells whether it was found.
func (w *world) use(t *testing.T, what string) (found bool) {
	t.Helper()
	w.cfg.FS = w.fs
	l, rec, err := Open(w.cfg)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: %v", what, err)
		}
		if reason, err := quarantined(w.fs, worldDir); reason == "" {
			t.Fatalf("%s: no marker (%v)", what, err)
		}
		return true
	}
	defer l.Close()
	w.log = l
	if l.LastIndex() < w.acked || l.LastIndex() > w.last() {
		t.Fatalf("%s: log ends at %d, %d was acknowledged", what, l.LastIndex(), w.acked)
	}
	w.entries = w.entries[:l.LastIndex()-w.first+1]
	for i := l.FirstIndex(); i <= l.LastIndex(); i++ {
		e, err := l.Entry(i)
		if errors.Is(err, ErrCorrupt) {
			found = true
			continue
		}
		if err == nil {
			err = sameEntry(e, w.entries[i-w.first])
		}
		if err != nil {
			t.Fatalf("%s: entry %d: %v", what, i, err)
		}
	}
	if err := w.compareBatches(); err != nil && !errors.Is(err, ErrCorrupt) {
		t.Fatalf("%s: %v", what, err)
	}
	if found {
		if reason, _ := quarantined(w.fs, worldDir); reason == "" {
			t.Fatalf("%s: a read found damage and left no marker", what)
		}
	}
	return found || rec.IndexesRebuilt > 0 || rec.Repaired
}

// Whatever single bit flips in a segment: it is found when the log is opened or when the
// entry is read, and nothing else than what was written is ever served.
func TestBitFlipIsNeverServed(t *testing.T) {
	w := filled(t, 1)
	for k, name := range w.names(t, logSuffix) {
		f, err := w.fs.OpenFile(name, os.O_RDONLY, 0)
		must(t, err)
		size, _ := f.Size()
		must(t, f.Close())
		for at := int64(0); at < size; at += 1 + at%97 {
			v := *w
			v.fs = w.fs.Clone()
			must(t, v.fs.Corrupt(name, flip(at, uint(at%8))))
			found := v.use(t, fmt.Sprintf("segment %d, byte %d", k, at))
			if !found {
				found = verifyFinds(t, v.fs)
			}
			if !found {
				t.Fatalf("flip of byte %d of segment %d went unnoticed", at, k)
			}
		}
	}
}

func flip(at int64, bit uint) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 1 << bit
		return b
	}
}

// The last frame may be torn at any byte. Not acknowledged, it is cut, and the
// cut is told; acknowledged, the log is quarantined and nothing is cut.
func TestTornTailAtEveryByte(t *testing.T) {
	w := newWorld(3)
	must(t, w.open())
	a := &appender{t: t, next: 1, term: 1}
	must(t, w.log.Write([]Entry{a.accepted(2, 100, 5)}, 0))
	must(t, w.log.Sync())
	from := alignBlock(w.log.active().endPos)
	last := a.accepted(1, 900, 5)
	must(t, w.log.Write([]Entry{last}, 0))
	to := w.log.active().endPos
	notAcked := w.fs.Clone()
	must(t, w.log.Sync())
	must(t, w.log.Close())
	acked := w.fs.Clone()
	name := w.names(t, logSuffix)[0]

	for at := from; at < to; at++ {
		for _, tear := range []func([]byte) []byte{
			func(b []byte) []byte { return b[:at] },
			func(b []byte) []byte { clear(b[at:]); return b },
		} {
			v := *w
			v.fs = notAcked.Clone()
			must(t, v.fs.Corrupt(name, tear))
			v.cfg.FS = v.fs
			l, rec, err := Open(v.cfg)
			must(t, err)
			kept := l.LastIndex()
			if kept != 1 && !(kept == 2 && sameBytes(t, l, last)) || kept == 1 && at > from+8 && !rec.Repaired {
				t.Fatalf("torn at %d: last index %d, %+v", at, kept, rec)
			}
			must(t, l.Close())

			v.fs = acked.Clone()
			must(t, v.fs.Corrupt(name, tear))
			v.cfg.FS = v.fs
			l, _, err = Open(v.cfg)
			if err == nil && l.LastIndex() == 2 && sameBytes(t, l, last) {
				must(t, l.Close()) // only zeros were torn off
				continue
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("torn at %d although acknowledged: %v", at, err)
			}
		}
	}
}

func sameBytes(t *testing.T, l *Log, want Entry) bool {
	e, err := l.Entry(want.Index)
	return err == nil && sameEntry(e, want) == nil
}

func TestDamageAndWhatBecomesOfIt(t *testing.T) {
	remove := func(suffix string, k int) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { must(t, w.fs.Remove(w.names(t, suffix)[k])) }
	}
	change := func(suffix string, k int, f func([]byte) []byte) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { must(t, w.fs.Corrupt(w.names(t, suffix)[k], f)) }
	}
	swapBlocks := func(b []byte) []byte {
		x := append([]byte(nil), b[blockBytes:2*blockBytes]...)
		copy(b[blockBytes:], b[2*blockBytes:3*blockBytes])
		copy(b[2*blockBytes:], x)
		return b
	}
	appendBytes := func(more []byte) func([]byte) []byte {
		return func(b []byte) []byte { return append(b, more...) }
	}
	for _, c := range []struct {
		name string
		do   func(*testing.T, *world)
		lost bool // quarantined; otherwise all entries are there
	}{
		{"zeros after the tail are no entries", change(logSuffix, 2, appendBytes(make([]byte, 3*blockBytes))), false},
		{"garbage after the tail is cut", change(logSuffix, 2, appendBytes([]byte("garbage that no log has written, and more of it than eighty bytes, so that a header fits"))), false},
		{"the first segment is missing", remove(logSuffix, 0), true},
		{"a middle segment is missing", remove(logSuffix, 1), true},
		{"the last segment is missing", remove(logSuffix, 2), true},
		{"an index is missing", remove(indexSuffix, 0), false},
		{"an index is damaged", change(indexSuffix, 1, flip(60, 3)), false},
		{"an index is empty", change(indexSuffix, 1, func([]byte) []byte { return nil }), false},
		{"the start sidecar of the active segment is missing", remove(startSuffix, 2), false},
		{"the start sidecar of the active segment is damaged", change(startSuffix, 2, flip(40, 1)), false},
		{"all start sidecars are damaged", func(t *testing.T, w *world) {
			for k := range 3 {
				change(startSuffix, k, flip(30, 1))(t, w)
			}
		}, false}, // the log begins at index 1: everything can be replayed
		{"a footer is damaged", change(logSuffix, 0, func(b []byte) []byte { return flip(int64(len(b)-4000), 2)(b) }), false},
		{"a footer is cut off", change(logSuffix, 0, func(b []byte) []byte { return b[:len(b)-blockBytes] }), false},
		{"a sealed segment is cut short", change(logSuffix, 0, func(b []byte) []byte { return b[:2*blockBytes] }), true},
		{"sectors of the active segment are misdirected", change(logSuffix, 2, swapBlocks), true},
		{"the active segment is empty", change(logSuffix, 2, func(b []byte) []byte { return b[:blockBytes] }), true},
		{"the header of the active segment is zero", change(logSuffix, 2, func(b []byte) []byte { clear(b[:blockBytes]); return b }), true},
		{"the header of a sealed segment is damaged", change(logSuffix, 1, flip(50, 0)), true},
		{"the watermark is missing", remove(watermarkName, 0), false},
		{"the watermark is damaged", change(watermarkName, 0, flip(17, 0)), false},
		{"the watermark and the tail are damaged", func(t *testing.T, w *world) {
			change(watermarkName, 0, flip(17, 0))(t, w)
			change(logSuffix, 2, func(b []byte) []byte { b[len(b)-blockBytes+20] ^= 1; return b })(t, w)
		}, true},
		{"the last block comes from an earlier time", change(logSuffix, 2, func(b []byte) []byte {
			copy(b[len(b)-blockBytes:], b[blockBytes:])
			return b
		}), true},
		{"leftovers of a crash lie around", func(t *testing.T, w *world) {
			for _, name := range []string{"x.new", segmentName(9000, 9000) + indexSuffix, segmentName(9000, 9000) + startSuffix} {
				f, err := w.fs.OpenFile(filepath.Join(worldDir, name), os.O_CREATE|os.O_RDWR, 0)
				must(t, err)
				must(t, f.Close())
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := filled(t, 2)
			c.do(t, w)
			before := w.fs.Clone()
			w.cfg.FS = w.fs
			l, rec, err := Open(w.cfg)
			if c.lost {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("opened: %v", err)
				}
				if _, _, again := Open(w.cfg); !errors.Is(again, ErrCorrupt) || !strings.Contains(again.Error(), "marker") {
					t.Fatalf("second open: %v", again)
				}
				sameSegments(t, before, w)
				return
			}
			must(t, err)
			must(t, l.Close())
			t.Logf("%+v", rec)
			must(t, w.openAs(rec))
			must(t, w.log.Close())
		})
	}
}

// openAs opens and compares everything but the replay position, which may lie further back.
func (w *world) openAs(Recovery) error {
	l, _, err := Open(w.cfg)
	if err != nil {
		return err
	}
	w.log = l
	state, from := l.ActiveState()
	if state == nil && from != w.first {
		return fmt.Errorf("no state, replay from %d", from)
	}
	for i := w.first; i <= w.last(); i++ {
		e, err := l.Entry(i)
		if err == nil {
			err = sameEntry(e, w.entries[i-w.first])
		}
		if err != nil {
			return err
		}
	}
	return w.compareBatches()
}

// sameSegments: quarantine touches nothing.
func sameSegments(t *testing.T, before *sim.FS, w *world) {
	t.Helper()
	for _, name := range w.names(t, logSuffix) {
		if string(readAll(t, before, name)) != string(readAll(t, w.fs, name)) {
			t.Fatalf("%s was changed", name)
		}
	}
}

func readAll(t *testing.T, fs *sim.FS, name string) []byte {
	t.Helper()
	f, err := fs.OpenFile(name, os.O_RDONLY, 0)
	must(t, err)
	defer f.Close()
	size, err := f.Size()
	must(t, err)
	b := make([]byte, size)
	if size > 0 {
		_, err = f.ReadAt(b, 0)
		must(t, err)
	}
	return b
}

// A tail that was not synced may have lost its first write and kept a later
// one; a later frame that knew an earlier one to be durable proves damage.
func TestLaterFramesTellTornFromDamaged(t *testing.T) {
	for _, c := range []struct {
		name   string
		synced bool
	}{{"both writes unsynced: torn", false}, {"the first write was synced before the second: damage", true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(1)
			must(t, w.open())
			a := &appender{t: t, next: 1, term: 1}
			must(t, w.log.Write([]Entry{a.accepted(1, 10, 1)}, 0))
			must(t, w.log.Sync())
			at := alignBlock(w.log.active().endPos)
			mark := readAll(t, w.fs, filepath.Join(worldDir, watermarkName))
			must(t, w.log.Write([]Entry{a.accepted(1, 10, 1)}, 0))
			if c.synced {
				must(t, w.log.Sync())
			}
			must(t, w.log.Write([]Entry{a.accepted(1, 10, 1)}, 0))
			w.fs = w.fs.Clone()
			// The watermark is not synced: a power cut takes it back.
			must(t, w.fs.Corrupt(filepath.Join(worldDir, watermarkName), func([]byte) []byte { return mark }))
			must(t, w.fs.Corrupt(w.names(t, logSuffix)[0], func(b []byte) []byte { clear(b[at : at+blockBytes]); return b }))
			w.cfg.FS = w.fs
			l, rec, err := Open(w.cfg)
			if c.synced {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("opened: %v", err)
				}
				return
			}
			must(t, err)
			if !rec.Repaired || l.LastIndex() != 1 || rec.CutBytes == 0 {
				t.Fatalf("last index %d, %+v", l.LastIndex(), rec)
			}
			if len(w.names(t, asideSuffix)) != 1 {
				t.Fatal("the cut bytes were not kept")
			}
			must(t, l.Close())
		})
	}
}

func TestTruncationAtTheCommitIndexIsFatal(t *testing.T) {
	w := newWorld(1)
	must(t, w.open())
	a := &appender{t: t, next: 1, term: 1}
	must(t, w.log.Write([]Entry{a.void("a"), a.void("b"), a.void("c")}, 0))
	must(t, w.log.Sync())
	must(t, w.log.Write([]Entry{a.void("d")}, 2))
	if _, _, err := w.log.TruncateSuffix(2); !errors.Is(err, ErrPoisoned) || w.poisoned != 1 {
		t.Fatalf("truncated a committed entry: %v", err)
	}
}

func TestReadsStopAtRanges(t *testing.T) {
	w := newWorld(1)
	must(t, w.open())
	a := &appender{t: t, next: 1, term: 1}
	must(t, w.log.Write([]Entry{a.accepted(3, 10, 1), a.accepted(3, 10, 1)}, 0))
	must(t, w.log.Sync())
	must(t, w.log.SetStart(2))
	for _, c := range []struct {
		from, limit record.Offset
		batches     int
		err         error
	}{{0, 6, 0, ErrOutOfRange}, {2, 6, 2, nil}, {2, 3, 1, nil}, {3, 3, 0, nil}, {4, 3, 0, ErrOutOfRange}, {6, 100, 0, nil}, {7, 100, 0, ErrOutOfRange}, {5, 100, 1, nil}} {
		got, err := w.log.Read(c.from, c.limit, 1<<20)
		if !errors.Is(err, c.err) || len(got) != c.batches {
			t.Errorf("Read(%d, %d): %d batches, %v", c.from, c.limit, len(got), err)
		}
	}
}

// verifyFinds tells whether an inspection reports damage.
func verifyFinds(t *testing.T, fs *sim.FS) bool {
	t.Helper()
	r, err := Inspect(fs, worldDir, nil)
	must(t, err)
	return len(r.Damage) > 0 || r.TailBytes > 0
}

// A truncation must not fail for a damaged sidecar, or the replica would come up, be told
// to truncate, and die, again and again.
func TestTruncationWithoutASidecarReplaysFromFurtherBack(t *testing.T) {
	w := filled(t, 2)
	must(t, w.open())
	must(t, w.fs.Corrupt(w.names(t, startSuffix)[2], flip(40, 1)))
	_, from, err := w.log.TruncateSuffix(w.last())
	must(t, err)
	if state, again := w.log.ActiveState(); from != w.log.segments[1].header.first || again != from || state == nil {
		t.Fatalf("replay from %d, the segments begin at %d and %d", from, w.log.segments[1].header.first, w.log.segments[2].header.first)
	}
	w.entries = w.entries[:len(w.entries)-1]
	must(t, w.compare())
	must(t, w.log.Close())
}
