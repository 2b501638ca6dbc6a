package powercut

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/testkit/cutfs"
)

// livesPerDisk is how often one log loses its power before a new disk is taken.
const livesPerDisk = 12

// suite is one kind of child on one kind of disk.
type suite struct {
	t      *testing.T
	kind   string // of child
	rng    *rand.Rand
	pool   bool
	nosync bool
	total  verdict
}

func newSuite(t *testing.T, kind string) *suite {
	cutfs.Require(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &suite{t: t, kind: kind, rng: rand.New(rand.NewPCG(seed, 0)), total: verdict{noted: map[string]int{}}}
}

// child starts a child on dir.
func (s *suite) child(dir string) (*exec.Cmd, io.ReadCloser) {
	s.t.Helper()
	kind, sync := "plain", "sync"
	if s.pool {
		kind = "pool"
	}
	if s.nosync {
		sync = "nosync"
	}
	cmd := exec.Command(os.Args[0], dir, fmt.Sprint(s.rng.Uint64()), kind, sync)
	cmd.Env = append(os.Environ(), childEnv+"="+s.kind)
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd, out
}

// listen passes on what a child says until it ends. What it said last, before it could end the line,
// does not count.
func (s *suite) listen(j *judge, out io.Reader) (failure string) {
	for r := bufio.NewReader(out); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return failure
		}
		line = strings.TrimSuffix(line, "\n")
		if text, ok := strings.CutPrefix(line, "fail "); ok {
			failure = text
		} else if err := j.hear(line); err != nil {
			s.t.Fatal(err)
		}
	}
}

// life runs one child until the power goes in place of the disk's n-th change.
func (s *suite) life(d *disk, j *judge, n int, torn bool) {
	s.t.Helper()
	dir := d.mount()
	defer d.unmount()
	j.born()
	cmd, out := s.child(dir)
	kill := func() { _ = cmd.Process.Kill() } // of a process that has ended, an error that says so
	stuck := time.AfterFunc(30*time.Second, kill)
	defer stuck.Stop()
	then := kill
	if s.rng.IntN(2) == 0 {
		then = nil // it sees its disk fail, and must not acknowledge after that
	}
	cut := d.fs.CutAfter(n, torn, then)
	failure := s.listen(j, out)
	s.end(cmd)
	select {
	case lost := <-cut:
		j.verdict.cuts++
		j.verdict.sectorsLost += lost.SectorsLost
		j.verdict.namesLost += lost.NamesLost
	default:
		j.verdict.openFailures++
		j.problem("the child ended before the power did: %s", failure)
		d.fs.Cut(false)
	}
}

func (s *suite) end(cmd *exec.Cmd) {
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
}

// changes draws when the power goes: now and then while the log is opened.
func (s *suite) changes(kind string) int {
	scale := 1
	if sizes[kind] > 0 {
		scale = 2 // a file system writes its journal too
	}
	if s.rng.IntN(4) == 0 {
		return scale * (1 + s.rng.IntN(40))
	}
	return scale * (20 + s.rng.IntN(600))
}

// disk takes one disk through several lives.
func (s *suite) disk(kind string, torn bool, lives int) {
	s.t.Helper()
	d, j := newDisk(s.t, kind, s.rng.Uint64()), newJudge()
	for range lives {
		s.life(d, j, s.changes(kind), torn)
		if len(j.verdict.problems) > 0 {
			break
		}
	}
	for _, p := range j.verdict.problems {
		if !s.nosync {
			s.t.Errorf("%s, torn %v: %s", kind, torn, p)
		}
	}
	s.total.add(j.verdict)
}

func (v *verdict) add(o verdict) {
	v.cuts += o.cuts
	v.lives += o.lives
	v.acked += o.acked
	v.lost += o.lost
	v.phantoms += o.phantoms
	v.openFailures += o.openFailures
	v.repaired += o.repaired
	v.sectorsLost += o.sectorsLost
	v.namesLost += o.namesLost
	for what, n := range o.noted {
		v.noted[what] += n
	}
}

// report prints the result line and fails where nothing was tested.
func (s *suite) report(name string, wanted ...string) {
	s.t.Helper()
	v := s.total
	fmt.Printf("RESULT suite=%s cuts=%d acked=%d lost=%d phantom=%d open_failures=%d repaired_tails=%d sectors_lost=%d names_lost=%d noted=%v\n",
		name, v.cuts, v.acked, v.lost, v.phantoms, v.openFailures, v.repaired, v.sectorsLost, v.namesLost, v.noted)
	for _, what := range wanted {
		if v.noted[what] == 0 {
			s.t.Errorf("vacuous: no %s was seen", what)
		}
	}
	if v.acked == 0 || v.sectorsLost == 0 {
		s.t.Errorf("vacuous: %+v", v)
	}
}

func TestLogOnFUSE(t *testing.T) {
	s := newSuite(t, "log")
	for _, torn := range []bool{true, false} {
		for _, kind := range []string{"fuse", "fuse-strict"} {
			for _, s.pool = range []bool{false, true} {
				s.disk(kind, torn, livesPerDisk)
			}
		}
	}
	s.report("powercut-log-fuse", "roll", "truncate", "retain")
}

func TestStatelogOnFUSE(t *testing.T) {
	s := newSuite(t, "statelog")
	for _, torn := range []bool{true, false} {
		for _, kind := range []string{"fuse", "fuse-strict"} {
			s.disk(kind, torn, livesPerDisk)
		}
	}
	s.report("powercut-statelog-fuse", "truncate", "retain")
}

func TestLogOnBlockDevices(t *testing.T) {
	for kind := range sizes {
		t.Run(kind, func(t *testing.T) {
			s := newSuite(t, "log")
			for _, torn := range []bool{true, false} {
				for _, s.pool = range []bool{false, true} {
					s.disk(kind, torn, 3)
				}
			}
			s.report("powercut-log-"+kind, "roll")
		})
	}
}

// A writer that acknowledges without a sync is caught.
func TestLossIsSeen(t *testing.T) {
	s := newSuite(t, "log")
	s.nosync = true
	s.disk("fuse", false, 6)
	if s.total.lost == 0 {
		t.Errorf("nothing was lost without a sync: %+v", s.total)
	}
}
