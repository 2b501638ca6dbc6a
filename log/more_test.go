package log

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// The model again, with steps that rapid can take away to find the shortest
// sequence that fails; a power cut may come between any two.
func TestModelOfShortSequences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.Uint64Range(0, 1).Draw(t, "pool"))
		if err := w.open(); err != nil {
			t.Fatal(err)
		}
		steps := []func() error{w.write, w.sync, w.roll, w.truncate, w.retain, w.setStart, w.reopen, w.powerCut}
		for _, k := range rapid.SliceOfN(rapid.IntRange(0, len(steps)-1), 1, 30).Draw(t, "steps") {
			if err := steps[k](); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.compare(); err != nil {
			t.Fatal(err)
		}
	})
}

func (w *world) powerCut() error {
	w.fs = w.fs.Reboot(w.rng, w.rng.IntN(2) == 0)
	return w.open()
}

func TestReadErrorQuarantines(t *testing.T) {
	w := newWorld(1)
	w.cfg.Budget = NewBudget(1)
	told := 0
	w.cfg.OnCorrupt = func(error) { told++ }
	must(t, w.open())
	for range 10 {
		must(t, w.write())
	}
	must(t, w.sync())
	w.fs.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpRead && strings.HasSuffix(op.Name, logSuffix) {
			return sim.Fault{Err: syscall.EIO}
		}
		return sim.Fault{}
	})
	for range 2 {
		if _, err := w.log.Entry(1); !errors.Is(err, ErrCorrupt) || errs.CodeOf(err) != errs.ReplicaQuarantined {
			t.Fatalf("entry behind a bad sector: %v", err)
		}
	}
	w.fs.SetHook(nil)
	if told != 1 {
		t.Fatalf("OnCorrupt was called %d times", told)
	}
	_ = w.log.Close()
	w.cfg.FS = w.fs
	if _, _, err := Open(w.cfg); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a quarantined log opened: %v", err)
	}
}

func TestSecondOpenIsLockedOut(t *testing.T) {
	cfg := testConfig(t.TempDir())
	l := mustOpen(t, cfg)
	if _, _, err := Open(cfg); !errors.Is(err, ErrLocked) {
		t.Fatalf("second open: %v", err)
	}
	must(t, l.Close())
	must(t, mustOpen(t, cfg).Close())
}

func TestSegmentsRollByAgeAndSize(t *testing.T) {
	cfg := testConfig(worldDir)
	manual := clock.NewManual(time.UnixMilli(1_000_000))
	cfg.FS, cfg.Clock = sim.New(), manual
	l := mustOpen(t, cfg)
	defer l.Close()
	if l.NeedsRoll(1 << 30) {
		t.Fatal("an empty log needs no roll")
	}
	a := &appender{t: t, next: 1, term: 1}
	must(t, l.Write([]Entry{a.accepted(1, 10, 1_000_000)}, 0))
	l.SetSegment(1<<20, time.Hour)
	if l.NeedsRoll(1000) || !l.NeedsRoll(1<<20) {
		t.Fatal("by size")
	}
	manual.Advance(61 * time.Minute)
	if !l.NeedsRoll(1) {
		t.Fatal("by age")
	}
	must(t, l.Roll(nil))
	if l.NeedsRoll(1 << 30) {
		t.Fatal("an empty segment needs no roll")
	}
	must(t, l.Roll(nil)) // and a roll does nothing
	must(t, l.Write([]Entry{a.accepted(1, 10, 1_000_000)}, 0))
	l.SetSegment(1<<20, 0)
	if l.NeedsRoll(0) {
		t.Fatal("without a limit")
	}
	l.SetRetention(Retention{Age: time.Hour, Bytes: -1})
	if !l.NeedsRoll(0) || l.NeedsRoll(1) {
		t.Fatal("by retention, when nothing is written")
	}
	if l.Stats().Segments != 2 {
		t.Fatal(l.Stats())
	}
}

func TestWriteRefusesWhatDoesNotContinueTheLog(t *testing.T) {
	w := newWorld(1)
	must(t, w.open())
	a := &appender{t: t, next: 1, term: 5}
	must(t, w.log.Write([]Entry{a.accepted(2, 10, 1)}, 0))
	good := a.accepted(1, 10, 1)
	ops := w.fs.Ops()
	for name, change := range map[string]func(*Entry){
		"a gap":                  func(e *Entry) { e.Index++ },
		"a repeated index":       func(e *Entry) { e.Index-- },
		"an older term":          func(e *Entry) { e.Term-- },
		"an offset gap":          func(e *Entry) { e.BaseOffset++ },
		"an offset given before": func(e *Entry) { e.BaseOffset-- },
		"meta beyond the body":   func(e *Entry) { e.MetaBytes = len(e.Body) + 1 },
		"half a batch":           func(e *Entry) { e.Body = e.Body[:len(e.Body)-1] },
		"two batches":            func(e *Entry) { e.Body = append(e.Body, e.Body[testMeta:]...) },
		"no batch":               func(e *Entry) { e.Body = e.Body[:testMeta] },
	} {
		e := good
		change(&e)
		if err := w.log.Write([]Entry{e}, 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.fs.Ops() != ops || w.poisoned > 0 {
		t.Fatal("a refused entry touched the disk")
	}
	must(t, w.log.Write([]Entry{good}, 0))
}

func TestMetricsCount(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(1)
	w.cfg.Metrics = NewMetrics(reg)
	must(t, w.open())
	must(t, w.write())
	must(t, w.sync())
	must(t, w.roll())
	families, err := reg.Gather()
	must(t, err)
	counted := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "tidemark_log_") || f.GetHelp() == "" {
			t.Errorf("metric %s", f.GetName())
		}
		counted[f.GetName()] = f.GetMetric()[0].GetCounter().GetValue()
	}
	if counted["tidemark_log_rolled_segments_total"] != 1 || counted["tidemark_log_written_entries_total"] < 1 {
		t.Fatal(counted)
	}
	must(t, w.log.Close())
}

// A log of a newer format is whole: it is refused without a quarantine, because the
// program that wrote it will want it back.
func TestNewerFormatIsRefusedAndLeftAlone(t *testing.T) {
	w := filled(t, 1)
	must(t, w.fs.Corrupt(w.names(t, logSuffix)[0], func(b []byte) []byte {
		binary.LittleEndian.PutUint32(b[8:], formatVersion+1)
		binary.LittleEndian.PutUint32(b[headerBytes-4:], crc32.Checksum(b[:headerBytes-4], castagnoli))
		return b
	}))
	w.cfg.FS = w.fs
	if _, _, err := Open(w.cfg); !errors.Is(err, ErrFormat) || errors.Is(err, ErrCorrupt) {
		t.Fatalf("opened: %v", err)
	}
	if reason, err := quarantined(w.fs, worldDir); reason != "" || err != nil {
		t.Fatalf("quarantined: %q, %v", reason, err)
	}
}

// A log of version 1, whose small files name no owner, gets a watermark of today when it
// is opened; the rest as it is written anew.
func TestAnOldWatermarkIsReplaced(t *testing.T) {
	dir := t.TempDir()
	copyDir(t, "testdata/v1", dir)
	l := mustOpen(t, testConfig(dir))
	must(t, l.Close())
	b, err := os.ReadFile(filepath.Join(dir, watermarkName))
	must(t, err)
	if w, err := decodeWatermark(l.cfg.owner(), b); err != nil || w.old || w.index != 11 {
		t.Fatalf("%+v, %v", w, err)
	}
}

// The process that made the directories died before it synced them. The next one must not
// acknowledge anything in a directory that a power cut takes away.
func TestDirectoriesOfADeadProcessAreSynced(t *testing.T) {
	w := newWorld(0)
	must(t, w.fs.MkdirAll("/data", dirPerm)) // the data directory, the broker's
	must(t, w.fs.SyncDir("/"))
	must(t, w.fs.MkdirAll(worldDir, dirPerm))
	must(t, w.open())
	must(t, w.write())
	must(t, w.sync())
	w.fs = w.fs.Reboot(w.rng, false)
	must(t, w.open())
	if len(w.entries) == 0 {
		t.Fatal("nothing is left")
	}
}
