package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// differ counts the bits, and lists the sectors, in which two contents differ.
func differ(a, b []byte) (n int, at []int) {
	for i := range a {
		if d := bits.OnesCount8(a[i] ^ b[i]); d > 0 {
			n += d
			if s := i / SectorBytes; len(at) == 0 || at[len(at)-1] != s {
				at = append(at, s)
			}
		}
	}
	return n, at
}

func sectorsOf(first byte, n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, bytes.Repeat([]byte{first + byte(i)}, SectorBytes)...)
	}
	return b
}

func plan(s *FS, rules ...Rule) { s.SetHook(Plan(rng(), rules...)) }

func TestFlippedBitOfAReadIsGoneWithTheNext(t *testing.T) {
	s := New()
	want := sectorsOf(1, 3)
	create(t, s, "/a", want, true, true)
	plan(s, Rule{Path: "a", Kinds: []Kind{OpRead}, Max: 1, Do: FlipBit})
	if n, _ := differ(read(t, s, "/a"), want); n != 1 {
		t.Fatalf("%d bits are wrong", n)
	}
	if !bytes.Equal(read(t, s, "/a"), want) {
		t.Fatal("the disk itself was changed")
	}
}

func TestFlippedBitOfAWriteStays(t *testing.T) {
	s := New()
	plan(s, Rule{Kinds: []Kind{OpWrite}, Do: FlipBit})
	want := sectorsOf(1, 3)
	f := create(t, s, "/a", want, true, true)
	if want[0] != 1 || want[len(want)-1] != 3 {
		t.Fatal("the caller's bytes were changed")
	}
	defer f.Close()
	if n, _ := differ(read(t, s.Reboot(rng(), false), "/a"), want); n != 1 {
		t.Fatalf("%d bits are wrong", n)
	}
}

func TestRotFlipsBitsAtRest(t *testing.T) {
	s := New()
	for _, name := range []string{"/x.log", "/y.log", "/z.idx"} {
		create(t, s, name, sectorsOf(1, 3), true, true)
	}
	hit := s.Rot(rng(), "*.log", 1)
	if len(hit) != 1 || !strings.HasSuffix(hit[0], ".log") {
		t.Fatalf("hit %v", hit)
	}
	s = s.Reboot(rng(), false)
	for _, name := range []string{"/x.log", "/y.log", "/z.idx"} {
		n, _ := differ(read(t, s, name), sectorsOf(1, 3))
		if (n == 1) != (name == hit[0]) {
			t.Errorf("%s: %d bits are wrong", name, n)
		}
	}
}

func TestLostWriteBringsOldSectorsBack(t *testing.T) {
	s := New()
	f := create(t, s, "/a", sectorsOf(1, 4), true, true)
	plan(s, Rule{Kinds: []Kind{OpWrite}, Do: LoseSectors})
	if n, err := f.WriteAt(sectorsOf(101, 6), 0); n != 6*SectorBytes || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, after := range []*FS{s.Clone(), s.Reboot(rng(), false)} {
		got := read(t, after, "/a")
		if len(got) != 6*SectorBytes {
			t.Fatalf("the file has %d bytes", len(got))
		}
		lost := 0
		for i := range 6 {
			old := byte(0)
			if i < 4 {
				old = byte(1 + i)
			}
			switch c := got[i*SectorBytes]; c {
			case old:
				lost++
			case byte(101 + i):
			default:
				t.Errorf("sector %d holds %d", i, c)
			}
		}
		if lost == 0 {
			t.Error("nothing was lost")
		}
	}
}

func TestMisdirectedWriteLandsElsewhere(t *testing.T) {
	for _, to := range []string{"", "/b"} {
		landed := 0
		for seed := range uint64(20) {
			s := New()
			create(t, s, "/b", sectorsOf(51, 200), true, true)
			f := create(t, s, "/a", sectorsOf(1, 200), true, true)
			s.SetHook(Plan(rand.New(rand.NewPCG(seed, 0)), Rule{Path: "a", Kinds: []Kind{OpWrite}, Do: MisdirectSectors(to)}))
			if _, err := f.WriteAt(sectorsOf(201, 2), 4*SectorBytes); err != nil {
				t.Fatal(err)
			}
			s = s.Reboot(rng(), false) // what went astray is there without any sync
			_, inA := differ(read(t, s, "/a"), sectorsOf(1, 200))
			_, inB := differ(read(t, s, "/b"), sectorsOf(51, 200))
			if to == "" && len(inB) > 0 || to != "" && len(inA) > 0 || len(inA) > 2 || len(inB) > 2 {
				t.Fatalf("to %q, seed %d: sectors %v of a and %v of b changed", to, seed, inA, inB)
			}
			landed += len(inA) + len(inB)
		}
		if landed < 20 {
			t.Errorf("to %q: %d sectors landed", to, landed)
		}
	}
}

func TestPlanIsReproducible(t *testing.T) {
	run := func() (trace string) {
		s := New()
		s.SetHook(Plan(rand.New(rand.NewPCG(7, 7)),
			Rule{Path: "*.log", Kinds: []Kind{OpWrite}, P: 0.3, Do: LoseSectors},
			Rule{Kinds: []Kind{OpWrite, OpSync}, P: 0.2, Do: Fail(syscall.EIO)},
			Rule{Kinds: []Kind{OpWrite}, P: 0.5, Do: MisdirectSectors("/y.log")}))
		for _, name := range []string{"/x.log", "/y.log", "/z"} {
			f, err := s.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 30 {
				n, err := f.WriteAt(sectorsOf(byte(i), 3), int64(i*700))
				trace += fmt.Sprint(n, err, f.Sync())
			}
		}
		for _, name := range []string{"/x.log", "/y.log", "/z"} {
			trace += string(read(t, s, name))
		}
		return trace
	}
	if first, second := run(), run(); first != second {
		t.Fatal("two runs with one seed differ")
	}
}

func TestRulesCount(t *testing.T) {
	s := New()
	f := create(t, s, "/d/../a", nil, false, false)
	plan(s, Rule{Path: "a", Kinds: []Kind{OpSync}, Skip: 2, Max: 3, Do: Fail(syscall.EIO)})
	var got []int
	for i := range 8 {
		if err := f.Sync(); errors.Is(err, syscall.EIO) {
			got = append(got, i)
		}
	}
	if fmt.Sprint(got) != "[2 3 4]" {
		t.Fatalf("syncs %v failed", got)
	}
	if r := (Rule{Path: "/d/*/a"}); !r.matches(Op{Name: "/d/x/a"}) || r.matches(Op{Name: "/d/x/b"}) {
		t.Fatal("a pattern with slashes is for the whole name")
	}
}

func TestReadError(t *testing.T) {
	s := New()
	create(t, s, "/a", []byte("x"), true, true)
	plan(s, Rule{Kinds: []Kind{OpRead}, Max: 1, Do: Fail(syscall.EIO)})
	if _, err := fsx.ReadFile(s, "/a", 10); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	read(t, s, "/a")
}

func TestSlowSyncDoesNotCoverWhatIsWrittenMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		f := create(t, s, "/a", []byte("one"), true, true)
		f.WriteAt([]byte("two"), 0)
		plan(s, Rule{Kinds: []Kind{OpSync}, Max: 1, Do: Slow(time.Second, 2*time.Second)})
		begin := time.Now()
		done := make(chan error)
		go func() { done <- f.Sync() }()
		synctest.Wait()
		f.WriteAt([]byte("SIX"), 0) // does not wait for the sync
		if d := time.Since(begin); d != 0 {
			t.Errorf("a write took %v", d)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d < time.Second || d > 2*time.Second {
			t.Errorf("the sync took %v", d)
		}
		if got := read(t, s.Reboot(rng(), false), "/a"); string(got) != "two" {
			t.Errorf("after the cut: %q", got)
		}
	})
}

func TestHungOperationsNeverHappenAfterACrash(t *testing.T) {
	for _, crash := range []func(*FS) *FS{(*FS).Kill, func(s *FS) *FS { return s.Reboot(rng(), true) }} {
		synctest.Test(t, func(t *testing.T) {
			s := New()
			f := create(t, s, "/a", []byte("old"), true, true)
			create(t, s, "/b", nil, true, true)
			plan(s, Rule{Do: Hang(nil)}, Rule{Do: Hang(make(chan struct{}))})
			s.SetHook(Plan(rng(), Rule{Do: Hang(make(chan struct{}))}))
			ops := []func() error{
				func() error { _, err := f.WriteAt([]byte("new"), 0); return err },
				func() error { return f.Truncate(1) },
				f.Sync,
				func() error { return s.SyncDir("/") },
				func() error { return s.Rename("/b", "/c") },
				func() error { return s.Remove("/b") },
				func() error { return s.MkdirAll("/x/y", 0o700) },
				func() error { _, err := s.OpenFile("/n", os.O_CREATE|os.O_RDWR, 0o600); return err },
				func() error { _, err := f.ReadAt(make([]byte, 1), 0); return err },
			}
			errs := make(chan error, len(ops))
			for _, op := range ops {
				go func() { errs <- op() }()
			}
			synctest.Wait()
			after := crash(s)
			for range ops {
				if err := <-errs; !errors.Is(err, ErrCrashed) {
					t.Errorf("a hung operation says %v", err)
				}
			}
			names, err := after.ReadDir("/")
			if err != nil || len(names) != 2 || names[1].Name() != "b" || string(read(t, after, "/a")) != "old" {
				t.Errorf("afterwards: %v, %v, %q", names, err, read(t, after, "/a"))
			}
		})
	}
}

func TestHungOperationGoesOnWhenReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		f := create(t, s, "/a", []byte("old"), true, true)
		release := make(chan struct{})
		plan(s, Rule{Kinds: []Kind{OpWrite}, Do: Hang(release)})
		done := make(chan error)
		go func() { _, err := f.WriteAt([]byte("new"), 0); done <- err }()
		synctest.Wait()
		if got := read(t, s, "/a"); string(got) != "old" {
			t.Fatalf("while it hangs: %q", got)
		}
		close(release)
		if err := <-done; err != nil || string(read(t, s, "/a")) != "new" {
			t.Fatalf("released: %v, %q", err, read(t, s, "/a"))
		}
	})
}

// What copies share is nobody's to change.
func TestCopiesAreApart(t *testing.T) {
	s := New()
	f := create(t, s, "/a", []byte("one"), true, true)
	f.WriteAt([]byte("two"), 0)
	c := s.Clone()
	r := c.Clone().Reboot(rng(), false)
	f.WriteAt([]byte("three"), 0)
	g := create(t, r, "/a", []byte("four"), false, false)
	g.Truncate(2)
	if err := r.Corrupt("/a", func(b []byte) []byte { b[0] = 'x'; return b }); err != nil {
		t.Fatal(err)
	}
	for want, fs := range map[string]*FS{"three": s, "two": c, "xo": r, "one": c.Clone().Reboot(rng(), false)} {
		if got := read(t, fs, "/a"); string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A small file that is written for ever and never synced must not fill the memory.
func TestUnsyncedRewritesAreThinnedOut(t *testing.T) {
	s := New()
	f := create(t, s, "/a", make([]byte, 64), true, true)
	for i := range 10_000 {
		f.WriteAt(bytes.Repeat([]byte{byte(i)}, 32), 0)
	}
	if n := len(s.root.seen["a"].pending); n > 64 {
		t.Fatalf("%d writes are kept", n)
	}
	if got := read(t, s.Reboot(rng(), false), "/a"); got[0] != 0 {
		t.Fatal("an unsynced write became durable")
	}
}

func BenchmarkAppendSync(b *testing.B) {
	for b.Loop() {
		s := New()
		f, _ := s.OpenFile("/a", os.O_RDWR|os.O_CREATE, 0o600)
		block := make([]byte, 16<<10)
		for i := range 256 {
			f.WriteAt(block, int64(i)<<14)
			f.Sync()
		}
		s.Clone()
		s.Reboot(rng(), true)
	}
	b.SetBytes(4 << 20)
}

func TestRulesKnowARenamedFile(t *testing.T) {
	s := New()
	f := create(t, s, "/a.new", nil, false, false)
	if err := s.Rename("/a.new", "/a"); err != nil {
		t.Fatal(err)
	}
	plan(s, Rule{Path: "a", Do: Fail(syscall.EIO)})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v", err)
	}
}
