//go:build failpoint

package failpoint_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
)

// Every package that has failpoints sweeps them: a test of its own crashes at each name that its
// source holds, at the first and the second hit, and fails for one that is never hit.
func TestFailpointsAreSwept(t *testing.T) {
	seen := map[string]string{}
	err := filepath.WalkDir("../..", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); strings.HasPrefix(name, ".") && len(name) > 2 || name == "testdata" {
			return filepath.SkipDir
		}
		names, err := failpoint.Names(dir)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if other, ok := seen[name]; ok {
				t.Errorf("%s stands in %s and in %s", name, other, dir)
			}
			seen[name] = dir
		}
		if !sweeps(t, dir) {
			t.Errorf("%s has failpoints %q and no test that asks failpoint.Names for them", dir, names)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) < 50 {
		t.Errorf("only %d failpoints were found", len(seen))
	}
	t.Logf("%d failpoints", len(seen))
}

func sweeps(t *testing.T, dir string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), `failpoint.Names(".")`) {
			return true
		}
	}
	return false
}
