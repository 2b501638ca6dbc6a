package statelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func entry(i, term uint64) Entry {
	return Entry{Index: i, Term: term, Type: uint8(i % 6), AppendedAt: int64(1000 + i),
		Data: fmt.Appendf(nil, "command %d of term %d", i, term), Extensions: []byte{}}
}

func entries(from, to, term uint64) (all []Entry) {
	for i := from; i <= to; i++ {
		all = append(all, entry(i, term))
	}
	return all
}

func open(t testing.TB, dir string) *Log {
	t.Helper()
	l, _, err := Open(Config{Dir: dir, FS: fsx.OS()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// filled makes a closed log of n entries, one sync each, and returns its directory and segment file.
func filled(t testing.TB, n uint64) (dir, segment string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	for i := uint64(1); i <= n; i++ {
		must(t, l.Append(entries(i, i, 1)))
	}
	segment = filepath.Join(l.gen.dir, segmentName(l.gen.first))
	must(t, l.Close())
	return dir, segment
}

func contents(t testing.TB, l *Log) (all []Entry) {
	t.Helper()
	if l.Last() == 0 {
		return nil
	}
	for i := l.First(); i <= l.Last(); i++ {
		e, err := l.Entry(i)
		must(t, err)
		all = append(all, e)
	}
	return all
}

func change(t testing.TB, file string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, f(b), 0o600))
}

func frameStarts(t testing.TB, b []byte) (starts []int) {
	t.Helper()
	for at := 0; at < len(b); {
		_, size, ok := nextFrame(b[at:])
		if !ok {
			t.Fatalf("bad frame at %d", at)
		}
		starts = append(starts, at)
		at += size
	}
	return starts
}

// unacknowledge makes entries above keep look as if their sync had not ended.
func unacknowledge(t testing.TB, segment string, keep uint64) {
	t.Helper()
	dir := filepath.Dir(segment)
	var n uint64
	if _, err := fmt.Sscanf(filepath.Base(dir), "g-%x", &n); err != nil {
		t.Fatal(err)
	}
	f, err := fsx.OS().OpenFile(filepath.Join(dir, ackedName), os.O_RDWR, 0)
	must(t, err)
	must(t, (&generation{n: n, acked: f}).acknowledge(keep))
	must(t, f.Close())
}

func TestEntriesSurviveReopen(t *testing.T) {
	dir, _ := filled(t, 10)
	l := open(t, dir)
	defer l.Close()
	if diff := cmp.Diff(entries(1, 10, 1), contents(t, l)); diff != "" {
		t.Error(diff)
	}
	if _, err := l.Entry(11); !errors.Is(err, ErrNotFound) {
		t.Errorf("entry 11: %v", err)
	}
}

// The nine faults that were found in tidwall/wal, one test each.

func TestZeroTailIsCutAndNeverServed(t *testing.T) {
	dir, segment := filled(t, 10)
	change(t, segment, func(b []byte) []byte { return append(b, make([]byte, 4096)...) })
	l, rec, err := Open(Config{Dir: dir, FS: fsx.OS()})
	must(t, err)
	defer l.Close()
	if rec.CutBytes != 4096 || l.Last() != 10 {
		t.Errorf("cut %d bytes, last %d", rec.CutBytes, l.Last())
	}
	torn, err := filepath.Glob(filepath.Join(dir, tornPrefix+"*"))
	if err != nil || len(torn) != 1 {
		t.Errorf("cut bytes kept in %q (%v)", torn, err)
	}
}

func TestBitFlipAnywhereIsCorruption(t *testing.T) {
	dir, segment := filled(t, 6)
	good, err := os.ReadFile(segment)
	must(t, err)
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 8)
		must(t, os.WriteFile(segment, bad, 0o600))
		if l, _, err := Open(Config{Dir: dir, FS: &faultFS{FS: fsx.OS()}}); !errors.Is(err, ErrCorrupt) {
			if err == nil {
				t.Errorf("flip at byte %d of %d: opened with last %d", at, len(good), l.Last())
				l.Close()
				continue
			}
			t.Errorf("flip at byte %d: %v", at, err)
		}
	}
	if got, err := os.ReadFile(segment); err != nil || len(got) != len(good) {
		t.Error("a corrupt log was changed")
	}
}

func TestBitFlipInALengthIsCorruption(t *testing.T) {
	dir, segment := filled(t, 10)
	change(t, segment, func(b []byte) []byte { b[frameStarts(t, b)[4]] ^= 4; return b })
	if _, _, err := Open(Config{Dir: dir, FS: fsx.OS()}); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

func TestMissingFileOrEntryIsCorruption(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir, segment string){
		"segment missing":    func(t *testing.T, _, s string) { must(t, os.Remove(s)) },
		"generation missing": func(t *testing.T, _, s string) { must(t, os.RemoveAll(filepath.Dir(s))) },
		"current missing":    func(t *testing.T, dir, _ string) { must(t, os.Remove(filepath.Join(dir, currentName))) },
		"current damaged": func(t *testing.T, dir, _ string) {
			change(t, filepath.Join(dir, currentName), func(b []byte) []byte { b[len(currentTitle)+16] ^= 1; return b })
		},
		"second segment": func(t *testing.T, _, s string) {
			must(t, os.WriteFile(filepath.Join(filepath.Dir(s), segmentName(11)), nil, 0o600))
		},
		"entry in the middle missing": func(t *testing.T, _, s string) {
			change(t, s, func(b []byte) []byte { at := frameStarts(t, b); return slices.Delete(b, at[3], at[4]) })
		},
		"last entry missing": func(t *testing.T, _, s string) {
			change(t, s, func(b []byte) []byte { return b[:frameStarts(t, b)[9]] })
		},
		"file of another generation": func(t *testing.T, dir, s string) {
			must(t, os.Rename(filepath.Dir(s), generationDir(dir, 7)))
			must(t, writeCurrent(fsx.OS(), dir, 7))
			must(t, os.Remove(filepath.Join(generationDir(dir, 7), ackedName)))
			g := generation{n: 7}
			f, err := fsx.OS().OpenFile(filepath.Join(generationDir(dir, 7), ackedName), os.O_RDWR|os.O_CREATE, 0o600)
			must(t, err)
			g.acked = f
			must(t, g.acknowledge(10))
			must(t, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, segment := filled(t, 10)
			damage(t, dir, segment)
			if _, _, err := Open(Config{Dir: dir, FS: fsx.OS()}); !errors.Is(err, ErrCorrupt) {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func TestFailedWritePoisonsTheLog(t *testing.T) {
	dir, _ := filled(t, 3)
	l := open(t, dir)
	must(t, l.gen.wal.Close()) // tidwall/wal refuses what follows
	if err := l.Append(entries(4, 4, 1)); err == nil {
		t.Fatal("append without a file")
	}
	if err := l.Append(entries(4, 4, 2)); err == nil || errors.Is(err, ErrOutOfOrder) {
		t.Errorf("the retry of a failed write: %v", err)
	}
	if _, err := l.Entry(3); err == nil {
		t.Error("a poisoned log answers")
	}
	must(t, l.Close())
	l = open(t, dir)
	defer l.Close()
	if diff := cmp.Diff(entries(1, 3, 1), contents(t, l)); diff != "" {
		t.Error(diff)
	}
}

func TestFailedSyncPoisonsTheLogAndIsNotRepeated(t *testing.T) {
	dir, _ := filled(t, 3)
	disk := &faultFS{FS: fsx.OS()}
	l, _, err := Open(Config{Dir: dir, FS: disk})
	must(t, err)
	boom := errors.New("EIO")
	disk.fail(func(op, _ string) error {
		if op == "sync" {
			return boom
		}
		return nil
	})
	if err := l.Append(entries(4, 4, 1)); !errors.Is(err, boom) {
		t.Fatalf("append: %v", err)
	}
	disk.fail(nil)
	before := disk.count("sync")
	if err := l.Append(entries(4, 4, 1)); !errors.Is(err, boom) {
		t.Errorf("append after a failed sync: %v", err)
	}
	must(t, l.Close())
	if got := disk.count("sync"); got != before {
		t.Errorf("%d syncs after the failed one", got-before)
	}
	// The next process must not trust the page cache: it writes a new file.
	l, rec, err := Open(Config{Dir: dir, FS: fsx.OS()})
	must(t, err)
	defer l.Close()
	if !rec.Rewrote || l.Last() != 4 {
		t.Errorf("recovered %+v, last %d", rec, l.Last())
	}
}

func TestConcurrentReadersAndAWriter(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "log"))
	defer l.Close()
	must(t, l.Append(entries(1, 50, 1)))
	var wg sync.WaitGroup
	for r := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(r), 1))
			for range 2000 {
				i := 1 + rng.Uint64N(80)
				e, err := l.Entry(i)
				if errors.Is(err, ErrNotFound) {
					continue
				}
				if err != nil || !cmp.Equal(e, entry(i, 1)) {
					t.Errorf("entry %d: %v %v", i, e, err)
					return
				}
			}
		}()
	}
	for i := uint64(51); i <= 80; i++ {
		must(t, l.Append(entries(i, i, 1)))
	}
	must(t, l.DeleteRange(1, 20))
	wg.Wait()
}

func TestFirstIndexMayBeAnyButThereAreNoGaps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	must(t, l.Append(entries(4711, 4720, 3)))
	if err := l.Append(entries(4722, 4722, 3)); !errors.Is(err, ErrOutOfOrder) {
		t.Errorf("gap: %v", err)
	}
	if err := l.Append([]Entry{entry(4721, 3), entry(4723, 3)}); !errors.Is(err, ErrOutOfOrder) {
		t.Errorf("gap inside: %v", err)
	}
	must(t, l.Close())
	l = open(t, dir)
	defer l.Close()
	if l.First() != 4711 || l.Last() != 4720 {
		t.Errorf("[%d,%d]", l.First(), l.Last())
	}
}

func TestNamesAreDurableBeforeTheyCount(t *testing.T) {
	disk := &faultFS{FS: fsx.OS()}
	dir := filepath.Join(t.TempDir(), "log")
	l, _, err := Open(Config{Dir: dir, FS: disk})
	must(t, err)
	must(t, l.Append(entries(1, 9, 1)))
	disk.reset()
	must(t, l.DeleteRange(1, 5))
	ops := disk.list()
	at := func(op string) int { return slices.Index(ops, op) }
	gen := generationDir(dir, 2)
	order := []string{"sync " + filepath.Join(gen, segmentName(6)), "syncdir " + gen, "syncdir " + dir, "sync " + filepath.Join(dir, "CURRENT.new"), "rename " + filepath.Join(dir, "CURRENT.new")}
	for i := 1; i < len(order); i++ {
		if at(order[i-1]) < 0 || at(order[i-1]) > at(order[i]) {
			t.Errorf("%q is not before %q in\n%s", order[i-1], order[i], strings.Join(ops, "\n"))
		}
	}
	if ops[at(order[4])+1] != "syncdir "+dir {
		t.Errorf("the new name of CURRENT was not synced:\n%s", strings.Join(ops, "\n"))
	}
	must(t, l.Close())
}

// tidwall/wal starts a new file at SegmentSize and breaks when that fails.
func TestThereIsOnlyEverOneFile(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "log"))
	defer l.Close()
	big := Entry{Term: 1, Data: make([]byte, 1<<20), Extensions: []byte{}}
	for i := uint64(1); i <= 24; i++ { // its default is 20 MB
		big.Index = i
		must(t, l.Append([]Entry{big}))
	}
	names, err := os.ReadDir(l.gen.dir)
	must(t, err)
	if len(names) != 2 {
		t.Errorf("%d files", len(names))
	}
}

func TestDeleteRange(t *testing.T) {
	for _, c := range []struct {
		name        string
		first, last uint64
		want        []Entry
		bad         bool
	}{
		{"prefix", 1, 4, entries(5, 10, 1), false},
		{"suffix", 7, 10, entries(1, 6, 1), false},
		{"all", 1, 10, nil, false},
		{"beyond both ends", 0, 99, nil, false},
		{"nothing there", 11, 20, entries(1, 10, 1), false},
		{"empty range", 5, 4, entries(1, 10, 1), false},
		{"a hole", 4, 6, entries(1, 10, 1), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _ := filled(t, 10)
			l := open(t, dir)
			if err := l.DeleteRange(c.first, c.last); (err != nil) != c.bad {
				t.Fatal(err)
			}
			for range 2 {
				if diff := cmp.Diff(c.want, contents(t, l)); diff != "" {
					t.Error(diff)
				}
				must(t, l.Close())
				l = open(t, dir)
			}
			must(t, l.Close())
		})
	}
}

// A crash may leave any part of the last frame.
func TestTornLastFrameIsCutAtEveryByte(t *testing.T) {
	dir, segment := filled(t, 5)
	good, err := os.ReadFile(segment)
	must(t, err)
	last := frameStarts(t, good)[4]
	for cut := last; cut < len(good); cut++ {
		for _, tail := range [][]byte{nil, make([]byte, len(good)-cut), bytes.Repeat([]byte{0xa5}, len(good)-cut)} {
			work := filepath.Join(t.TempDir(), "log")
			must(t, os.CopyFS(work, os.DirFS(dir)))
			seg := strings.Replace(segment, dir, work, 1)
			must(t, os.WriteFile(seg, append(bytes.Clone(good[:cut]), tail...), 0o600))
			unacknowledge(t, seg, 4)
			l, _, err := Open(Config{Dir: work, FS: &faultFS{FS: fsx.OS()}})
			if err != nil {
				t.Fatalf("cut at %d with a tail of %d: %v", cut, len(tail), err)
			}
			if diff := cmp.Diff(entries(1, 4, 1), contents(t, l)); diff != "" {
				t.Errorf("cut at %d: %s", cut, diff)
			}
			must(t, l.Append(entries(5, 5, 2)))
			must(t, l.Close())
		}
	}
}

// A lost watermark does not turn corruption into a torn tail: later frames prove what was durable.
func TestLaterFramesProveWhatWasDurable(t *testing.T) {
	dir, segment := filled(t, 6)
	must(t, os.Remove(filepath.Join(filepath.Dir(segment), ackedName)))
	change(t, segment, func(b []byte) []byte { b[frameStarts(t, b)[2]+frameHead] ^= 1; return b })
	if _, _, err := Open(Config{Dir: dir, FS: fsx.OS()}); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

// The entries with which a generation begins were all durable before CURRENT named it.
func TestFirstFramesOfAGenerationProveTheLast(t *testing.T) {
	dir, _ := filled(t, 6)
	l := open(t, dir)
	must(t, l.DeleteRange(1, 2))
	segment := filepath.Join(l.gen.dir, segmentName(l.gen.first))
	must(t, l.Close())
	must(t, os.Remove(filepath.Join(filepath.Dir(segment), ackedName)))
	change(t, segment, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	if _, _, err := Open(Config{Dir: dir, FS: fsx.OS()}); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

// A process died after it renamed CURRENT and before it synced the directory.
func TestTheNameOfCurrentIsSyncedBeforeItIsBuiltUpon(t *testing.T) {
	dir, _ := filled(t, 3)
	disk := &faultFS{FS: fsx.OS()}
	l, _, err := Open(Config{Dir: dir, FS: disk})
	must(t, err)
	ops := disk.list()
	synced := slices.Index(ops, "syncdir "+dir)
	removed := slices.IndexFunc(ops, func(op string) bool { return strings.HasPrefix(op, "remove ") })
	if synced < 0 || removed >= 0 && removed < synced {
		t.Errorf("CURRENT may still turn back to an older generation:\n%s", strings.Join(ops, "\n"))
	}
	must(t, l.Close())
}

// Frames of one unfinished write may survive without their predecessors.
func TestUnfinishedWriteMayLoseItsMiddle(t *testing.T) {
	dir, segment := filled(t, 3)
	l := open(t, dir)
	must(t, l.Append(entries(4, 8, 1)))
	must(t, l.Close())
	unacknowledge(t, segment, 3)
	change(t, segment, func(b []byte) []byte { b[frameStarts(t, b)[5]+frameHead] ^= 1; return b })
	l = open(t, dir)
	defer l.Close()
	if l.Last() != 5 {
		t.Errorf("last %d", l.Last())
	}
}

// killSteps are what a log is used for until it is killed, and what it holds after each.
var killSteps = []struct {
	do    func(*Log) error
	after []Entry
}{
	{func(l *Log) error { return l.Append(entries(1, 5, 1)) }, entries(1, 5, 1)},
	{func(l *Log) error { return l.Append(entries(6, 9, 1)) }, entries(1, 9, 1)},
	{func(l *Log) error { return l.DeleteRange(8, 9) }, entries(1, 7, 1)},
	{func(l *Log) error { return l.Append(entries(8, 12, 2)) }, append(entries(1, 7, 1), entries(8, 12, 2)...)},
	{func(l *Log) error { return l.DeleteRange(1, 6) }, append(entries(7, 7, 1), entries(8, 12, 2)...)},
	{func(l *Log) error { return l.Append(entries(13, 14, 2)) }, append(entries(7, 7, 1), entries(8, 14, 2)...)},
}

// Whatever the operation at which the process dies, the log holds what was acknowledged.
func TestKillAtEveryOperation(t *testing.T) {
	script := func(l *Log, acked *[]Entry) {
		for _, step := range killSteps {
			if step.do(l) != nil {
				return
			}
			*acked = step.after
		}
	}
	for n := 1; ; n++ {
		dir := filepath.Join(t.TempDir(), "log")
		disk := &faultFS{FS: fsx.OS()}
		left := n
		disk.fail(func(string, string) error {
			if left--; left < 0 {
				return errKilled
			}
			return nil
		})
		var acked []Entry
		l, _, err := Open(Config{Dir: dir, FS: disk})
		if err == nil {
			script(l, &acked)
			l.Close()
		}
		if left >= 0 {
			t.Logf("%d operations", n)
			return
		}
		l = open(t, dir)
		got := contents(t, l)
		if !survived(acked, got) {
			t.Fatalf("killed at operation %d: acknowledged %v, found %v", n, acked, got)
		}
		must(t, l.Close())
	}
}

// survived tells whether got is what was acknowledged, or what the step in flight would have made of it.
func survived(acked, got []Entry) bool {
	if len(acked) == 0 {
		return true
	}
	lost := 0
	for _, want := range acked {
		if !slices.ContainsFunc(got, func(e Entry) bool { return cmp.Equal(e, want) }) {
			lost++
		}
	}
	// The deletions in flight remove 2 and 6 entries.
	return lost == 0 || lost == 2 && len(acked) == 9 || lost == 6 && len(acked) == 12
}

var errKilled = errors.New("killed")

// faultFS stands before the machine's file system, counts operations and lets them fail. It syncs
// nothing: the machine stays up, and tests shall be quick.
type faultFS struct {
	fsx.FS
	mu   sync.Mutex
	hook func(op, name string) error // guarded by mu
	ops  []string                    // guarded by mu
}

func (f *faultFS) fail(hook func(op, name string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}
func (f *faultFS) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = nil
}
func (f *faultFS) list() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ops)
}
func (f *faultFS) count(op string) (n int) {
	for _, o := range f.list() {
		if strings.HasPrefix(o, op+" ") {
			n++
		}
	}
	return n
}

func (f *faultFS) before(op, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, op+" "+name)
	if f.hook == nil {
		return nil
	}
	return f.hook(op, name)
}

func (f *faultFS) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	if flag&os.O_CREATE != 0 {
		if err := f.before("create", name); err != nil {
			return nil, err
		}
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f}, nil
}
func (f *faultFS) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.before("mkdir", name); err != nil {
		return err
	}
	return f.FS.MkdirAll(name, perm)
}
func (f *faultFS) Rename(from, to string) error {
	if err := f.before("rename", from); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}
func (f *faultFS) RemoveAll(name string) error {
	if err := f.before("remove", name); err != nil {
		return err
	}
	return f.FS.RemoveAll(name)
}
func (f *faultFS) SyncDir(name string) error {
	return f.before("syncdir", name)
}

type faultFile struct {
	fsx.File
	fs *faultFS
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.before("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}
func (f *faultFile) Sync() error {
	return f.fs.before("sync", f.Name())
}

// The log is a slice that survives reopening, and power cuts that take unsynced bytes.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "statelog")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		dir := filepath.Join(root, "log")
		reopen := func() *Log {
			l, _, err := Open(Config{Dir: dir, FS: &faultFS{FS: fsx.OS()}})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		l := reopen()
		defer func() { l.Close() }()
		var model []Entry
		next, term := uint64(1), uint64(1)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				if len(model) == 0 {
					next += rapid.Uint64Range(0, 100).Draw(t, "skip")
				}
				add := entries(next, next+rapid.Uint64Range(0, 7).Draw(t, "more"), term)
				if err := l.Append(add); err != nil {
					t.Fatal(err)
				}
				model, next = append(model, add...), add[len(add)-1].Index+1
			},
			"delete prefix": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip("there is no prefix to delete")
				}
				n := rapid.IntRange(1, len(model)).Draw(t, "n")
				if err := l.DeleteRange(model[0].Index, model[n-1].Index); err != nil {
					t.Fatal(err)
				}
				model = model[n:]
			},
			"delete suffix": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip("there is no suffix to delete")
				}
				n := rapid.IntRange(0, len(model)-1).Draw(t, "n")
				if err := l.DeleteRange(model[n].Index, next-1); err != nil {
					t.Fatal(err)
				}
				next, model, term = model[n].Index, model[:n:n], term+1
			},
			"reopen": func(t *rapid.T) {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				l = reopen()
			},
			"torn write": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip("there is nothing to stand behind")
				}
				frame := appendFrame(nil, entry(next, term), l.gen.n, next-1)
				frame = append(binary.AppendUvarint(nil, uint64(len(frame))), frame...)
				segment := filepath.Join(l.gen.dir, segmentName(l.gen.first))
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				f, err := os.OpenFile(segment, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				f.Write(frame[:rapid.IntRange(0, len(frame)-1).Draw(t, "bytes")])
				f.Close()
				l = reopen()
			},
			"": func(t *rapid.T) {
				var got []Entry
				for i := l.First(); i != 0 && i <= l.Last(); i++ {
					e, err := l.Entry(i)
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, e)
				}
				if len(got)+len(model) > 0 && !cmp.Equal(got, model) {
					t.Fatal(cmp.Diff(model, got))
				}
			},
		})
	})
}

func FuzzOpenSegment(f *testing.F) {
	b := []byte{}
	for _, e := range entries(1, 3, 1) {
		frame := appendFrame(nil, e, 1, 0)
		b = append(binary.AppendUvarint(b, uint64(len(frame))), frame...)
	}
	f.Add(b)
	f.Add(append(b[:len(b)-3:len(b)-3], make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := scan(b, 1, 1)
		if s.good > len(b) || uint64(len(s.frames)) != s.last {
			t.Fatalf("scanned %d of %d bytes, last %d of %d", s.good, len(b), s.last, len(s.frames))
		}
		for i, frame := range s.frames {
			if e, _, ok := decodeFrame(frame, 1); !ok || e.Index != uint64(i+1) {
				t.Fatalf("frame %d does not hold", i)
			}
		}
	})
}

func TestGoldenFrame(t *testing.T) {
	got := fmt.Sprintf("%x", appendFrame(nil, Entry{Index: 7, Term: 3, Type: 5, AppendedAt: 9, Extensions: []byte("x"), Data: []byte("data")}, 2, 6))
	want, err := os.ReadFile("testdata/frame.golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile("testdata/frame.golden", []byte(got+"\n"), 0o644))
		return
	}
	if err != nil || got != strings.TrimSpace(string(want)) {
		t.Errorf("the format of a frame changed: it needs a new version\n got %s\nwant %s (%v)", got, want, err)
	}
}
