package raftgroup

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// A vote is written and its sync does not come back, or fails. Then the process is killed, the next one
// reads the vote, and works with it. Then the power fails: the vote must still be there.
func TestAVoteThatWasReadSurvivesAPowerCut(t *testing.T) {
	for name, fault := range map[string]func(hang chan struct{}) sim.Fault{
		"killed before the sync": func(hang chan struct{}) sim.Fault { return sim.Fault{Until: hang} },
		"the sync failed":        func(chan struct{}) sim.Fault { return sim.Fault{Err: errors.New("input/output error")} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := diskWithDir(t)
				s := openStable(t, disk)
				slot := slotOf(t, s, 1)
				if err := errors.Join(setTerm(slot, 1), giveVote(slot, 1, "a"), setTerm(slot, 2)); err != nil {
					t.Fatal(err)
				}
				hang := make(chan struct{})
				disk.SetHook(func(op sim.Op) sim.Fault {
					if op.Kind == sim.OpSync {
						return fault(hang)
					}
					return sim.Fault{}
				})
				done := make(chan error, 1)
				go func() { done <- giveVote(slot, 2, "b") }()
				synctest.Wait()
				after := disk.Kill()
				if err := <-done; err == nil {
					t.Error("a vote was answered that is not on disk")
				}
				read := load(t, slotOf(t, openStable(t, after), 1))
				if read.candidate != "b" {
					t.Fatalf("the page cache holds %+v: this tests nothing", read)
				}
				cut := after.Reboot(rand.New(rand.NewPCG(1, 1)), false)
				if got := load(t, slotOf(t, openStable(t, cut), 1)); got != read {
					t.Errorf("after the restart the vote was %+v, after the power cut it is %+v", read, got)
				}
			})
		})
	}
}

// Votes under kills, failed syncs and power cuts at random: whatever a start has read, or a call has
// answered, is there at every later start, and there are never two votes in one term.
func TestNoVoteIsTakenBack(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed: TIDEMARK_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	disk := diskWithDir(t)
	given := map[uint64]string{} // by term
	var known vote
	var kills, cuts int
	for range 1500 {
		s := openStable(t, disk)
		slot := slotOf(t, s, 1)
		got := load(t, slot)
		if got.term < known.term || got.voteTerm < known.voteTerm {
			t.Fatalf("%+v was known, %+v is there", known, got)
		}
		if c, ok := given[got.voteTerm]; ok && c != got.candidate {
			t.Fatalf("in term %d %q had the vote, now %q", got.voteTerm, c, got.candidate)
		}
		given[got.voteTerm], known = got.candidate, got
		faulty, n := rng.IntN(12), 0
		short := sim.SectorBytes * rng.IntN(stableBlock/sim.SectorBytes)
		disk.SetHook(func(op sim.Op) sim.Fault {
			if n++; n <= faulty || op.Kind == sim.OpRead || op.Kind == sim.OpOpen {
				return sim.Fault{}
			}
			return sim.Fault{Err: errors.New("input/output error"), Short: short}
		})
		for i := range rng.IntN(4) {
			now := vote{term: known.term + 1, voteTerm: known.term + 1, candidate: fmt.Sprint("c", rng.IntN(100), "-", i)}
			if setTerm(slot, now.term) != nil || giveVote(slot, now.voteTerm, now.candidate) != nil {
				break
			}
			given[now.voteTerm], known = now.candidate, now
		}
		disk.SetHook(nil)
		if rng.IntN(3) == 0 {
			disk = disk.Reboot(rng, rng.IntN(2) == 0)
			cuts++
		} else {
			disk = disk.Kill()
			kills++
		}
	}
	t.Logf("%d kills, %d power cuts, term %d", kills, cuts, known.term)
}
