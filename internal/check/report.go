package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Anomaly is one way of breaking a promise.
type Anomaly string

// Anomalies that a client can see.
const (
	Lost                Anomaly = "lost"                  // a record that was acknowledged or read is not where it was
	Unseen              Anomaly = "unseen"                // an acknowledged record that nobody ever read, and that may come yet
	InconsistentOffsets Anomaly = "inconsistent_offsets"  // two values at one offset
	DuplicateIdempotent Anomaly = "duplicates_idempotent" // a value of an idempotent producer at more offsets than it was sent
	SequenceGap         Anomaly = "sequence_gap"          // a sequence of an idempotent producer is missing between two that are there
	AbortedRead         Anomaly = "aborted_reads"         // a record was read whose send had failed
	Phantom             Anomaly = "phantoms"              // a record was read that nobody sent, or before it was sent
	PollSkip            Anomaly = "poll_skip"             // a consumer jumped over a record
	PollNonmonotonic    Anomaly = "poll_nonmonotonic"     // a consumer went back or read a record again
	SendNonmonotonic    Anomaly = "send_nonmonotonic"     // sends of an ordered producer landed in another order
	RealtimeOrder       Anomaly = "realtime_order"        // a record that was sent later stands earlier
	StaleLatest         Anomaly = "stale_latest"          // the end of the log was said to lie before a known record
	LogStartRegress     Anomaly = "log_start_regress"     // the log start went back
	CommitRegress       Anomaly = "commit_regress"        // a committed position of a group went back
	CommitAhead         Anomaly = "commit_ahead"          // a committed position lies behind a record that no member has read
	DoubleOwner         Anomaly = "double_owner"          // two members of a group own one partition
	ZombieWrite         Anomaly = "zombie_write"          // a write of a fenced producer epoch got through
)

// Anomalies that only a look into the brokers can see.
const (
	HWRegress       Anomaly = "hw_regress"            // a replica's high watermark went back while it ran
	LogDivergence   Anomaly = "log_divergence"        // two replicas committed different entries at one index
	TwoLeaders      Anomaly = "two_leaders_per_term"  // what it says
	TermRegress     Anomaly = "term_regress"          // a replica's term went back
	VoteTwice       Anomaly = "vote_twice"            // a replica voted for two candidates in one term
	DeltaMismatch   Anomaly = "offset_delta_mismatch" // two replicas give one index different offsets
	SegmentMismatch Anomaly = "byte_identity"         // two replicas hold different bytes for the same offsets
)

// Anomalies is all of them, in the order of a RESULT line. Each must be 0.
var anomalies = []Anomaly{
	Lost, Unseen, InconsistentOffsets, DuplicateIdempotent, SequenceGap, AbortedRead, Phantom, PollSkip, PollNonmonotonic, SendNonmonotonic,
	RealtimeOrder, StaleLatest, LogStartRegress, CommitRegress, CommitAhead, DoubleOwner, ZombieWrite,
	HWRegress, LogDivergence, TwoLeaders, TermRegress, VoteTwice, DeltaMismatch, SegmentMismatch,
}

// Anomalies returns every anomaly that Check looks for, in the order of a RESULT line.
func Anomalies() []Anomaly { return slices.Clone(anomalies) }

// Violation is one broken promise, with what shows it.
type Violation struct {
	Anomaly Anomaly
	Where   string   // the key, group or replica
	What    string   // half a sentence
	Lines   []string // the operations or facts concerned, one each
}

func (v Violation) String() string {
	s := fmt.Sprintf("%s %s: %s", v.Anomaly, v.Where, v.What)
	for _, l := range v.Lines {
		s += "\n    " + l
	}
	return s
}

// Report is what Check found.
type Report struct {
	Header
	// Counts is how often each anomaly was found.
	Counts map[Anomaly]int64
	// Checked is how often each anomaly could have been found: 0 means that the history says nothing of it.
	Checked map[Anomaly]int64
	// Violations is the evidence: the first few of each anomaly.
	Violations []Violation
	// Invalid says why the history proves nothing, such as a value that was sent twice. Empty for a sound one.
	Invalid []string
	// Saw is what the run came across: the history's own counters, and those named Saw….
	Saw map[string]int64
	// Windows are the times without acknowledgements, one for each fault.
	Windows []Window
}

// Counters that Check derives from a history. The suites add others under names of their own.
const (
	SawAcked          = "ops_acked"   // records, as all of the next three
	SawUnknown        = "ops_unknown" // weak acknowledgements are among them
	SawFailed         = "ops_failed"
	SawFaults         = "faults"
	SawElections      = "elections"          // leaders beyond the first of each Raft group
	SawDuplicates     = "duplicates_plain"   // appearances of a value beyond the first, of producers that are not idempotent
	SawRead           = "records_read"       // by polls and final reads
	SawTrimmed        = "acked_below_start"  // acknowledged records that retention has taken
	SawAckedInFault   = "acked_during_fault" // records
	SawUnknownLanded  = "unknown_landed"     // sends of unknown outcome that were found later
	SawUnknownGone    = "unknown_gone"       // and that were not
	SawRebalances     = "rebalances"         // generations of consumer groups beyond the first
	SawResets         = "resets"             // commits that were to go back
	SawAckRateAtFirst = "acked_per_s_before_fault"
)

const (
	evidencePerAnomaly = 10
	evidenceLines      = 4
)

func newReport(h *History) *Report {
	r := &Report{Header: h.Header, Counts: map[Anomaly]int64{}, Checked: map[Anomaly]int64{}, Saw: map[string]int64{}}
	maps.Copy(r.Saw, h.Saw)
	return r
}

// found notes a violation. The evidence is only rendered as long as it is kept.
func (r *Report) found(a Anomaly, where fmt.Stringer, evidence []stringer, format string, args ...any) {
	r.Counts[a]++
	if r.Counts[a] > evidencePerAnomaly {
		return
	}
	v := Violation{Anomaly: a, Where: where.String(), What: fmt.Sprintf(format, args...)}
	for _, e := range evidence[:min(len(evidence), evidenceLines)] {
		v.Lines = append(v.Lines, e.String())
	}
	r.Violations = append(r.Violations, v)
}

func (r *Report) invalid(format string, args ...any) {
	if len(r.Invalid) < evidencePerAnomaly {
		r.Invalid = append(r.Invalid, fmt.Sprintf(format, args...))
	}
}

// name is text as a fmt.Stringer.
type name string

func (n name) String() string { return string(n) }

// Total is how many violations were found.
func (r *Report) Total() (n int64) {
	for _, c := range r.Counts {
		n += c
	}
	return n
}

// Require says how often a run must have come across something at least, by the name of a counter in
// Report.Saw or, as Checked of an anomaly: a run that has seen no election says nothing
// about elections.
type Require map[string]int64

// Checked is the name for Require under which an anomaly's opportunities are counted.
func Checked(a Anomaly) string { return "checked_" + string(a) }

// Missing returns what r did not see, "elections=0, want at least 1", sorted.
func (q Require) Missing(r *Report) (missing []string) {
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if n := r.saw(name); n < q[name] {
			missing = append(missing, fmt.Sprintf("%s=%d, want at least %d", name, n, q[name]))
		}
	}
	return missing
}

func (r *Report) saw(name string) int64 {
	if a, ok := strings.CutPrefix(name, "checked_"); ok {
		return r.Checked[Anomaly(a)]
	}
	return r.Saw[name]
}

// Err is nil where the history is clean and has seen all that it was required to. Its text
// begins with "FAIL: invalid", "FAIL: vacuous", or "FAIL:" and the anomalies, and goes on with the evidence.
func (r *Report) Err(q Require) error {
	switch missing := q.Missing(r); {
	case r.Total() > 0:
		return fmt.Errorf("FAIL: %s%s", r.summary(), r.evidence())
	case len(r.Invalid) > 0:
		return fmt.Errorf("FAIL: invalid history: %s", strings.Join(r.Invalid, "; "))
	case len(missing) > 0:
		return fmt.Errorf("FAIL: vacuous: %s", strings.Join(missing, "; "))
	}
	return nil
}

func (r *Report) summary() string {
	var parts []string
	for _, a := range anomalies {
		if n := r.Counts[a]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", a, n))
		}
	}
	for _, why := range r.Invalid {
		parts = append(parts, "; invalid history: "+why)
	}
	return strings.Join(parts, " ")
}

func (r *Report) evidence() string {
	var b strings.Builder
	for _, v := range r.Violations {
		b.WriteString("\n  " + v.String())
	}
	return b.String()
}

// stringer is evidence: an operation or a fact.
type stringer = fmt.Stringer
