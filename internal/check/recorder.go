package check

import (
	"slices"
	"sync"
)

// Recorder collects a history in memory. It is safe for concurrent use, and costs a
// lock and a copy of the operation per call.
type Recorder struct {
	limit int // immutable

	mu      sync.Mutex
	header  Header           // guarded by mu
	chunks  [][]Op           // guarded by mu; none is moved once it has been made
	count   int              // guarded by mu; operations
	facts   []Fact           // guarded by mu
	entries int              // guarded by mu; in facts
	faults  []Fault          // guarded by mu
	saw     map[string]int64 // guarded by mu
	dropped int64            // guarded by mu
}

const chunkOps = 1024

// NewRecorder returns a recorder for at most limit operations and as many facts and log entries. What is
// beyond is counted and makes the history invalid.
func NewRecorder(suite string, seed uint64, limit int) *Recorder {
	return &Recorder{limit: limit, header: Header{Version: version, Suite: suite, Seed: seed}, saw: map[string]int64{}}
}

// Ticket names an operation that was begun.
type Ticket int

// Begin records an operation that is about to start. Until End its outcome is unknown, which
// is right for one whose client dies. The caller may go on filling op in for End.
func (r *Recorder) Begin(op Op) Ticket {
	op.Outcome, op.Complete, op.Records = Unknown, 0, slices.Clone(op.Records)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addLocked(op)
}

// End replaces what Begin recorded. op is the whole operation, its outcome included; its records
// belong to the recorder from now on.
func (r *Recorder) End(t Ticket, op Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t >= 0 {
		r.chunks[int(t)/chunkOps][int(t)%chunkOps] = op
	}
}

// Add records an operation that is over. Its records belong to the recorder from now on.
func (r *Recorder) Add(op Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(op)
}

func (r *Recorder) addLocked(op Op) Ticket {
	if r.count >= r.limit {
		r.dropped++
		return -1
	}
	if r.count%chunkOps == 0 {
		r.chunks = append(r.chunks, make([]Op, 0, chunkOps))
	}
	last := len(r.chunks) - 1
	r.chunks[last] = append(r.chunks[last], op)
	r.count++
	return Ticket(r.count - 1)
}

// Fact records something seen inside a broker.
func (r *Recorder) Fact(f Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.facts) >= r.limit || r.entries+len(f.Entries) > r.limit {
		r.dropped++
		return
	}
	r.facts = append(r.facts, f)
	r.entries += len(f.Entries)
}

// Fault records an interval during which something was broken, once it is healed.
func (r *Recorder) Fault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.faults) >= r.limit {
		r.dropped++
		return
	}
	r.faults = append(r.faults, f)
}

// Saw counts n more of what Require may ask for. Names are few, and come from the suite.
func (r *Recorder) Saw(name string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.saw[name] += n
}

// History returns a copy of what was recorded so far; records and entries are shared with it.
func (r *Recorder) History() *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &History{Header: r.header, Ops: make([]Op, 0, r.count), Saw: make(map[string]int64, len(r.saw)), Dropped: r.dropped}
	for _, c := range r.chunks {
		h.Ops = append(h.Ops, c...)
	}
	h.Facts = append(h.Facts, r.facts...)
	h.Faults = append(h.Faults, r.faults...)
	for name, n := range r.saw {
		h.Saw[name] = n
	}
	return h
}
