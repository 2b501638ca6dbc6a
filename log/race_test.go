package log

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// One appender, a syncer, retention, and readers of everything, at once: what
// readers see is always what was written.
func TestReadersBesideTheAppender(t *testing.T) {
	t.Run("some in memory", func(t *testing.T) { readersBesideTheAppender(t, 200<<10, 50) })
	t.Run("all from the disk", func(t *testing.T) { readersBesideTheAppender(t, 1, 7) })
}

func readersBesideTheAppender(t *testing.T, budget int64, cutEvery int) {
	cfg := testConfig(t.TempDir())
	cfg.Budget, cfg.Files = NewBudget(budget), NewFiles(2, 4096)
	pool, err := OpenPool(fsx.OS(), t.TempDir(), 4*MinSegmentBytes)
	must(t, err)
	pool.min = blockBytes
	cfg.Pool = pool
	cfg.OnCorrupt = func(err error) { t.Errorf("a read found damage: %v", err) }
	l := mustOpen(t, cfg)
	l.SetRetention(Retention{Age: -1, Bytes: 4 * MinSegmentBytes})
	var wg sync.WaitGroup
	var done atomic.Bool
	beside := func(f func(rng *rand.Rand) error) {
		wg.Add(1)
		seed := rand.Uint64()
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, 0))
			for !done.Load() {
				if err := f(rng); err != nil {
					t.Error(err)
					return
				}
				runtime.Gosched()
			}
		}()
	}
	for range 2 {
		beside(func(rng *rand.Rand) error { return readSome(l, rng) })
		beside(func(rng *rand.Rand) error { return entrySome(l, rng) })
	}
	beside(func(*rand.Rand) error { l.Stats(); l.EpochEnd(3); return l.Sync() })
	a := &appender{t: t, next: 1, term: 1}
	for k := range 400 {
		if l.NeedsRoll(5000) {
			must(t, l.Roll(nil))
			_, err := l.Retain(l.Durable())
			must(t, err)
		}
		must(t, l.Write([]Entry{a.accepted(2, 2000, 1)}, 0))
		if k%cutEvery == cutEvery-1 {
			must(t, l.Sync())
			must(t, l.Write([]Entry{a.accepted(1, 30, 1)}, 0))
			must(t, l.Write([]Entry{a.accepted(1, 30, 1)}, 0))
			for range 2 { // the second takes an idle tail out of memory
				_, err := l.Retain(0)
				must(t, err)
			}
			_, _, err := l.TruncateSuffix(a.next - 2) // not committed: it may go
			must(t, err)
			a.next, a.end = a.next-2, a.end-2
		}
	}
	done.Store(true)
	wg.Wait()
	must(t, l.Close())
	if _, err := l.Entry(l.FirstIndex()); err != nil && !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func readSome(l *Log, rng *rand.Rand) error {
	from, to := l.StartOffset(), l.EndOffset()
	if from >= to {
		return nil
	}
	o := from + record.Offset(rng.Int64N(int64(to-from)))
	if rng.IntN(2) == 0 {
		o = to - 1
	}
	batches, err := l.Read(o, to, 10000)
	if errors.Is(err, ErrOutOfRange) {
		return nil // retention or a truncation was faster
	}
	if err != nil {
		return fmt.Errorf("read at %d: %w", o, err)
	}
	for _, b := range batches {
		if b.EndOffset() <= o {
			return fmt.Errorf("read at %d: batch [%d,%d)", o, b.BaseOffset(), b.EndOffset())
		}
		if _, err := record.Check(b); err != nil {
			return err
		}
		o = b.EndOffset()
	}
	return nil
}

func entrySome(l *Log, rng *rand.Rand) error {
	first, last := l.FirstIndex(), l.LastIndex()
	if last < first || first == 0 {
		return nil
	}
	i := first + Index(rng.Uint64N(uint64(last-first)+1))
	for k := range Index(20) { // in order, as Raft reads
		e, err := l.Entry(i + k)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", i+k, err)
		}
		if e.Index != i+k {
			return fmt.Errorf("entry %d is %d", i+k, e.Index)
		}
		if e.Verdict == Accepted {
			if _, err := record.Check(e.Body[e.MetaBytes:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// The append path has an allocation budget: memory for the tail, and nothing per entry.
func TestAppendAllocatesOnlyTheTail(t *testing.T) {
	cfg := testConfig(worldDir)
	cfg.FS, cfg.SegmentBytes, cfg.Budget = nullFS{sim.New()}, 1<<30, NewBudget(4<<20)
	l := mustOpen(t, cfg)
	entries := benchEntries(8, 1<<10)
	allocs := testing.AllocsPerRun(2000, func() {
		l.number(entries)
		must(t, l.Write(entries, 0))
		must(t, l.Sync())
	})
	// A chunk of 1 MiB serves more than a hundred of these writes and takes four
	// allocations; the watermark takes one per sync, the index grows by doubling.
	if allocs > 2 {
		t.Fatalf("%.1f allocations per write and sync", allocs)
	}
}

// nullFS forgets what is written.
type nullFS struct{ *sim.FS }

func (n nullFS) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	f, err := n.FS.OpenFile(name, flag, perm)
	return nullFile{f}, err
}

type nullFile struct{ fsx.File }

func (nullFile) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }

// What an idle log keeps in memory is stated in docs/format/log.md.
func TestIdleLogKeepsLittleInMemory(t *testing.T) {
	fs := sim.New()
	budget, files := NewBudget(1<<20), NewFiles(0, 0)
	logs := make([]*Log, 300)
	open := func(k int) {
		cfg := testConfig(filepath.Join(worldDir, fmt.Sprint(k)))
		cfg.FS, cfg.Budget, cfg.Files = fs, budget, files
		logs[k] = mustOpen(t, cfg)
	}
	for k := range logs {
		open(k)
		a := &appender{t: t, next: 1, term: 1}
		must(t, logs[k].Write([]Entry{a.accepted(1, 100, 1)}, 0))
		must(t, logs[k].Close())
		logs[k] = nil
	}
	before := heap()
	for k := range logs {
		open(k)
	}
	each := (int64(heap()) - int64(before)) / int64(len(logs))
	t.Logf("%d bytes per idle log", each)
	if each > 4<<10 {
		t.Fatalf("%d bytes per idle log", each)
	}
	for _, l := range logs {
		must(t, l.Close())
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
