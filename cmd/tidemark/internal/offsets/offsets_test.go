package offsets

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func TestParse(t *testing.T) {
	to := func(p Point) *Point { return &p }
	at := func(s string) Point {
		w, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return Point{Kind: Time, T: w}
	}
	for s, want := range map[string]Range{
		"start":     {From: Point{Kind: Start}},
		"end":       {From: Point{Kind: End}},
		"47":        {From: Point{Kind: Exact, N: 47}},
		"+2":        {From: Point{Kind: AfterStart, N: 2}},
		"-3":        {From: Point{Kind: BeforeEnd, N: 3}},
		"committed": {From: Point{Kind: Committed}},
		"5:10":      {From: Point{Kind: Exact, N: 5}, To: to(Point{Kind: Exact, N: 10})},
		"95:":       {From: Point{Kind: Exact, N: 95}},
		"@-15m:":    {From: at("2026-11-20T11:45:00Z")},
		":end":      {From: Point{Kind: Start}, To: to(Point{Kind: End})},
		"-10:end":   {From: Point{Kind: BeforeEnd, N: 10}, To: to(Point{Kind: End})},
		":+5":       {From: Point{Kind: Start}, To: to(Point{Kind: AfterStart, N: 5})},

		"@2026-11-20T10:00Z":                    {From: at("2026-11-20T10:00:00Z")},
		"@2026-11-20":                           {From: at("2026-11-20T00:00:00Z")},
		"@1795860000000":                        {From: at("2026-11-28T10:00:00Z")},
		"@-15m":                                 {From: at("2026-11-20T11:45:00Z")},
		"@-1h:-5m":                              {From: at("2026-11-20T11:00:00Z"), To: to(at("2026-11-20T11:55:00Z"))},
		"@-1h:end":                              {From: at("2026-11-20T11:00:00Z"), To: to(Point{Kind: End})},
		"@2026-11-20T10:00Z:@2026-11-20T11:00Z": {From: at("2026-11-20T10:00:00Z"), To: to(at("2026-11-20T11:00:00Z"))},
		"@2026-11-20T10:00:30Z:2026-11-20":      {From: at("2026-11-20T10:00:30Z"), To: to(at("2026-11-20T00:00:00Z"))},
	} {
		got, err := Parse(s, now)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", s, d)
		}
	}
	for _, s := range []string{"", "x", "1:x", "@", "@tomorrow", "--1", "1:committed", "99999999999999999999", ":"} {
		if r, err := Parse(s, now); err == nil {
			t.Errorf("%q: %+v", s, r)
		}
	}
}

func TestPointsStayInBounds(t *testing.T) {
	b := Bounds{Start: 10, End: 20}
	for s, want := range map[string]int64{"start": 10, "end": 20, "15": 15, "+3": 13, "+30": 20, "-3": 17, "-30": 10} {
		r, err := Parse(s, now)
		if err != nil || r.From.In(b) != want {
			t.Errorf("%s: %d, want %d (%v)", s, r.From.In(b), want, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"start", "@-1h:-5m", "1:2", "@2026-11-20T10:00Z"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, s string) { _, _ = Parse(s, now) })
}
