package check_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	. "github.com/tidemarkhq/tidemark/internal/check"
)

func recorded() *History {
	r := NewRecorder("unit", 7, 100)
	t := r.Begin(at(1, 1, idem(3, 1, 4, send(":a"))))
	r.Begin(at(1, 1, send(":never")))
	r.End(t, at(1, 2, idem(3, 1, 4, send("5:a"))))
	r.Add(at(3, 4, grouped(poll("c", "5:a"))))
	r.Add(at(3, 4, reset(commit("c", 6))))
	r.Add(at(3, 5, assign("c")))
	r.Fact(seen(Log, 4, on("a", entries(2, Entry{1, 1, 7}))))
	r.Fault(Fault{Kind: "kill", Key: k0, From: 5, Until: 6})
	r.Saw("rolls", 2)
	r.Saw("rolls", 1)
	return r.History()
}

func TestHistoriesSurviveTheirEncoding(t *testing.T) {
	h := recorded()
	if h.Ops[1].Outcome != Unknown || h.Ops[0].Outcome != OK {
		t.Errorf("outcomes %s, %s", h.Ops[0].Outcome, h.Ops[1].Outcome)
	}
	var raw bytes.Buffer
	if err := Encode(&raw, h); err != nil {
		t.Fatal(err)
	}
	back, err := Decode(bytes.NewReader(raw.Bytes()))
	if err != nil {
		t.Fatalf("%v\n%s", err, raw.String())
	}
	if diff := cmp.Diff(h, back); diff != "" {
		t.Error(diff)
	}
}

func TestDamagedHistoriesAreRefused(t *testing.T) {
	var raw bytes.Buffer
	if err := Encode(&raw, recorded()); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(raw.String(), "\n"), "\n")
	for name, text := range map[string]string{
		"empty":               "",
		"no header":           strings.Join(lines[1:], ""),
		"two headers":         lines[0] + strings.Join(lines, ""),
		"cut off":             strings.Join(lines[:len(lines)-1], ""),
		"a line is missing":   strings.Join(append(lines[:2:2], lines[3:]...), ""),
		"torn":                raw.String()[:raw.Len()-5],
		"unknown kind":        strings.Replace(raw.String(), `"kind":"poll"`, `"kind":"pull"`, 1),
		"unknown version":     strings.Replace(raw.String(), `"version":1`, `"version":2`, 1),
		"unknown member":      lines[0] + "{\"opp\":{}}\n",
		"a line without end":  lines[0] + `{"op":{"error":"` + strings.Repeat("x", MaxLine),
		"key is no partition": strings.Replace(raw.String(), `"t/0"`, `"t"`, 1),
	} {
		if _, err := Decode(strings.NewReader(text)); err == nil {
			t.Errorf("%s: is read", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestARecorderIsBounded(t *testing.T) {
	r := NewRecorder("unit", 1, 3000)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				op := at(1, 2, latest(0))
				ticket := r.Begin(op)
				r.End(ticket, op)
			}
		})
	}
	all.Wait()
	h := r.History()
	if len(h.Ops) != 3000 || h.Dropped != 1000 {
		t.Errorf("%d operations, %d dropped", len(h.Ops), h.Dropped)
	}
	for _, op := range h.Ops {
		if op.Outcome != OK {
			t.Fatalf("%s was ended", op.String())
		}
	}
	if err := Check(h).Err(nil); err == nil || !strings.Contains(err.Error(), "FAIL: invalid") {
		t.Errorf("a history with holes passes: %v", err)
	}
}

// What can be read can be judged and written again, whatever it says.
func FuzzDecode(f *testing.F) {
	var raw bytes.Buffer
	for _, h := range []*History{recorded(), faulty(1), run(rand.New(rand.NewPCG(1, 1)).IntN, 60)} {
		raw.Reset()
		if err := Encode(&raw, h); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(raw.Bytes()))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := Decode(bytes.NewReader(text))
		if err != nil {
			return
		}
		r := Check(h)
		_ = r.Err(nil)
		if again := Check(h); !cmp.Equal(r, again) {
			t.Errorf("judged twice: %s", cmp.Diff(r, again))
		}
		var out bytes.Buffer
		if err := Encode(&out, h); err != nil {
			t.Fatal(err)
		}
		if back, err := Decode(&out); err != nil || !cmp.Equal(h, back, cmpopts.EquateEmpty()) {
			t.Errorf("written and read: %v %s", err, cmp.Diff(h, back))
		}
	})
}
