// Package sim runs Tidemark as a deterministic simulation: same seed and same commit, same run.
//
// The world (package world: nodes, disks, network, clients, nemesis) is built as a wasip1 module and runs
// under wazero on a machine that is made here: its clock moves only when the world sleeps or
// looks at it, and all its randomness comes from the seed. A wasip1 module has one thread, so Go's scheduler,
// the order of maps and the choices of select follow the seed as well. README.md tells more.
package sim

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/sys"
)

// buildTags of the world: its failpoints are live, and bugs can be switched on.
const buildTags = "failpoint,bugs"

// bugVariable is bug.Variable in a build that has bugs, which this program is not.
const bugVariable = "TIDEMARK_BUG"

// Result is how a run went.
type Result struct {
	// Hash is over every line that the world wrote: two runs with the same hash were the same run.
	Hash string
	// Line is the world's RESULT line.
	Line string
	// Failed tells that the world found a violation, or died; Why is set when it died.
	Failed bool
	Why    error
}

// Settings say what a run is like, the seed apart.
type Settings struct {
	Seconds    int // virtual, under load
	Nodes      int // 3 to 5
	Partitions int
	Faults     string // all, none, or a list
	Bug        string // of internal/bug, to be found; empty: none
}

func (s Settings) flags(seed uint64) []string {
	return []string{"simworld", "-seed", fmt.Sprint(seed), "-seconds", fmt.Sprint(s.Seconds), "-nodes", fmt.Sprint(s.Nodes),
		"-partitions", fmt.Sprint(s.Partitions), "-faults", s.Faults}
}

// Replay is simrun's flags for the same run.
func (s Settings) Replay(seed uint64) string {
	flags := s.flags(seed)[1:]
	if s.Bug != "" {
		flags = append(flags, "-bug", s.Bug)
	}
	return strings.Join(flags, " ")
}

// Run runs one world from its birth to its end. What it prints goes to trace, line by line.
func (w *World) Run(ctx context.Context, seed uint64, trace io.Writer, s Settings) Result {
	time := &virtualTime{}
	out := &lines{hash: sha256.New(), to: trace}
	config := wazero.NewModuleConfig().WithName("").
		WithArgs(s.flags(seed)...).
		WithStdout(out).WithStderr(out).
		WithRandSource(newSource(seed)).
		WithNanotime(time.monotonic, sys.ClockResolution(1)).
		WithWalltime(time.wall, sys.ClockResolution(1)).
		WithNanosleep(time.sleep).
		WithOsyield(time.yield)
	if s.Bug != "" {
		config = config.WithEnv(bugVariable, s.Bug)
	}
	config = config.WithEnv("GOGC", "800") // memory is cheap here
	instance, err := w.runtime.InstantiateModule(ctx, w.module, config)
	if instance != nil {
		_ = instance.Close(ctx)
	}
	out.finish()
	r := Result{Hash: hex.EncodeToString(out.hash.Sum(nil)[:8]), Line: out.result}
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 0, err == nil:
	case errors.As(err, &exit) && exit.ExitCode() == 1 && out.result != "":
		r.Failed = true
	default:
		r.Failed, r.Why = true, err
	}
	if r.Line == "" && r.Why == nil {
		r.Failed, r.Why = true, errors.New("the world ended without a RESULT line")
	}
	return r
}

// birth is where the world's wall clock begins: 2026-01-01.
const birth = 1_767_225_600_000_000_000

// tick is what a look at the clock costs. Without it a goroutine that polls the time would
// never see it move.
const tick = 500

// virtualTime is the machine that the world runs on. Its time moves when the world
// looks at it, and jumps when the world sleeps: all goroutines wait then.
type virtualTime struct{ now int64 }

func (t *virtualTime) monotonic() int64 {
	t.now += tick
	return t.now
}

func (t *virtualTime) wall() (sec int64, nsec int32) {
	t.now += tick
	at := birth + t.now
	return at / 1e9, int32(at % 1e9)
}

func (t *virtualTime) sleep(ns int64) { t.now += max(ns, 0) }

func (t *virtualTime) yield() { t.now += tick }

// source is the world's only randomness: Go's scheduler, map order and select draw from it too.
type source struct{ *rand.ChaCha8 }

func newSource(seed uint64) io.Reader {
	var key [32]byte
	copy(key[:], fmt.Sprintf("tidemark %d", seed))
	return source{rand.NewChaCha8(key)}
}

// lines splits the output, hashes it, and keeps the RESULT line.
type lines struct {
	hash   hash.Hash
	to     io.Writer
	part   []byte
	result string
}

func (l *lines) Write(b []byte) (int, error) {
	l.hash.Write(b)
	l.part = append(l.part, b...)
	for {
		advance, line, _ := bufio.ScanLines(l.part, false)
		if advance == 0 {
			return len(b), nil
		}
		l.take(string(line))
		l.part = append(l.part[:0], l.part[advance:]...)
	}
}

func (l *lines) take(line string) {
	if strings.HasPrefix(line, "RESULT ") {
		l.result = line
	}
	if l.to != nil {
		fmt.Fprintln(l.to, line)
	}
}

func (l *lines) finish() {
	if len(l.part) > 0 {
		l.take(string(l.part))
		l.part = nil
	}
}
