// Command simrun runs the deterministic simulation:
//
//	go run ./test/sim/cmd/simrun -seed 7 -seconds 60
//
// One seed and one commit are one run, to the nanosecond. It prints a RESULT line per seed. When a run fails
// it prints its trace, and how to run it again.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/test/sim"
)

type options struct {
	seed     uint64
	n        int
	parallel int
	trace    bool
	settings sim.Settings
	least    string
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "the first seed")
	flag.IntVar(&o.settings.Seconds, "seconds", 0, "virtual seconds under load")
	flag.IntVar(&o.n, "n", 1, "how many seeds to run, from the first on")
	flag.IntVar(&o.parallel, "parallel", 2, "how many at once")
	flag.IntVar(&o.settings.Nodes, "nodes", 0, "3 or 5; 0: the seed decides")
	flag.IntVar(&o.settings.Partitions, "partitions", 3, "partitions of the topic")
	flag.StringVar(&o.settings.Faults, "faults", "all", "kinds of faults: all, none, or a list such as kill,power,split")
	flag.StringVar(&o.settings.Bug, "bug", "", "a bug of internal/bug that is switched on: the runs should fail")
	flag.StringVar(&o.least, "least", "", "what all runs together must have seen at least, such as ops_acked=200000,elections=50")
	flag.BoolVar(&o.trace, "trace", false, "print the whole trace, of runs that pass too")
	flag.Parse()
	if !given("seed") || !given("seconds") {
		fmt.Fprintln(os.Stderr, "simrun: -seed and -seconds are required")
		flag.Usage()
		os.Exit(2)
	}
	s := &session{options: o}
	err := s.runAll(context.Background())
	if err == nil {
		err = s.sum()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "simrun:", err)
		os.Exit(1)
	}
}

// session is one call of the command.
type session struct {
	options

	mu      sync.Mutex
	next    uint64         // guarded by mu; seed
	failed  []uint64       // guarded by mu
	results []check.Result // guarded by mu
}

func given(name string) (yes bool) {
	flag.Visit(func(f *flag.Flag) { yes = yes || f.Name == name })
	return yes
}

// runAll runs the seeds.
func (s *session) runAll(ctx context.Context) error {
	w, err := sim.Load(ctx, ".")
	if err != nil {
		return err
	}
	defer w.Close(ctx)
	s.next = s.seed
	workers := run.NewGroup(ctx, "simrun")
	for range max(1, min(s.parallel, s.n)) {
		workers.Go("worker", func(ctx context.Context) {
			for {
				s.mu.Lock()
				seed := s.next
				s.next++
				s.mu.Unlock()
				if seed >= s.seed+uint64(s.n) {
					return
				}
				s.one(ctx, w, seed)
			}
		})
	}
	workers.Wait()
	return nil
}

// one runs one seed and prints how it went, all at once.
func (s *session) one(ctx context.Context, w *sim.World, seed uint64) {
	var trace bytes.Buffer
	var to io.Writer = &trace
	if s.trace && s.n == 1 {
		to = os.Stdout
	}
	settings := s.settings
	if settings.Nodes == 0 {
		settings.Nodes = 3 + 2*int(seed%2)
	}
	r := w.Run(ctx, seed, to, settings)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trace || r.Failed {
		_, _ = io.Copy(os.Stdout, &trace)
	}
	fmt.Printf("%s hash=%s\n", r.Line, r.Hash)
	if result, err := check.ParseResult(r.Line); err == nil {
		s.results = append(s.results, result)
	}
	if r.Failed {
		s.failed = append(s.failed, seed)
		fmt.Printf("FAILED seed %d at commit %s", seed, commit())
		if r.Why != nil {
			fmt.Printf(": %v", r.Why)
		}
		fmt.Printf("\nreplay: go run ./test/sim/cmd/simrun %s -trace\n", settings.Replay(seed))
	}
}

// sum prints the sums of several runs, and tells whether all is well.
func (s *session) sum() error {
	all := check.Merge(s.results...)
	if s.n > 1 {
		fmt.Println(all)
	}
	if len(s.failed) > 0 {
		return fmt.Errorf("%d of %d seeds failed: %d", len(s.failed), s.n, s.failed)
	}
	for want := range strings.SplitSeq(s.least, ",") {
		name, text, ok := strings.Cut(want, "=")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("-least %s: %w", want, err)
		}
		if all.Saw[name] < n {
			return fmt.Errorf("vacuous: %s is %d, want %d at least", name, all.Saw[name], n)
		}
	}
	return nil
}

// commit names the sources, as far as git knows them.
func commit() string {
	id, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(id))
	if dirty, err := exec.Command("git", "status", "--porcelain").Output(); err == nil && len(dirty) > 0 {
		name += " with changes"
	}
	return name
}
