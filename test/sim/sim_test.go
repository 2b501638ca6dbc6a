//go:build !race

// A world has one thread: the race detector would find nothing, and slows the compiler of its code down.

package sim

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/check"
)

// childEnv makes the test binary run one seed and print its hash, as another process would.
const childEnv = "TIDEMARK_SIM_CHILD"

func TestMain(m *testing.M) {
	if seed := os.Getenv(childEnv); seed != "" {
		child(seed)
	}
	os.Exit(m.Run())
}

// twice is what is run in two processes.
var twice = Settings{Seconds: 6, Nodes: 3, Partitions: 2, Faults: "all"}

func child(text string) {
	seed, err := strconv.ParseUint(text, 10, 64)
	if err == nil {
		var w *World
		if w, err = Load(context.Background(), "."); err == nil {
			fmt.Println("hash", w.Run(context.Background(), seed, io.Discard, twice).Hash)
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func load(t *testing.T) *World {
	t.Helper()
	w, err := Load(t.Context(), ".")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close(context.Background()) })
	return w
}

func TestSameSeedIsTheSameRunInAnotherProcess(t *testing.T) {
	const seed = 77
	here := load(t).Run(t.Context(), seed, io.Discard, twice)
	other := load(t).Run(t.Context(), seed+1, io.Discard, twice)
	if here.Hash == other.Hash {
		t.Errorf("seeds %d and %d have the same hash %s", seed, seed+1, here.Hash)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(cmd.Environ(), childEnv+"="+strconv.Itoa(seed))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the other process: %v\n%s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != "hash "+here.Hash {
		t.Errorf("seed %d has hash %s here, and in another process: %s", seed, here.Hash, got)
	}
}

func TestSeeds(t *testing.T) {
	w := load(t)
	list := seeds(t)
	if testing.Short() {
		list = list[:1]
	}
	for _, s := range list {
		t.Run(fmt.Sprint(s.seed), func(t *testing.T) { s.run(t, w) })
	}
}

// seeded is a line of testdata/seeds.
type seeded struct {
	seed     uint64
	settings Settings
	why      string
}

// seeds are those that have failed once, and a few that show the breadth.
func seeds(t *testing.T) (list []seeded) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "seeds"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		line, why, _ := strings.Cut(in.Text(), "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		var s seeded
		if _, err := fmt.Sscan(line, &s.seed, &s.settings.Seconds, &s.settings.Nodes, &s.settings.Partitions, &s.settings.Faults); err != nil {
			t.Fatalf("testdata/seeds: %q: %v", line, err)
		}
		s.why = strings.TrimSpace(why)
		list = append(list, s)
	}
	return list
}

func (s seeded) run(t *testing.T, w *World) {
	name := filepath.Join(t.TempDir(), "trace")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	trace := bufio.NewWriter(f)
	r := w.Run(t.Context(), s.seed, trace, s.settings)
	if err := trace.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Log(r.Line)
	if _, err := check.ParseResult(r.Line); err != nil {
		t.Error(err)
	}
	if r.Failed {
		t.Errorf("failed (%s): %v\n%s\nreplay: go run ./test/sim/cmd/simrun %s -trace", s.why, r.Why, violations(t, name), s.settings.Replay(s.seed))
	}
}

// violations are the lines of a trace that tell what went wrong.
func violations(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var found, last []string
	for in := bufio.NewScanner(f); in.Scan(); {
		if strings.Contains(in.Text(), "VIOLATION") {
			found = append(found, in.Text())
		}
		if last = append(last, in.Text()); len(last) > 20 {
			last = last[1:]
		}
	}
	if len(found) == 0 {
		found = last
	}
	return strings.Join(found, "\n")
}
