package check

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Result is what a suite prints as one line, whatever its length: the sums of one run or of several.
type Result struct {
	Suite string
	Seed  uint64 // of the run; of the first that failed, or of the first, where it stands for several
	Runs  int64
	// Verdict is "pass", "fail", "invalid" or "vacuous".
	Verdict string
	// Counts holds every anomaly, and Saw every counter.
	Counts  map[Anomaly]int64
	Saw     map[string]int64
	Unavail map[string]Unavailable

	gaps []Window // what Unavail was made of; nil if it was parsed
}

// Verdicts, from good to bad.
const (
	Pass    = "pass"
	Vacuous = "vacuous"
	Invalid = "invalid"
	Failed  = "fail"
)

var verdicts = []string{Pass, Vacuous, Invalid, Failed}

// ahead are the counters that every line has, in this order; the others follow by name.
var ahead = []string{SawAcked, SawUnknown, SawFailed}

// Result sums r up for a RESULT line. q is what the run was required to see.
func (r *Report) Result(q Require) Result {
	res := Result{Suite: r.Suite, Seed: r.Seed, Runs: 1, Verdict: Pass, Counts: maps.Clone(r.Counts), Saw: maps.Clone(r.Saw),
		Unavail: Unavailability(r.Windows), gaps: r.Windows}
	switch {
	case r.Total() > 0:
		res.Verdict = Failed
	case len(r.Invalid) > 0:
		res.Verdict = Invalid
	case len(q.Missing(r)) > 0:
		res.Verdict = Vacuous
	}
	for name := range q {
		res.Saw[name] = r.saw(name)
	}
	return res
}

// String is one line: RESULT and name=value for each figure. Durations have a unit.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "RESULT suite=%s seed=%d runs=%d verdict=%s", r.Suite, r.Seed, r.Runs, r.Verdict)
	for _, name := range ahead {
		fmt.Fprintf(&b, " %s=%d", name, r.Saw[name])
	}
	for _, a := range anomalies {
		fmt.Fprintf(&b, " %s=%d", a, r.Counts[a])
	}
	for _, name := range []string{SawFaults, SawElections} {
		fmt.Fprintf(&b, " %s=%d", name, r.Saw[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Saw)) {
		if !slices.Contains(ahead, name) && name != SawFaults && name != SawElections {
			fmt.Fprintf(&b, " %s=%d", name, r.Saw[name])
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Unavail)) {
		u := r.Unavail[kind]
		fmt.Fprintf(&b, " unavail_%s_n=%d unavail_%s_open=%d unavail_%s_p50=%s unavail_%s_max=%s",
			kind, u.N, kind, u.Open, kind, u.P50.Round(time.Millisecond), kind, u.Max.Round(time.Millisecond))
	}
	return b.String()
}

// ParseResult reads what String has written. Counters that it does not know are kept in Saw.
func ParseResult(s string) (Result, error) {
	r := Result{Counts: map[Anomaly]int64{}, Saw: map[string]int64{}, Unavail: map[string]Unavailable{}}
	fields := strings.Fields(s)
	if len(fields) == 0 || fields[0] != "RESULT" {
		return r, fmt.Errorf("%.60q is no RESULT line", s)
	}
	seen := map[string]bool{}
	for _, f := range fields[1:] {
		name, value, ok := strings.Cut(f, "=")
		if !ok || seen[name] {
			return r, fmt.Errorf("RESULT line: %.60q is not name=value, or stands there twice", f)
		}
		seen[name] = true
		if err := r.set(name, value); err != nil {
			return r, fmt.Errorf("RESULT line: %.60q: %w", f, err)
		}
	}
	if r.Suite == "" || !slices.Contains(verdicts, r.Verdict) {
		return r, fmt.Errorf("RESULT line of suite %q with verdict %q: want both", r.Suite, r.Verdict)
	}
	return r, nil
}

func (r *Result) set(name, value string) (err error) {
	switch {
	case name == "suite":
		r.Suite = value
	case name == "verdict":
		r.Verdict = value
	case name == "seed":
		r.Seed, err = strconv.ParseUint(value, 10, 64)
	case name == "runs":
		r.Runs, err = strconv.ParseInt(value, 10, 64)
	case strings.HasPrefix(name, "unavail_"):
		err = r.setUnavailable(strings.TrimPrefix(name, "unavail_"), value)
	case slices.Contains(anomalies, Anomaly(name)):
		r.Counts[Anomaly(name)], err = strconv.ParseInt(value, 10, 64)
	default:
		r.Saw[name], err = strconv.ParseInt(value, 10, 64)
	}
	return err
}

func (r *Result) setUnavailable(name, value string) (err error) {
	at := strings.LastIndexByte(name, '_')
	if at < 1 {
		return fmt.Errorf("want unavail_<kind>_<figure>")
	}
	kind := name[:at]
	u := r.Unavail[kind]
	switch name[at+1:] {
	case "n":
		u.N, err = strconv.Atoi(value)
	case "open":
		u.Open, err = strconv.Atoi(value)
	case "p50":
		u.P50, err = time.ParseDuration(value)
	case "max":
		u.Max, err = time.ParseDuration(value)
	default:
		err = fmt.Errorf("want one of n, open, p50, max")
	}
	r.Unavail[kind] = u
	return err
}

// Merge sums up results of one suite. Medians are exact for results of this process; those of parsed lines
// count as often as their faults. The verdict is the worst.
func Merge(results ...Result) Result {
	if len(results) == 0 {
		return Result{}
	}
	sum := Result{Suite: results[0].Suite, Seed: results[0].Seed, Verdict: Pass, Counts: map[Anomaly]int64{}, Saw: map[string]int64{}}
	for _, r := range results {
		sum.Runs += r.Runs
		if slices.Index(verdicts, r.Verdict) > slices.Index(verdicts, sum.Verdict) {
			sum.Verdict, sum.Seed = r.Verdict, r.Seed
		}
		for a, n := range r.Counts {
			sum.Counts[a] += n
		}
		for name, n := range r.Saw {
			if name == SawAckRateAtFirst { // a rate is not a sum: the least counts
				if before, ok := sum.Saw[name]; ok {
					n = min(n, before)
				}
				sum.Saw[name] = n
				continue
			}
			sum.Saw[name] += n
		}
		sum.gaps = append(sum.gaps, r.gaps...)
	}
	if slices.ContainsFunc(results, func(r Result) bool { return r.gaps == nil && len(r.Unavail) > 0 }) {
		sum.gaps = nil // they are not all of them
	}
	sum.Unavail = mergeUnavailable(results)
	return sum
}

func mergeUnavailable(results []Result) map[string]Unavailable {
	gaps, sum := map[string][]time.Duration{}, map[string]Unavailable{}
	for _, r := range results {
		for kind, u := range r.Unavail {
			s := sum[kind]
			s.N, s.Open, s.Max = s.N+u.N, s.Open+u.Open, max(s.Max, u.Max)
			sum[kind] = s
			if r.gaps == nil {
				gaps[kind] = append(gaps[kind], slices.Repeat([]time.Duration{u.P50}, max(0, min(u.N, maxWeight)))...)
			}
		}
		for _, w := range r.gaps {
			gaps[w.Fault.Kind] = append(gaps[w.Fault.Kind], w.Gap)
		}
	}
	for kind, list := range gaps {
		if len(list) == 0 {
			continue
		}
		slices.SortFunc(list, cmp.Compare[time.Duration])
		s := sum[kind]
		s.P50 = list[(len(list)-1)/2]
		sum[kind] = s
	}
	return sum
}

// maxWeight bounds what a parsed line may ask for.
const maxWeight = 1 << 16
