//go:build failpoint

package statelog

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

const childDir = "TIDEMARK_STATELOG_CHILD"

// At every failpoint of the package, at its first and its second hit, a process on a real disk kills
// itself: the log holds what that process was told is stored, and goes on.
func TestKillAtEveryFailpoint(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		child(t, dir)
		return
	}
	places, err := failpoint.Names(".")
	must(t, err)
	for _, place := range places {
		for hit := 1; hit <= 2; hit++ {
			t.Run(fmt.Sprintf("%s/hit=%d", place, hit), func(t *testing.T) { killAt(t, place, hit) })
		}
	}
}

// child is the process that dies. It says on standard output how many steps are done.
func child(t *testing.T, dir string) {
	l, _, err := Open(Config{Dir: dir, FS: fsx.OS()})
	must(t, err)
	for i, step := range killSteps {
		must(t, step.do(l))
		fmt.Printf("done %d\n", i+1)
	}
	must(t, l.Close())
}

func killAt(t *testing.T, place string, hit int) {
	dir := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillAtEveryFailpoint$", "-test.count=1")
	cmd.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprintf("TIDEMARK_FAILPOINT=%s:%d", place, hit))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil || !strings.Contains(stderr.String(), "failpoint "+place) {
		t.Fatalf("the process did not die there: %v\n%s%s", err, out, stderr.String())
	}
	var acked []Entry
	if done := strings.Count(string(out), "done "); done > 0 {
		acked = killSteps[done-1].after
	}
	l := open(t, dir)
	got := contents(t, l)
	if !survived(acked, got) {
		t.Fatalf("acknowledged %v, found %v", acked, got)
	}
	next := max(l.Last(), 100) + 1
	if l.Last() > 0 {
		next = l.Last() + 1
	}
	must(t, l.Append(entries(next, next+2, 3)))
	must(t, l.Close())
	l = open(t, dir)
	if l.Last() != next+2 {
		t.Fatalf("ends at %d after a restart, %d was stored", l.Last(), next+2)
	}
	must(t, l.Close())
}
