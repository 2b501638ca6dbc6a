package powercut

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/broker/inspect"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// brokerCuts is how often the broker of one disk loses its power.
func brokerCuts() int {
	if testing.Short() {
		return 1
	}
	return 4
}

// A broker whose machine loses its power again and again under load keeps what it
// acknowledged, and a group what it committed.
func TestBrokerUnderPowerCuts(t *testing.T) {
	kinds := []string{"fuse", "fuse-strict"}
	if seconds() > 0 {
		kinds = append(kinds, onBlock...)
	}
	for _, kind := range kinds {
		var results []check.Result
		limit := time.Duration(shareBroker * seconds() * float64(time.Second))
		for began := time.Now(); len(results) == 0 || time.Since(began) < limit; {
			ok := t.Run(kind, func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				results = append(results, cutBroker(t, kind, seed))
			})
			if !ok {
				return
			}
		}
		fmt.Println(check.Merge(results...))
	}
}

func cutBroker(t *testing.T, kind string, seed uint64) check.Result {
	rng := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, kind, "powercut-broker-"+kind, seed)
	w.mount()
	w.mustStart()
	w.create(topics...)
	l := w.load()
	l.awaitAcks(1)
	for range brokerCuts() {
		from := w.now()
		lost := w.powerCut(w.d.fs.CutAfter(1+rng.IntN(2000), rng.IntN(2) == 0, w.killNow))
		w.h.Saw("cuts", 1)
		w.h.Saw("sectors_lost", int64(lost.SectorsLost))
		w.mount()
		if rng.IntN(3) == 0 { // once more, while it starts
			cut := w.d.fs.CutAfter(1+rng.IntN(60), true, nil)
			if err := w.start(); err == nil {
				l.awaitAcks(1)
			}
			w.powerCut(cut)
			w.h.Saw("cuts_at_start", 1)
			w.mount()
		}
		w.mustStart()
		w.h.Fault(check.Fault{Kind: "power", From: from, Until: w.now()})
		_, read := l.counts()
		l.awaitAcks(1)
		l.await("the group to read on", func() bool { return l.read > read })
	}
	l.stop()
	w.readAll()
	w.stop()
	w.verify()
	return w.judge(check.Require{"cuts": int64(brokerCuts()), check.SawAcked: 100, check.Checked(check.Lost): 1, check.Checked(check.DuplicateIdempotent): 1,
		check.Checked(check.CommitRegress): 1, check.Checked(check.CommitAhead): 1, check.Checked(check.PollSkip): 1})
}

// verify checks every byte of a stopped broker. Indexes may be damaged: they are not synced, and built
// anew when they are used.
func (w *world) verify() {
	w.t.Helper()
	s, err := inspect.Verify(fsx.OS(), w.conf.Dir)
	if err != nil {
		w.t.Error(err)
	}
	for _, d := range s.Damage {
		if !d.Rebuilt && !d.Padding {
			w.t.Errorf("damage: %+v", d)
		}
	}
}
