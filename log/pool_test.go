package log

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

const poolDir = "/data/pool"

func openPool(t *testing.T, fs *sim.FS) *Pool {
	t.Helper()
	p, err := OpenPool(fs, poolDir, 16*MinSegmentBytes)
	must(t, err)
	p.min = blockBytes
	return p
}

// fillSegment fills the active segment with entries that name themselves, and rolls.
func fillSegment(t *testing.T, l *Log, a *appender) {
	t.Helper()
	for !l.NeedsRoll(9000) {
		must(t, l.Write([]Entry{a.accepted(1, 8000, 1)}, 0))
	}
	must(t, l.Roll(nil))
}

func TestGivenUpSegmentsAreUsedAgain(t *testing.T) {
	fs := sim.New()
	cfg := testConfig(worldDir)
	cfg.FS, cfg.Pool = fs, openPool(t, fs)
	l := mustOpen(t, cfg)
	l.SetRetention(Retention{Age: -1, Bytes: 0})
	a := &appender{t: t, next: 1, term: 1}
	for range 6 {
		fillSegment(t, l, a)
		_, err := l.Retain(l.Durable())
		must(t, err)
	}
	g := l.active()
	if !g.header.recycled {
		t.Fatal("the active segment is a new file")
	}
	// The file is full of frames of earlier uses; they are neither entries nor damage.
	must(t, l.Write([]Entry{a.accepted(1, 10, 1)}, 0))
	must(t, l.Sync())
	last := l.LastIndex()
	must(t, l.Close())
	l, rec, err := Open(cfg)
	must(t, err)
	if l.LastIndex() != last || rec.Repaired {
		t.Fatalf("last index %d, want %d; %+v", l.LastIndex(), last, rec)
	}
	report, err := Inspect(fs, worldDir, nil)
	must(t, err)
	if len(report.Damage) > 0 || report.TailBytes != 0 || !report.Segments[0].Recycled {
		t.Fatalf("%+v", report)
	}
	must(t, l.Close())
}

func TestPoolWaitsForTheLastReader(t *testing.T) {
	fs := sim.New()
	cfg := testConfig(worldDir)
	cfg.FS, cfg.Pool, cfg.Budget = fs, openPool(t, fs), NewBudget(1)
	l := mustOpen(t, cfg)
	defer l.Close()
	a := &appender{t: t, next: 1, term: 1}
	fillSegment(t, l, a)
	ref := l.segments[0].ref
	f, err := ref.acquire()
	must(t, err)
	before := make([]byte, MinSegmentBytes/2)
	_, err = f.ReadAt(before, 0)
	must(t, err)
	l.SetRetention(Retention{Age: -1, Bytes: 0})
	_, err = l.Retain(l.Durable())
	must(t, err)
	fillSegment(t, l, a)
	if l.active().header.recycled {
		t.Fatal("a file with a reader was used again")
	}
	now := make([]byte, len(before))
	_, err = f.ReadAt(now, 0)
	must(t, err)
	if !bytes.Equal(before, now) {
		t.Fatal("the file changed under its reader")
	}
	ref.release()
	fillSegment(t, l, a)
	if !l.active().header.recycled {
		t.Fatal("the file was not used again after its reader left")
	}
}

// Two names of one file in the pool would put two segments into it. A name that the
// disk still holds after the file went on must never count.
func TestPowerCutLeavesNoFileInThePoolTwice(t *testing.T) {
	for seed := range uint64(40) {
		fs := sim.New()
		cfg := testConfig(worldDir)
		cfg.FS, cfg.Pool = fs, openPool(t, fs)
		l := mustOpen(t, cfg)
		l.SetRetention(Retention{Age: -1, Bytes: 0})
		a := &appender{t: t, next: 1, term: 1}
		// Two files take turns: the one whose name is synced here is taken in the
		// next round and given back, under another name, in the last.
		for k := range 5 {
			fillSegment(t, l, a)
			_, err := l.Retain(l.Durable())
			must(t, err)
			if k == 2 {
				must(t, fs.SyncDir(poolDir)) // as a journal does now and then
			}
		}
		fs = fs.Reboot(rand.New(rand.NewPCG(seed, 0)), true)
		p := openPool(t, fs)
		for k, c := range p.free {
			f, err := fs.OpenFile(c.path, os.O_RDWR, filePerm)
			must(t, err)
			mark := fmt.Appendf(nil, "%8d", k)
			_, err = f.WriteAt(mark, 512)
			must(t, err)
			must(t, f.Close())
		}
		for k, c := range p.free {
			if got := readAll(t, fs, c.path)[512:520]; string(got) != fmt.Sprintf("%8d", k) {
				t.Fatalf("seed %d: files %d and %s of the pool are one", seed, k, got)
			}
		}
	}
}

func TestPoolIsBounded(t *testing.T) {
	fs := sim.New()
	p := openPool(t, fs)
	for {
		c, ok := p.room(MinSegmentBytes)
		if !ok {
			break
		}
		f, err := fs.OpenFile(c.path, os.O_CREATE|os.O_RDWR, filePerm)
		must(t, err)
		must(t, f.Truncate(MinSegmentBytes))
		must(t, f.Close())
		if _, ok := p.room(0); ok {
			t.Fatal("an empty file has a place in the pool")
		}
	}
	if p.Bytes() != 16*MinSegmentBytes {
		t.Fatalf("%d bytes", p.Bytes())
	}
	// None of the files was marked free: a new start trusts none of them.
	if p = openPool(t, fs); p.Bytes() != 0 || len(p.free) != 0 {
		t.Fatalf("%d bytes of files that are not free", p.Bytes())
	}
}
