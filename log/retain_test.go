package log

import (
	"errors"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// aged makes a log whose segments hold one batch each, of the given timestamps.
func aged(t *testing.T, cfg Config, appendedAt int64, stamps ...int64) *Log {
	t.Helper()
	l := mustOpen(t, cfg)
	a := &appender{t: t, next: 1, term: 1}
	for _, ts := range stamps {
		e := a.accepted(1, 10, ts)
		e.AppendedAt = appendedAt
		must(t, l.Write([]Entry{e}, 0))
		must(t, l.Roll([]byte("state")))
	}
	return l
}

func TestRetention(t *testing.T) {
	const now, hour = int64(1_700_000_000_000), int64(3_600_000)
	for _, c := range []struct {
		name       string
		retention  Retention
		appendedAt int64
		stamps     []int64
		barrier    Index
		gone       int
	}{
		{"no limits keep everything", Retention{-1, -1}, now, []int64{1, 1, 1}, 9, 0},
		{"old segments go", Retention{time.Hour, -1}, now, []int64{now - 2*hour, now - 2*hour, now}, 9, 2},
		{"the first young one stops it", Retention{time.Hour, -1}, now, []int64{now, now - 2*hour}, 9, 0},
		{"nothing goes beyond the barrier", Retention{time.Hour, -1}, now, []int64{1, 1, 1}, 2, 2},
		{"by size", Retention{-1, 4096}, now, []int64{now, now, now}, 9, 3},
		{"a future timestamp counts as the time of the append", Retention{time.Hour, -1}, now - 2*hour, []int64{now + 1000*hour}, 9, 1},
		{"imported old records go by their timestamp", Retention{time.Hour, -1}, now, []int64{1}, 9, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(worldDir)
			cfg.FS, cfg.Clock = sim.New(), clock.NewManual(time.UnixMilli(now))
			l := aged(t, cfg, c.appendedAt, c.stamps...)
			l.SetRetention(c.retention)
			n, err := l.Retain(c.barrier)
			must(t, err)
			if n != c.gone || l.StartOffset() != record.Offset(n) || l.FirstIndex() != Index(n+1) {
				t.Fatalf("gave up %d, starts at %d, index %d", n, l.StartOffset(), l.FirstIndex())
			}
			must(t, l.Close())
			l = mustOpen(t, cfg)
			if l.StartOffset() != record.Offset(n) || l.FirstIndex() != Index(n+1) {
				t.Fatalf("after a restart it starts at %d, index %d", l.StartOffset(), l.FirstIndex())
			}
			must(t, l.Close())
		})
	}
}

// A clock that jumps ahead must not delete what is fresh; one that was right
// to jump is believed after the grace period.
func TestClockThatJumpsAheadDeletesNothing(t *testing.T) {
	var a ageClock
	start := time.UnixMilli(1_700_000_000_000)
	at := func(wall, passed time.Duration) time.Duration {
		return a.now(start.Add(wall), passed, time.Hour).Sub(start)
	}
	day := 24 * time.Hour
	for _, c := range []struct{ wall, passed, want time.Duration }{
		{0, 0, 0},
		{time.Minute, time.Minute, time.Minute},
		{10 * day, 2 * time.Minute, 2 * time.Minute}, // jumped: not believed
		{10 * day, 30 * time.Minute, 30 * time.Minute},
		{31 * time.Minute, 31 * time.Minute, 31 * time.Minute}, // set right again
		{10 * day, 32 * time.Minute, 32 * time.Minute},         // jumps again, the grace begins anew
		{10 * day, 90 * time.Minute, 90 * time.Minute},
		{10 * day, 93 * time.Minute, 10 * day}, // an hour later it is believed
		{-day, 94 * time.Minute, -day},         // back is believed at once
		{-day, 95 * time.Minute, -day},         // within the slack
	} {
		if got := at(c.wall, c.passed); got != c.want {
			t.Fatalf("wall %v after %v: %v, want %v", c.wall, c.passed, got, c.want)
		}
	}
}

// Nor one that jumped while the process was down.
func TestClockThatIsAheadAfterAStartDeletesNothing(t *testing.T) {
	const now = int64(1_700_000_000_000)
	cfg := testConfig(t.TempDir())
	must(t, aged(t, cfg, now, now, now, now).Close())
	cfg.Clock = clock.NewManual(time.UnixMilli(now).Add(10 * 24 * time.Hour))
	l := mustOpen(t, cfg)
	defer l.Close()
	l.SetRetention(Retention{Age: time.Hour, Bytes: -1})
	if n, err := l.Retain(9); n > 0 || err != nil {
		t.Fatalf("gave up %d segments of fresh data, %v", n, err)
	}
	l.age.ahead = time.Hour // as if it had been ahead for so long
	if n, err := l.Retain(9); n != 3 || err != nil {
		t.Fatalf("gave up %d segments of old data, %v", n, err)
	}
}

// A reader that began before its segment was given up reads on.
func TestReadersKeepAGivenUpSegment(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.Budget = NewBudget(1)
	l := aged(t, cfg, 5, 5, 5, 5)
	defer l.Close()
	l.mu.RLock()
	v := l.viewLocked(l.segments[0])
	l.mu.RUnlock()
	f, err := v.g.ref.acquire()
	must(t, err)
	l.SetRetention(Retention{Age: 0, Bytes: -1})
	n, err := l.Retain(9)
	must(t, err)
	if n != 3 {
		t.Fatalf("gave up %d", n)
	}
	b := make([]byte, blockBytes)
	if _, err := f.ReadAt(b, blockBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := checkFrame(b, v.g.seed); err != nil {
		t.Fatal(err)
	}
	v.g.ref.release()
	if _, err := f.ReadAt(b, 0); err == nil {
		t.Fatal("the file is still open after its last reader left")
	}
	if _, err := l.Read(0, 9, 1); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("read below the log start: %v", err)
	}
}

func TestLowSpaceIsToldBeforeItIsTooLate(t *testing.T) {
	fs := sim.New()
	fs.SetQuota(1 << 20)
	s, err := NewSpace(fs, "/", 512<<10)
	must(t, err)
	var told []bool
	s.OnChange(func(low bool, free, reserve int64) {
		told = append(told, low)
		if low != (free < reserve) {
			t.Errorf("low %v with %d bytes free of %d", low, free, reserve)
		}
	})
	cfg := testConfig(worldDir)
	cfg.FS, cfg.Space = fs, s
	poisoned := 0
	cfg.OnPoison = func(error) { poisoned++ }
	l := mustOpen(t, cfg)
	a := &appender{t: t, next: 1, term: 1}
	writes := 0
	for !l.LowSpace() {
		must(t, l.Write([]Entry{a.accepted(1, 30<<10, 1)}, 0))
		writes++
	}
	if writes < 5 || poisoned > 0 {
		t.Fatalf("low after %d writes", writes)
	}
	must(t, l.Write([]Entry{a.accepted(1, 30<<10, 1)}, 0)) // what was proposed still fits
	must(t, l.Sync())
	good := l.LastIndex()
	for err == nil {
		err = l.Write([]Entry{a.accepted(1, 30<<10, 1)}, 0)
	}
	if !errors.Is(err, ErrPoisoned) || poisoned != 1 {
		t.Fatalf("a full disk: %v", err)
	}
	_ = l.Close()
	fs.SetQuota(1 << 30)
	s.look(true)
	l = mustOpen(t, cfg)
	if l.LastIndex() < good || l.LowSpace() {
		t.Fatalf("after space came back: last index %d of %d, low %v", l.LastIndex(), good, l.LowSpace())
	}
	if !slices.Equal(told, []bool{true, false}) {
		t.Errorf("told %v", told)
	}
	must(t, l.Close())
	full, err := NewSpace(fs, "/", math.MaxInt64/2)
	must(t, err)
	told = nil
	full.OnChange(func(low bool, _, _ int64) { told = append(told, low) })
	if full.Low(); !slices.Equal(told, []bool{true}) {
		t.Errorf("full from the start: told %v", told)
	}
}

// The tails of all logs stay within the budget, and a log that nobody writes to ends up with
// nothing in memory.
func TestTailMemoryIsBounded(t *testing.T) {
	fs := sim.New()
	budget := NewBudget(1 << 20)
	var logs []*Log
	for k := range 4 {
		cfg := testConfig(filepath.Join(worldDir, string(rune('a'+k))))
		cfg.FS, cfg.Budget = fs, budget
		logs = append(logs, mustOpen(t, cfg))
		a := &appender{t: t, next: 1, term: 1}
		for range 40 {
			must(t, logs[k].Write([]Entry{a.accepted(1, 40<<10, 1)}, 0))
			if used := budget.Used(); used > 1<<20 {
				t.Fatalf("%d bytes of %d", used, 1<<20)
			}
		}
	}
	if n := logs[0].Stats().TailBytes; n != 0 {
		t.Fatalf("the first log still has %d bytes", n)
	}
	for range 2 {
		_, err := logs[3].Retain(0)
		must(t, err)
	}
	if n := logs[3].Stats().TailBytes; n != 0 {
		t.Fatalf("an idle log still has %d bytes", n)
	}
	for _, l := range logs {
		e, err := l.Entry(1)
		must(t, err)
		if e.Index != 1 {
			t.Fatal(e)
		}
		must(t, l.Close())
	}
	if budget.Used() != 0 {
		t.Fatalf("%d bytes left after Close", budget.Used())
	}
}

func TestFilesBoundDescriptorsAndIndexes(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.Files, cfg.Budget = NewFiles(2, 64), NewBudget(1)
	l := aged(t, cfg, 5, 5, 5, 5, 5, 5)
	defer l.Close()
	for range 3 {
		for o := range record.Offset(5) {
			if _, err := l.Read(o, 5, 1); err != nil {
				t.Fatal(err)
			}
			if cfg.Files.open.Len() > 2 || cfg.Files.indexes.Len() > 2 {
				t.Fatalf("%d files, %d indexes", cfg.Files.open.Len(), cfg.Files.indexes.Len())
			}
		}
	}
}

func TestOffsetForTime(t *testing.T) {
	for _, cold := range []bool{false, true} {
		cfg := testConfig(t.TempDir())
		if cold {
			cfg.Budget = NewBudget(1)
		}
		l := mustOpen(t, cfg)
		a := &appender{t: t, next: 1, term: 3}
		// Three records per batch, with timestamps base, base+1, base+2.
		for k, ts := range []int64{100, 200, 150, 300, 50, 300} {
			must(t, l.Write([]Entry{a.accepted(3, 20000, ts), a.void("v")}, 0))
			if k == 2 {
				must(t, l.Roll(nil))
			}
		}
		for _, c := range []struct {
			ts    int64
			limit record.Offset
			o     record.Offset
			t     int64
			ok    bool
		}{{0, 18, 0, 100, true}, {101, 18, 1, 101, true}, {103, 18, 3, 200, true}, {202, 18, 5, 202, true}, {203, 18, 9, 300, true}, {203, 9, -1, -1, false}, {302, 18, 11, 302, true}, {303, 18, -1, -1, false}, {0, 0, -1, -1, false}} {
			o, ts, e, ok, err := l.OffsetForTime(c.ts, c.limit)
			if err != nil || o != c.o || ts != c.t || ok != c.ok || ok && e != 3 {
				t.Errorf("OffsetForTime(%d, %d): %d, %d, epoch %d, %v, %v", c.ts, c.limit, o, ts, e, ok, err)
			}
		}
		for _, c := range []struct{ limit, o record.Offset }{{18, 11}, {12, 11}, {9, 5}, {3, 2}} {
			o, _, _, ok, err := l.MaxTimestamp(c.limit)
			if err != nil || !ok || o != c.o {
				t.Errorf("MaxTimestamp(%d): %d, %v, %v", c.limit, o, ok, err)
			}
		}
		must(t, l.SetStart(10))
		if o, _, _, ok, _ := l.OffsetForTime(0, 18); o != 10 || !ok {
			t.Errorf("below the log start: %d, %v", o, ok)
		}
		must(t, l.Close())
	}
}

func TestEpochs(t *testing.T) {
	w := newWorld(1)
	must(t, w.open())
	a := &appender{t: t, next: 1, term: 1}
	must(t, w.log.Write([]Entry{a.accepted(4, 10, 1)}, 0))
	a.term = 2 // a term without a record
	must(t, w.log.Write([]Entry{a.void("noop")}, 0))
	a.term = 5
	must(t, w.log.Write([]Entry{a.void("noop"), a.accepted(2, 10, 1)}, 0))
	check := func(e, want record.Epoch, end record.Offset) {
		t.Helper()
		if got, o := w.log.EpochEnd(e); got != want || o != end {
			t.Errorf("EpochEnd(%d) = %d, %d; want %d, %d", e, got, o, want, end)
		}
	}
	check(0, -1, -1)
	check(1, 1, 4)
	check(2, 1, 4)
	check(5, 5, 6)
	check(9, 5, 6)
	_, _, err := w.log.TruncateSuffix(3)
	must(t, err)
	check(9, 2, 4) // the newest term holds nothing yet
	if w.log.EpochAt(3) != 1 || w.log.EpochAt(4) != -1 {
		t.Error("EpochAt after a truncation")
	}
}
