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
	"strings"
	"sync"

	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/test/sim"
)

type options struct {
	seed     uint64
	n        int
	parallel int
	trace    bool
	settings sim.Settings
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
	flag.BoolVar(&o.trace, "trace", false, "print the whole trace, of runs that pass too")
	flag.Parse()
	if !given("seed") || !given("seconds") {
		fmt.Fprintln(os.Stderr, "simrun: -seed and -seconds are required")
		flag.Usage()
		os.Exit(2)
	}
	failed, err := runAll(context.Background(), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "simrun:", err)
		os.Exit(2)
	}
	if failed > 0 {
		fmt.Printf("%d of %d seeds failed\n", failed, o.n)
		os.Exit(1)
	}
}

func given(name string) (yes bool) {
	flag.Visit(func(f *flag.Flag) { yes = yes || f.Name == name })
	return yes
}

// runAll runs the seeds and returns how many failed.
func runAll(ctx context.Context, o options) (failed int, err error) {
	w, err := sim.Load(ctx, ".")
	if err != nil {
		return 0, err
	}
	defer w.Close(ctx)
	var mu sync.Mutex
	next := o.seed
	workers := run.NewGroup(ctx, "simrun")
	for range max(1, min(o.parallel, o.n)) {
		workers.Go("worker", func(ctx context.Context) {
			for {
				mu.Lock()
				seed := next
				next++
				mu.Unlock()
				if seed >= o.seed+uint64(o.n) {
					return
				}
				ok := o.one(ctx, w, seed, &mu)
				mu.Lock()
				if !ok {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return failed, nil
}

// one runs one seed and prints how it went, all at once.
func (o options) one(ctx context.Context, w *sim.World, seed uint64, print *sync.Mutex) bool {
	var trace bytes.Buffer
	var to io.Writer = &trace
	if o.trace && o.n == 1 {
		to = os.Stdout
	}
	settings := o.settings
	if settings.Nodes == 0 {
		settings.Nodes = 3 + 2*int(seed%2)
	}
	r := w.Run(ctx, seed, to, settings)
	print.Lock()
	defer print.Unlock()
	if o.trace || r.Failed {
		_, _ = io.Copy(os.Stdout, &trace)
	}
	fmt.Printf("%s hash=%s\n", r.Line, r.Hash)
	if r.Failed {
		fmt.Printf("FAILED seed %d at commit %s", seed, commit())
		if r.Why != nil {
			fmt.Printf(": %v", r.Why)
		}
		fmt.Printf("\nreplay: go run ./test/sim/cmd/simrun %s -trace\n", settings.Replay(seed))
	}
	return !r.Failed
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
