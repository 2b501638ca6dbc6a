package statelog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// A sector of any file is lost, stale, of another place or of another group's log: acknowledged entries
// are there as they were, or the log refuses to open and touches nothing.
func TestStrayAndStaleSectors(t *testing.T) {
	fill := func(text string) (dir string, earlier map[string][]byte) {
		dir = filepath.Join(t.TempDir(), "log")
		l := open(t, dir)
		put := func(from, to, term uint64) {
			all := entries(from, to, term)
			for i := range all {
				all[i].Data = fmt.Appendf(nil, "%s %d %0200d", text, all[i].Index, i)
			}
			must(t, l.Append(all))
		}
		put(1, 20, 1)
		earlier = files(t, dir)
		must(t, l.DeleteRange(15, 20))
		put(15, 24, 2)
		must(t, l.DeleteRange(1, 4))
		put(25, 30, 2)
		must(t, l.Close())
		return dir, earlier
	}
	dir, earlier := fill("a")
	twinDir, _ := fill("b")
	all, twin := files(t, dir), files(t, twinDir)
	l := open(t, dir)
	want := contents(t, l)
	must(t, l.Close())
	counts := map[string]int{}
	for name, own := range all {
		for at := 0; at < len(own); at += sim.SectorBytes {
			end := min(at+sim.SectorBytes, len(own))
			next := (at + sim.SectorBytes) % len(own)
			for what, src := range map[string][]byte{
				"zeros": make([]byte, end-at), "stale": piece(earlier[name], at, end), "twin": piece(twin[name], at, end), "shift": piece(own, next, next+end-at),
			} {
				if src == nil || bytes.Equal(src, own[at:end]) {
					continue
				}
				bad := bytes.Clone(own)
				copy(bad[at:end], src)
				broken := filepath.Join(t.TempDir(), "log")
				must(t, os.CopyFS(broken, os.DirFS(dir)))
				must(t, os.WriteFile(filepath.Join(broken, name), bad, 0o600))
				where := fmt.Sprintf("%s in sector %d of %s", what, at/sim.SectorBytes, name)
				l, _, err := Open(Config{Dir: broken, FS: fsx.OS()})
				if err != nil {
					if !errors.Is(err, ErrCorrupt) {
						t.Fatalf("%s: %v", where, err)
					}
					if !bytes.Equal(files(t, broken)[name], bad) {
						t.Fatalf("%s: it was changed", where)
					}
					counts[what]++
					continue
				}
				if got := contents(t, l); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("%s: %d entries, not %d, or others", where, len(got), len(want))
				}
				must(t, l.Close())
			}
		}
	}
	t.Log("found:", counts)
	for _, what := range []string{"zeros", "twin", "shift"} {
		if counts[what] == 0 {
			t.Errorf("%s was never found", what)
		}
	}
}

func piece(b []byte, from, to int) []byte {
	if to > len(b) {
		return nil
	}
	return b[from:to]
}

// files are the contents of all files below dir.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	must(t, filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err == nil {
			all[rel], err = os.ReadFile(name)
		}
		return err
	}))
	return all
}
