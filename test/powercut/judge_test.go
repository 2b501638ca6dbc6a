package powercut

import (
	"fmt"
	"strings"
)

// entry is what identifies what was written at an index.
type entry struct {
	term uint64
	sum  uint32
}

// judge knows what one log must hold, life after life. It believes what children say about
// what they do, and checks what they say about what they found.
type judge struct {
	first   uint64 // index of entries[0]
	entries []entry
	acked   uint64
	// While a truncation runs: the entries as they were before, and its index.
	ghost   []entry
	cutFrom uint64
	// While retention runs, the log may begin anywhere up to behind here.
	mayGive uint64

	found []entry // what the present child reports
	have  [3]uint64
	ready bool

	verdict verdict
}

// verdict adds up what was seen.
type verdict struct {
	cuts, lives, acked, lost, phantoms, openFailures, repaired int
	sectorsLost, namesLost                                     int
	noted                                                      map[string]int
	problems                                                   []string
}

func newJudge() *judge { return &judge{first: 1, verdict: verdict{noted: map[string]int{}}} }

func (j *judge) problem(format string, args ...any) {
	if len(j.verdict.problems) < 20 {
		j.verdict.problems = append(j.verdict.problems, fmt.Sprintf(format, args...))
	}
}

// born begins a new life.
func (j *judge) born() {
	j.found, j.have, j.ready = nil, [3]uint64{}, false
	j.verdict.lives++
}

// hear takes one line of a child.
func (j *judge) hear(line string) error {
	what, rest, _ := strings.Cut(line, " ")
	var i uint64
	var e entry
	var err error
	switch what {
	case "have":
		_, err = fmt.Sscan(rest, &j.have[0], &j.have[1], &j.have[2])
	case "e":
		_, err = fmt.Sscan(rest, &i, &e.term, &e.sum)
		j.found = append(j.found, e)
	case "ready":
		if rest == "true" {
			j.verdict.repaired++
		}
		j.opened()
	case "w":
		_, err = fmt.Sscan(rest, &i, &e.term, &e.sum)
		j.wrote(i, e)
	case "a":
		_, err = fmt.Sscan(rest, &i)
		j.verdict.acked += int(i - min(i, j.acked))
		j.acked = i
	case "t":
		_, err = fmt.Sscan(rest, &i)
		j.ghost, j.cutFrom = j.entries, i
		j.entries = j.entries[:i-j.first]
		j.acked = min(j.acked, i-1)
	case "td":
		j.ghost, j.cutFrom = nil, 0
	case "r":
		_, err = fmt.Sscan(rest, &j.mayGive)
	case "rd":
		_, err = fmt.Sscan(rest, &i)
		j.gave(i)
	case "n":
		if strings.HasPrefix(rest, "sync after") {
			j.problem("%s", rest)
		}
		j.verdict.noted[rest]++
	default:
		err = fmt.Errorf("a line of a child: %q", line)
	}
	return err
}

func (j *judge) last() uint64 { return j.first + uint64(len(j.entries)) - 1 }

func (j *judge) wrote(i uint64, e entry) {
	if i != j.last()+1 {
		j.problem("index %d is written after %d", i, j.last())
		return
	}
	j.entries = append(j.entries[:len(j.entries):len(j.entries)], e)
}

// gave forgets the entries before first.
func (j *judge) gave(first uint64) {
	j.mayGive = 0
	if first > j.first && first <= j.last()+1 {
		j.entries = j.entries[first-j.first:]
		j.first = first
	}
}

// opened compares what the log holds with what it must hold, and goes on from there.
func (j *judge) opened() {
	j.ready = true
	first, last := j.have[0], j.have[1]
	if last == 0 && len(j.found) == 0 {
		first = j.first
		last = j.first - 1
	}
	if uint64(len(j.found)) != last+1-first {
		j.problem("%d entries are in [%d,%d]", len(j.found), first, last)
		return
	}
	if last < j.acked {
		j.verdict.lost += int(j.acked - last)
		j.problem("the log ends at %d, %d was acknowledged", last, j.acked)
	}
	if first > max(j.first, j.mayGive+1) {
		j.verdict.lost += int(first - max(j.first, j.mayGive+1))
		j.problem("the log begins at %d, up to %d was given up", first, max(j.first-1, j.mayGive))
	}
	if first < j.first {
		j.problem("the log begins at %d again, %d was first", first, j.first)
	}
	written := j.entries
	if j.ghost != nil && last >= j.cutFrom {
		written = j.ghost
	}
	for k, e := range j.found {
		j.compare(first+uint64(k), e, written)
	}
	j.first, j.entries, j.acked = first, j.found, last
	j.ghost, j.cutFrom, j.mayGive = nil, 0, 0
}

func (j *judge) compare(i uint64, e entry, written []entry) {
	if i < j.first {
		return // counted
	}
	if i-j.first >= uint64(len(written)) {
		j.verdict.phantoms++
		j.problem("index %d was never written", i)
		return
	}
	if want := written[i-j.first]; want != e {
		j.verdict.phantoms++
		j.problem("index %d holds %v, %v was written", i, e, want)
		if i <= j.acked {
			j.verdict.lost++
		}
	}
}
