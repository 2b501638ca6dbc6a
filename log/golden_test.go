package log

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

var update = flag.Bool("update", false, "write the golden files of the current format version")

const goldenDir = "testdata/v2" // of what is written today

// goldenDirs are of all that was ever written.
var goldenDirs = []string{"testdata/v1", goldenDir}

// goldenLog writes the same bytes each time: fixed salts, fixed content.
func goldenLog(t *testing.T, dir string) []Entry {
	t.Helper()
	cfg := testConfig(dir)
	salt := uint64(0x1122334455667788)
	cfg.salt = func() uint64 { salt++; return salt }
	l := mustOpen(t, cfg)
	a := &appender{t: t, next: 5, end: 0, term: 2}
	var all []Entry
	write := func(commit Index, entries ...Entry) {
		must(t, l.Write(entries, commit))
		must(t, l.Sync())
		all = append(all, entries...)
	}
	write(0, a.void("configuration"), a.accepted(3, 100, 1_700_000_000_000))
	write(6, a.accepted(1, 5000, 1_700_000_000_500))
	must(t, l.Roll([]byte("state at 8")))
	a.term = 4
	write(7, a.void("noop"), a.accepted(2, 10, 1_700_000_001_000), a.accepted(2, 0, 1_700_000_000_900))
	must(t, l.Roll([]byte("state at 11")))
	write(9, a.accepted(1, 1, 1_700_000_002_000))
	must(t, l.SetStart(2))
	must(t, l.Close())
	return all
}

// Whatever format is written next: a log of this version must open for ever. These files are never
// rewritten; a new version gets a directory of its own.
func TestGoldenLogOpens(t *testing.T) {
	for _, golden := range goldenDirs {
		t.Run(filepath.Base(golden), func(t *testing.T) { opensGolden(t, golden) })
	}
}

func opensGolden(t *testing.T, golden string) {
	want := goldenLog(t, t.TempDir())
	dir := t.TempDir()
	copyDir(t, golden, dir)
	cfg := testConfig(dir)
	l, rec, err := Open(cfg)
	must(t, err)
	defer l.Close()
	if rec.Repaired || rec.IndexesRebuilt > 0 || rec.Commit != 9 {
		t.Fatalf("%+v", rec)
	}
	for _, e := range want {
		got, err := l.Entry(e.Index)
		must(t, err)
		must(t, sameEntry(got, e))
	}
	state, from := l.ActiveState()
	if string(state) != "state at 11" || from != 11 || l.StartOffset() != 2 || l.EndOffset() != 9 || l.FirstIndex() != 5 {
		t.Fatalf("state %q from %d, offsets [%d,%d), first index %d", state, from, l.StartOffset(), l.EndOffset(), l.FirstIndex())
	}
	if e, o := l.EpochEnd(3); e != 2 || o != 4 {
		t.Fatalf("epoch %d ends at %d", e, o)
	}
	report, err := Inspect(fsx.OS(), golden, nil)
	must(t, err)
	if len(report.Damage) > 0 || report.Records != 9 || report.LastIndex != 11 || report.TailBytes != 0 {
		t.Fatalf("%+v", report)
	}
}

// The bytes that are written today are those of the golden files.
func TestGoldenLogIsWhatIsWritten(t *testing.T) {
	dir := t.TempDir()
	goldenLog(t, dir)
	must(t, os.Remove(filepath.Join(dir, lockName)))
	if *update {
		must(t, os.RemoveAll(goldenDir))
		must(t, os.MkdirAll(goldenDir, 0o755))
		copyDir(t, dir, goldenDir)
	}
	want, err := os.ReadDir(goldenDir)
	must(t, err)
	got, err := os.ReadDir(dir)
	must(t, err)
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for _, e := range want {
		a, err := os.ReadFile(filepath.Join(goldenDir, e.Name()))
		must(t, err)
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs at byte %d", e.Name(), firstDifference(a, b))
		}
	}
}

func firstDifference(a, b []byte) int {
	for k := range min(len(a), len(b)) {
		if a[k] != b[k] {
			return k
		}
	}
	return min(len(a), len(b))
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	must(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(to, e.Name()), b, 0o600))
	}
}

// ExampleInspect prints what "tidemark verify" builds on.
func ExampleInspect() {
	report, err := Inspect(fsx.OS(), goldenDir, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(report.Frames, "frames,", report.Records, "records,", len(report.Damage), "damaged")
	// Output: 7 frames, 9 records, 0 damaged
}
