package check_test

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	. "github.com/tidemarkhq/tidemark/internal/check"
)

var update = flag.Bool("update", false, "rewrite testdata")

// faulty is a run with a bit of everything.
func faulty(seed uint64) *History {
	h := &History{Header: Header{Suite: "unit", Seed: seed}, Saw: map[string]int64{"repaired_tails": 2}}
	h.Ops = []Op{
		at(1, 2, send("0:a")), at(3, 4, unknown(send(":b"))), at(3, 4, failed(send(":c"))), at(9, 10, send("2:d")),
		at(20, 21, send("3:e")), at(40, 42, final(0, 4, "0:a 1:b 2:d")),
	}
	h.Faults = []Fault{{Kind: "kill", From: 5e9, Until: 6e9}, {Kind: "pause", From: 12e9, Until: 14e9}}
	h.Facts = []Fact{seen(Leader, 1, Fact{Replica: "a", Term: 1}), seen(Leader, 8, Fact{Replica: "b", Term: 3})}
	return h
}

func TestResultLine(t *testing.T) {
	const golden = "testdata/result.txt"
	one := Check(faulty(7)).Result(Require{SawElections: 1, Checked(PollSkip): 0})
	two := Check(faulty(8)).Result(nil)
	got := one.String() + "\n" + Merge(one, two).String() + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-update rewrites it)\n%s", golden, diff)
	}
	for line := range strings.Lines(got) {
		back, err := ParseResult(line)
		if err != nil {
			t.Fatal(err)
		}
		if again := back.String() + "\n"; again != line {
			t.Errorf("parsed and printed:\n%s", cmp.Diff(line, again))
		}
	}
}

func TestMergedLinesAreTheMergedResults(t *testing.T) {
	one, two := Check(faulty(7)).Result(nil), Check(faulty(8)).Result(nil)
	parsed := make([]Result, 0, 2)
	for _, r := range []Result{one, two} {
		p, err := ParseResult(r.String())
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, p)
	}
	if diff := cmp.Diff(Merge(one, two).String(), Merge(parsed...).String()); diff != "" {
		t.Error(diff)
	}
	mixed := Merge(Merge(one, parsed[1]), two)
	if u := mixed.Unavail["kill"]; u.N != 3 {
		t.Errorf("kills after merging parsed and own results: %+v", u)
	}
}

func TestTheVerdictOfAMergeIsTheWorst(t *testing.T) {
	clean := Check(&History{Header: Header{Suite: "unit", Seed: 1}})
	bad := Check(faulty(2))
	got := Merge(clean.Result(nil), clean.Result(Require{SawElections: 1}), bad.Result(nil), clean.Result(nil))
	if got.Verdict != Failed || got.Seed != 2 || got.Runs != 4 {
		t.Errorf("%s", got)
	}
	if got := Merge(clean.Result(nil), clean.Result(Require{SawElections: 1})); got.Verdict != Vacuous {
		t.Errorf("%s", got)
	}
}

func TestDamagedResultLines(t *testing.T) {
	for _, line := range []string{
		"", "suite=x", "RESULT", "RESULT suite=x", "RESULT suite=x seed=1 runs=1 verdict=fine", "RESULT suite=x verdict=pass lost",
		"RESULT suite=x verdict=pass lost=no", "RESULT suite=x verdict=pass lost=1 lost=0", "RESULT suite=x verdict=pass unavail_kill=1s",
		"RESULT suite=x verdict=pass unavail_kill_p50=1", "RESULT suite=x verdict=pass unavail_kill_p99=1s",
	} {
		if r, err := ParseResult(line); err == nil {
			t.Errorf("%q is read as %s", line, r)
		}
	}
}

func TestARunThatSawTooLittleIsVacuous(t *testing.T) {
	r := Check(&History{Ops: []Op{at(1, 2, send("0:a")), at(3, 4, final(0, 1, "0:a"))}})
	if err := r.Err(Require{SawAcked: 1, Checked(Lost): 1}); err != nil {
		t.Error(err)
	}
	err := r.Err(Require{SawElections: 1, "rolls": 2, SawAcked: 1})
	if want := "FAIL: vacuous: elections=0, want at least 1; rolls=0, want at least 2"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := Check(&History{Ops: []Op{at(1, 2, send("0:a"))}}).Err(Require{SawElections: 1}); err == nil || !strings.Contains(err.Error(), "FAIL: unseen=1\n") {
		t.Errorf("a violation is hidden behind what was not seen: %v", err)
	}
}

func TestInvalidHistories(t *testing.T) {
	for name, op := range map[string][]Op{
		"outcome":       {at(1, 2, Op{Kind: Latest, Outcome: "done"})},
		"kind":          {at(1, 2, Op{Kind: "read"})},
		"backwards":     {at(2, 1, latest(0))},
		"nothing sent":  {at(1, 2, Op{Kind: Send})},
		"no group":      {at(1, 2, Op{Kind: Commit})},
		"fence":         {at(1, 2, Op{Kind: Fence})},
		"sent again":    {at(1, 2, send("0:a")), at(3, 4, send("0:a")), at(5, 6, final(0, 1, "0:a"))},
		"twice in one":  {at(1, 2, send("0:a 1:a")), at(5, 6, final(0, 2, "0:a 1:a"))},
		"without a key": {{Kind: Latest, Process: "p", Outcome: OK}},
	} {
		if err := Check(&History{Ops: op}).Err(nil); err == nil || !strings.Contains(err.Error(), "invalid history") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWindows(t *testing.T) {
	const s = int64(time.Second)
	other := Key{Topic: "t", Partition: 1}
	steady := func(k Key, until int64, gaps ...[2]int64) map[Key][]int64 {
		var list []int64
		for at := int64(0); at <= until; at += s / 100 {
			ok := true
			for _, g := range gaps {
				ok = ok && (at <= g[0] || at >= g[1])
			}
			if ok {
				list = append(list, at)
			}
		}
		return map[Key][]int64{k: list}
	}
	both := func(a, b map[Key][]int64) map[Key][]int64 {
		for k, list := range b {
			a[k] = list
		}
		return a
	}
	kill := func(from, until int64) Fault { return Fault{Kind: "kill", From: from, Until: until} }
	for name, c := range map[string]struct {
		acks   map[Key][]int64
		faults []Fault
		config WindowConfig
		want   []Window
	}{
		"no gap":                      {steady(k0, 20*s), []Fault{kill(5*s, 6*s)}, WindowConfig{}, []Window{{Key: k0, Gap: s1 / 100}}},
		"from the fault to the first": {steady(k0, 20*s, [2]int64{5 * s, 7 * s}), []Fault{kill(5*s, 6*s)}, WindowConfig{}, []Window{{Key: k0, Gap: 2 * s1}}},
		"acks that were under way":    {steady(k0, 20*s, [2]int64{5*s + s/10, 7 * s}), []Fault{kill(5*s, 6*s)}, WindowConfig{}, []Window{{Key: k0, Gap: 1900 * time.Millisecond}}},
		"after it was healed":         {steady(k0, 20*s, [2]int64{8 * s, 9 * s}), []Fault{kill(5*s, 6*s)}, WindowConfig{}, []Window{{Key: k0, Gap: s1}}},
		"long after it was healed":    {steady(k0, 20*s, [2]int64{12 * s, 13 * s}), []Fault{kill(5*s, 6*s)}, WindowConfig{}, []Window{{Key: k0, Gap: s1 / 100}}},
		"longer than it takes to settle": {steady(k0, 20*s, [2]int64{5*s + s/10, 15 * s}), []Fault{kill(5*s, 6*s)}, WindowConfig{},
			[]Window{{Key: k0, Gap: 9900 * time.Millisecond}}},
		"the worst partition":     {both(steady(k0, 20*s), steady(other, 20*s, [2]int64{5 * s, 7 * s})), []Fault{kill(5*s, 6*s)}, WindowConfig{}, []Window{{Key: other, Gap: 2 * s1}}},
		"the partition it hit":    {both(steady(k0, 20*s), steady(other, 20*s, [2]int64{5 * s, 7 * s})), []Fault{{Key: k0, From: 5 * s, Until: 6 * s}}, WindowConfig{}, []Window{{Key: k0, Gap: s1 / 100}}},
		"the next one's gap":      {steady(k0, 20*s, [2]int64{8 * s, 10 * s}), []Fault{kill(5*s, 6*s), kill(8*s, 9*s)}, WindowConfig{}, []Window{{Key: k0, Gap: s1 / 100}, {Key: k0, Gap: 2 * s1}}},
		"not over before another": {steady(k0, 20*s, [2]int64{5 * s, 10 * s}), []Fault{kill(5*s, 6*s), kill(8*s, 9*s)}, WindowConfig{}, []Window{{Key: k0, Gap: 5 * s1}, {Key: k0, Gap: 2 * s1}}},
		"never again":             {both(steady(k0, 5*s), steady(other, 20*s)), []Fault{kill(5*s, 6*s)}, WindowConfig{}, []Window{{Key: k0, Gap: 15 * s1, Open: true}}},
		"the load ended":          {steady(k0, 5*s), []Fault{kill(5*s, 6*s)}, WindowConfig{}, nil},
		"none for all the load":   {steady(k0, 5*s), []Fault{kill(5*s, 6*s)}, WindowConfig{LoadEnd: 20 * s}, []Window{{Key: k0, Gap: 15 * s1, Open: true}}},
		"no acks at all":          {nil, []Fault{kill(5*s, 6*s)}, WindowConfig{}, nil},
	} {
		got := Windows(c.acks, c.faults, c.config)
		if diff := cmp.Diff(c.want, got, cmpopts.IgnoreFields(Window{}, "Fault")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

const s1 = time.Second
