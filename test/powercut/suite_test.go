package powercut

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/testkit/cutfs"
)

// livesPerDisk is how often one log loses its power before a new disk is taken.
func livesPerDisk() int {
	switch {
	case testing.Short():
		return 2
	case seconds() == 0:
		return 6
	}
	return 12
}

// seconds is how long the whole run shall take; 0 is as short as it makes sense.
func seconds() float64 {
	n, err := strconv.ParseFloat(os.Getenv("TIDEMARK_POWERCUT_SECONDS"), 64)
	if err != nil {
		return 0
	}
	return n
}

// suite is one kind of child on one kind of disk.
type suite struct {
	t      *testing.T
	kind   string // of child
	seed   uint64
	rng    *rand.Rand
	pool   bool
	nosync bool
	total  verdict
}

func newSuite(t *testing.T, kind string) *suite {
	cutfs.Require(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &suite{t: t, kind: kind, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), total: verdict{noted: map[string]int{}}}
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

// rounds repeats a round for this suite's share of the time, and does it once at least.
func (s *suite) rounds(share float64, round func()) {
	s.t.Helper()
	limit := time.Duration(share * seconds() * float64(time.Second))
	for began := time.Now(); ; {
		round()
		if s.t.Failed() || time.Since(began) >= limit {
			return
		}
	}
}

// run runs one child on dir until it ends. Once it is started, arm prepares its end.
func (s *suite) run(j *judge, dir string, arm func(kill func())) (failure string) {
	s.t.Helper()
	j.born()
	cmd, out := s.child(dir)
	kill := func() { _ = cmd.Process.Kill() } // of a process that has ended, an error that says so
	stuck := time.AfterFunc(30*time.Second, kill)
	defer stuck.Stop()
	arm(kill)
	failure = s.listen(j, out)
	s.end(cmd)
	return failure
}

// life runs one child until the power goes in place of the disk's n-th change.
func (s *suite) life(d *disk, j *judge, n int, torn bool) {
	s.t.Helper()
	dir := d.mount()
	defer d.unmount()
	if failure, ok := s.cut(d, j, dir, n, torn); !ok {
		j.verdict.openFailures++
		j.problem("the child ended before the power did: %s", failure)
	}
}

// cut runs a child until the power goes. It is not ok when the child ended before.
func (s *suite) cut(d *disk, j *judge, dir string, n int, torn bool) (failure string, ok bool) {
	s.t.Helper()
	var cut <-chan cutfs.Lost
	failure = s.run(j, dir, func(kill func()) {
		if s.rng.IntN(2) == 0 {
			kill = nil // it sees its disk fail, and must not acknowledge after that
		}
		cut = d.fs.CutAfter(n, torn, kill)
	})
	select {
	case lost := <-cut:
		j.verdict.cuts++
		j.verdict.sectorsLost += lost.SectorsLost
		j.verdict.namesLost += lost.NamesLost
		return "", true
	default:
		d.fs.Cut(torn)
		return failure, false
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
	s.close(d, j)
}

// close takes the disk away and adds up.
func (s *suite) close(d *disk, j *judge) {
	s.t.Helper()
	d.unmount()
	for _, p := range j.verdict.problems {
		if !s.nosync {
			s.t.Errorf("%s: %s", d.kind, p)
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
	v.problems = append(v.problems, o.problems...)
	for what, n := range o.noted {
		v.noted[what] += n
	}
}

// report prints the result line and fails where nothing was tested.
func (s *suite) report(name string, wanted ...string) {
	s.t.Helper()
	v := s.total
	r := check.Result{Suite: name, Seed: s.seed, Runs: 1, Verdict: check.Pass,
		Counts: map[check.Anomaly]int64{check.Lost: int64(v.lost), check.Phantom: int64(v.phantoms)},
		Saw: map[string]int64{"cuts": int64(v.cuts), check.SawAcked: int64(v.acked), "open_failures": int64(v.openFailures), "repaired_tails": int64(v.repaired),
			"sectors_lost": int64(v.sectorsLost), "names_lost": int64(v.namesLost)}}
	for what, n := range v.noted {
		r.Saw[what] = int64(n)
	}
	for _, what := range append(wanted, "cuts", check.SawAcked) {
		if r.Saw[what] == 0 {
			r.Verdict = check.Vacuous
			s.t.Errorf("vacuous: no %s was seen", what)
		}
	}
	if s.total.lost+s.total.phantoms+s.total.openFailures+len(s.total.problems) > 0 {
		r.Verdict = check.Failed
	}
	fmt.Println(r)
}
