package powercut

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
)

// A child says what it does, one line each:
//
//	have FIRST LAST START    what the log held when it was opened
//	e INDEX TERM SUM         one of these entries, in order
//	ready REPAIRED           all of that is durable
//	w INDEX TERM SUM         is about to be written; a line each, all in one write
//	a INDEX                  up to here all is durable
//	t INDEX, td              everything from INDEX on is about to be truncated; was
//	r INDEX, rd FIRST        entries up to INDEX may be given up; FIRST is first now
//	n NAME                   something happened that a run must have seen
//	fail TEXT                the end
//
// Its arguments are a directory, a seed, a profile and "sync", or "nosync" for a child that
// acknowledges what it has only written.

// profile is what a child is like.
type profile struct {
	dir    string
	rng    *rand.Rand
	pool   bool // large segments that are recycled
	nosync bool
}

func runChild(kind string, args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("%d arguments", len(args))
	}
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	p := profile{dir: args[0], rng: rand.New(rand.NewPCG(seed, 1)), pool: args[2] == "pool", nosync: args[3] == "nosync"}
	switch kind {
	case "log":
		return runLog(p)
	case "statelog":
		return runStatelog(p)
	}
	return fmt.Errorf("what is a %q?", kind)
}

// say writes a line. Standard output is a pipe without a buffer: what was said stays said.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stdout, format+"\n", args...) // without a reader there is nothing left to do
}

// lines collects lines that are said at once.
type lines struct{ strings.Builder }

func (l *lines) add(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

func (l *lines) say() {
	fmt.Fprint(os.Stdout, l.String())
	l.Reset()
}

func sum(parts ...[]byte) uint32 {
	var crc uint32
	for _, p := range parts {
		crc = crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), p)
	}
	return crc
}
