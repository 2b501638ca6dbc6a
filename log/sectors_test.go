package log

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// lived makes a log that has rolled, truncated, trimmed and given segments up, and its file
// system at an earlier time. Two of the same seed differ in topic and content, not in shape.
func lived(t *testing.T, topic byte) (w *world, earlier *sim.FS) {
	t.Helper()
	w = newWorld(7) // with a pool: segments are reused
	w.cfg.Topic[0], w.tag = topic, topic
	must(t, w.open())
	fill := func() {
		for range 6 {
			must(t, w.write())
			must(t, w.sync())
		}
	}
	for range 4 {
		fill()
		must(t, w.roll())
	}
	fill()
	w.commit = w.log.FirstIndex() + Index(len(w.entries))/2
	w.log.SetRetention(Retention{Age: -1, Bytes: 2 * MinSegmentBytes})
	gone, err := w.log.Retain(w.commit)
	must(t, err)
	if gone == 0 {
		t.Fatal("nothing was given up")
	}
	earlier, w.startEarlier = w.fs.Clone(), w.log.StartOffset()
	must(t, w.log.SetStart(w.entries[w.commit-w.first].BaseOffset))
	w.start = w.log.StartOffset()
	fill()
	must(t, w.roll())
	fill()
	must(t, w.truncateAt(w.last()-1))
	fill()
	must(t, w.log.Close())
	return w, earlier
}

// judge opens the log and reads all of it: it is as it was written, or the damage is found,
// and then nothing was cut.
func (w *world) judge(t *testing.T, what string) (found bool) {
	t.Helper()
	before := w.fs.Clone()
	found = w.use(t, what)
	if reason, _ := quarantined(w.fs, worldDir); reason != "" {
		sameSegments(t, before, w)
		return found
	}
	// A log start that was acknowledged and lost brings records back, and only those that
	// are still there whole; the replicated start above it hides them again.
	if start := w.log.StartOffset(); start > w.start || start < w.startEarlier {
		t.Fatalf("%s: the log starts at %d, not %d", what, start, w.start)
	}
	if state, from := w.log.ActiveState(); len(state) != 9 || state[8] != w.tag || Index(binary.LittleEndian.Uint64(state)) != from {
		t.Fatalf("%s: state %x, replay from %d", what, state, from)
	}
	return found
}

// A sector of any file holds what it held before, zeros, or what belongs to another place: of the same
// file, of another file, of another partition's file. Acknowledged records are served as they
// were or not at all, nothing of them is cut, and nobody's start or state is taken for this log's.
func TestStrayAndStaleSectors(t *testing.T) {
	w, earlier := lived(t, 1)
	twin, _ := lived(t, 2)
	files := w.names(t, "")
	step := 1
	if testing.Short() {
		step = 7
	}
	counts := map[string]int{}
	for k, name := range files {
		if filepath.Base(name) == lockName {
			continue
		}
		own := readAll(t, w.fs, name)
		sources := map[string][]byte{
			"zeros": make([]byte, len(own)),
			"stale": readIfThere(earlier, name),
			"shift": append(append([]byte(nil), own[min(len(own), sim.SectorBytes):]...), own[:min(len(own), sim.SectorBytes)]...),
			"cross": readAll(t, w.fs, files[(k+1)%len(files)]),
			"twin":  readIfThere(twin.fs, name),
		}
		for at := 0; at < len(own); at += step * sim.SectorBytes {
			for _, kind := range []string{"zeros", "stale", "shift", "cross", "twin"} {
				end := min(at+sim.SectorBytes, len(own))
				src := sources[kind]
				if len(src) < end || bytes.Equal(src[at:end], own[at:end]) {
					continue
				}
				v := *w
				v.fs = w.fs.Clone()
				must(t, v.fs.Corrupt(name, func(b []byte) []byte { copy(b[at:end], src[at:end]); return b }))
				what := fmt.Sprintf("%s at sector %d of %s", kind, at/sim.SectorBytes, filepath.Base(name))
				found := v.judge(t, what) || verifyFinds(t, v.fs)
				counts[kind]++
				if filepath.Ext(name) == logSuffix && !found {
					t.Errorf("%s went unnoticed", what)
				}
			}
		}
	}
	t.Log(counts)
	for _, kind := range []string{"zeros", "stale", "shift", "cross", "twin"} {
		if counts[kind] == 0 {
			t.Errorf("no sector was %s", kind)
		}
	}
}

func readIfThere(fs *sim.FS, name string) []byte {
	f, err := fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	size, _ := f.Size()
	b := make([]byte, size)
	n, _ := f.ReadAt(b, 0)
	return b[:n]
}

// diskFaults are what a disk does to one write of a segment while it says that all is well.
var diskFaults = map[string]func(sim.Op, *rand.Rand) sim.Fault{
	"bit flip":            sim.FlipBit,
	"lost write":          sim.LoseSectors,
	"misdirected write":   sim.MisdirectSectors(""),
	"written to acked":    writtenTo(watermarkName),
	"written to logstart": writtenTo(logStartName),
}

// writtenTo misdirects the first sector to the begin of another file.
func writtenTo(name string) func(sim.Op, *rand.Rand) sim.Fault {
	return func(op sim.Op, _ *rand.Rand) sim.Fault {
		return sim.Fault{Stray: func(off int64) *sim.Place {
			if off != op.Off {
				return nil
			}
			return &sim.Place{Name: filepath.Join(worldDir, name)}
		}}
	}
}

// One write of a segment goes wrong in silence while the log is used. What was acknowledged is
// served as it was, or the damage is found, at once or after a restart.
func TestWritesThatGoAstray(t *testing.T) {
	rounds := uint64(60)
	if testing.Short() {
		rounds = 12
	}
	for name, do := range diskFaults {
		hits, found := 0, 0
		for seed := range rounds {
			w := newWorld(seed)
			hit := false
			w.fs.SetHook(sim.Plan(w.rng, sim.Rule{
				Path: "*" + logSuffix, Kinds: []sim.Kind{sim.OpWrite}, Skip: int(seed % 15), Max: 1,
				Do: func(op sim.Op, rng *rand.Rand) sim.Fault { hit = true; return do(op, rng) },
			}))
			err := w.open()
			if err == nil {
				err = w.run(40)
			}
			if err == nil {
				err = w.sync()
			}
			if !hit {
				continue
			}
			hits++
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s, seed %d: %v", name, seed, err)
			}
			if err == nil {
				_ = w.log.Close()
			}
			w.fs = w.fs.Kill()
			if reason, _ := quarantined(w.fs, worldDir); reason != "" || err != nil ||
				w.use(t, fmt.Sprintf("%s, seed %d", name, seed)) || verifyFinds(t, w.fs) {
				found++
			}
		}
		t.Logf("%s: %d writes, %d found", name, hits, found)
		if hits < int(rounds)/3 || found == 0 { // what hits only padding changes nothing
			t.Errorf("%s: %d of %d rounds had one, %d were found", name, hits, rounds, found)
		}
	}
}

// What was not acknowledged may go, and goes without a quarantine: damage above the
// watermark is a torn tail, whatever it looks like.
func TestDamageAboveTheWatermarkIsRepaired(t *testing.T) {
	for _, name := range []string{"bit flip", "lost write", "misdirected write"} {
		repaired := 0
		for seed := range uint64(40) {
			w := newWorld(2 * seed)
			must(t, w.open())
			for range 4 {
				must(t, w.write())
			}
			must(t, w.sync())
			w.fs.SetHook(sim.Plan(w.rng, sim.Rule{Path: "*" + logSuffix, Kinds: []sim.Kind{sim.OpWrite}, Max: 1, Do: diskFaults[name]}))
			safe := readAll(t, w.fs, w.names(t, logSuffix)[0])
			must(t, w.write())
			w.fs.SetHook(nil)
			acked := w.acked
			if !bytes.HasPrefix(readAll(t, w.fs, w.names(t, logSuffix)[0]), safe) {
				continue // it came down on what is acknowledged
			}
			w.fs = w.fs.Kill()
			w.cfg.FS = w.fs
			l, rec, err := Open(w.cfg)
			if err != nil {
				t.Fatalf("%s, seed %d: %v", name, seed, err)
			}
			if l.LastIndex() < acked {
				t.Fatalf("%s, seed %d: the log ends at %d, %d was acknowledged", name, seed, l.LastIndex(), acked)
			}
			if rec.Repaired {
				repaired++
			}
			w.log, w.entries = l, w.entries[:l.LastIndex()-w.first+1]
			must(t, w.compare())
			must(t, l.Close())
		}
		t.Logf("%s: repaired %d times", name, repaired)
		if repaired < 5 {
			t.Errorf("%s: repaired %d times only", name, repaired)
		}
	}
}

// A disk that says that it failed: nothing more is acknowledged, and what was is there afterwards.
func TestDiskErrorsAtRandom(t *testing.T) {
	for _, kind := range []sim.Kind{sim.OpRead, sim.OpWrite, sim.OpSync, sim.OpSyncDir, sim.OpRename} {
		failed := 0
		for seed := range uint64(30) {
			w := newWorld(seed)
			w.cfg.Budget = NewBudget(1) // reads go to the disk
			must(t, w.open())
			w.fs.SetHook(sim.Plan(w.rng, sim.Rule{Kinds: []sim.Kind{kind}, P: 0.3, Skip: int(seed) / 6, Max: 1, Do: sim.Fail(syscall.EIO)}))
			err := w.run(60)
			if err != nil {
				failed++
			}
			if errors.Is(err, errModel) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, syscall.EIO) {
				t.Fatalf("%s, seed %d: %v", string(kind), seed, err)
			}
			w.fs.SetHook(nil)
			_ = w.log.Close()
			quarantinedNow, _ := quarantined(w.fs, worldDir)
			w.fs = w.fs.Reboot(w.rng, seed%2 == 0)
			if err := w.open(); err != nil && (quarantinedNow == "" || !errors.Is(err, ErrCorrupt)) {
				t.Fatalf("%s, seed %d, afterwards: %v", string(kind), seed, err)
			}
		}
		t.Logf("%s: %d of 30 failed", string(kind), failed)
		if failed < 3 {
			t.Errorf("%s failed %d times only", string(kind), failed)
		}
	}
}
