// Package offsets is the language in which a reader says where to begin and
// where to end: start, end, 47, +2, -3, A:B, A:, :end, committed, @time, @-15m.
//
// The end of a range is the first offset that is not read.
package offsets

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemarkhq/tidemark/internal/config"
)

// Kind says how a Point is meant.
type Kind uint8

// Kinds of points.
const (
	Start      Kind = iota // the first offset that is kept
	End                    // after the newest committed record
	Exact                  // the offset N
	AfterStart             // N records after the start
	BeforeEnd              // N records before the end
	Time                   // the first record at or after T
	Committed              // where the group is
)

// Point is one place in a partition.
type Point struct {
	Kind Kind
	N    int64
	T    time.Time
}

// Range is what to read. Without To, the reader follows the log.
type Range struct {
	From Point
	To   *Point
}

// Parse reads a range; now is what relative times count from.
func Parse(s string, now time.Time) (Range, error) {
	if p, err := point(s, now); err == nil {
		return Range{From: p}, nil
	}
	// A: reads from A on and follows, as A alone does.
	if a, open := strings.CutSuffix(s, ":"); open {
		if p, err := point(a, now); err == nil {
			return Range{From: p}, nil
		}
	}
	// Times contain colons, so each colon is tried as the separator.
	for i := range len(s) {
		if s[i] != ':' {
			continue
		}
		from, to, err := pair(s[:i], s[i+1:], now)
		if err == nil {
			return Range{From: from, To: &to}, nil
		}
	}
	return Range{}, fmt.Errorf("offset %q: want start, end, N, +N, -N, A:B (A not above B), A:, :end, committed, @time or @-15m", s)
}

func pair(a, b string, now time.Time) (from, to Point, err error) {
	if a == "" {
		a = "start"
	}
	if from, err = point(a, now); err != nil {
		return from, to, err
	}
	if to, err = point(b, now); err != nil && strings.HasPrefix(a, "@") {
		to, err = point("@"+b, now)
	}
	if err == nil && (to.Kind == Committed || to.Kind == AfterStart && from.Kind != Start) {
		err = fmt.Errorf("%q cannot be an end", b)
	}
	if err == nil && from.Kind == Exact && to.Kind == Exact && to.N < from.N {
		err = fmt.Errorf("%s:%s ends before it begins", a, b)
	}
	return from, to, err
}

func point(s string, now time.Time) (Point, error) {
	switch s {
	case "start", "beginning", "earliest":
		return Point{Kind: Start}, nil
	case "end", "latest":
		return Point{Kind: End}, nil
	case "committed", "stored":
		return Point{Kind: Committed}, nil
	}
	if t, ok := strings.CutPrefix(s, "@"); ok {
		when, err := ParseTime(t, now)
		return Point{Kind: Time, T: when}, err
	}
	kind, digits := Exact, s
	if d, ok := strings.CutPrefix(s, "+"); ok {
		kind, digits = AfterStart, d
	} else if d, ok := strings.CutPrefix(s, "-"); ok {
		kind, digits = BeforeEnd, d
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return Point{}, fmt.Errorf("offset %q is not a number", s)
	}
	return Point{Kind: kind, N: int64(n)}, nil
}

var layouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02",
}

// ParseTime reads a date, a time, seconds or milliseconds since 1970, or a
// duration before (-15m) or after now.
func ParseTime(s string, now time.Time) (time.Time, error) {
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, s, time.UTC); err == nil {
			return t, nil
		}
	}
	if n, err := strconv.ParseUint(s, 10, 62); err == nil {
		if n >= 1e11 {
			return time.UnixMilli(int64(n)).UTC(), nil
		}
		return time.Unix(int64(n), 0).UTC(), nil
	}
	if d, err := config.ParseDuration(s); err == nil {
		return now.Add(d), nil
	}
	return time.Time{}, fmt.Errorf("time %q: want 2026-11-20, 2026-11-20T10:00Z, milliseconds since 1970, or -15m", s)
}

// Bounds is what a partition holds: [Start, End), or why that is not known.
type Bounds struct {
	Start, End int64
	Err        error
}

// FirstErr is why the first of the partitions is not known; nil: all are. No partitions mean all.
func FirstErr(bounds map[int32]Bounds, partitions ...int32) error {
	for _, p := range slices.Sorted(maps.Keys(bounds)) {
		if err := bounds[p].Err; err != nil && (len(partitions) == 0 || slices.Contains(partitions, p)) {
			return err
		}
	}
	return nil
}

// NeedsTime tells whether the point must be looked up by its time.
func (p Point) NeedsTime() bool { return p.Kind == Time }

// In resolves a point that needs no look-up, within bounds.
func (p Point) In(b Bounds) int64 {
	switch p.Kind {
	case End:
		return b.End
	case Exact:
		return p.N
	case AfterStart:
		return min(b.Start+p.N, b.End)
	case BeforeEnd:
		return max(b.End-p.N, b.Start)
	default:
		return b.Start
	}
}
