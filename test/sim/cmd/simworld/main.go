// Command simworld is the inside of the simulation: package sim builds it for wasip1 and runs it on a machine
// whose time and randomness come from the seed. Built natively it runs too, for profiles, but
// is not the same twice.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/tidemarkhq/tidemark/test/sim/world"
)

func main() {
	seed := flag.Uint64("seed", 1, "seed of all choices")
	seconds := flag.Int("seconds", 10, "virtual seconds under load")
	nodes := flag.Int("nodes", 3, "3 to 5")
	partitions := flag.Int("partitions", 3, "partitions of the topic")
	kinds := flag.String("faults", "all", "kinds of faults: all, none, or a list")
	flag.Parse()
	faults, err := world.ParseFaults(*kinds)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ok := world.Run(world.Options{
		Seed: *seed, Duration: time.Duration(*seconds) * time.Second, Nodes: *nodes, Partitions: *partitions, Faults: faults,
	}, os.Stdout)
	if !ok {
		os.Exit(1)
	}
}
