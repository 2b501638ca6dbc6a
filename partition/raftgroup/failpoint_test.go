//go:build failpoint

package raftgroup

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// At every failpoint of the package, at its first and its second hit, the process is killed or the
// power goes: votes and snapshots that were finished are there, and no half of either.
// A new place needs a step in crashScript that reaches it.
func TestCrashAtEveryFailpoint(t *testing.T) {
	defer failpoint.SetHook(nil)
	places, err := failpoint.Names(".")
	must(t, err)
	for _, place := range places {
		for hit := 1; hit <= 2; hit++ {
			for seed := range uint64(12) {
				disk := diskWithDir(t)
				reached := failpoint.At(place, hit, func() { disk.CrashAt(1) })
				what := fmt.Sprintf("%s, hit %d, seed %d", place, hit, seed)
				certain, maybe, _ := voteScript(disk)
				finished := snapshotScript(disk)
				if !reached() {
					t.Errorf("%s was not hit %d times", place, hit)
					break
				}
				failpoint.SetHook(nil)
				if seed%3 == 0 {
					disk = disk.Kill()
				} else {
					disk = disk.Reboot(rand.New(rand.NewPCG(seed, 0)), seed%3 == 1)
				}
				checkVotes(t, what, disk, certain, maybe)
				checkSnapshots(t, what, disk, finished)
			}
		}
	}
}

// snapshotScript takes snapshots at 10, 20 and so on; it returns the last one that was finished.
func snapshotScript(disk *sim.FS) (finished uint64) {
	s, _, err := openSnapshots(disk, "d/snapshots", quiet, NewMetrics(nil))
	if err != nil {
		return 0
	}
	for i := uint64(1); i <= 5 && takeSnapshot(s, i*10, 1, fmt.Sprint("state ", i)) == nil; i++ {
		finished = i * 10
	}
	return finished
}

func checkVotes(t *testing.T, what string, disk *sim.FS, certain, maybe map[byte]vote) {
	t.Helper()
	s := openStable(t, disk)
	defer s.Close()
	for id := byte(1); id <= 3; id++ {
		if got := load(t, slotOf(t, s, id)); got != certain[id] && got != maybe[id] {
			t.Fatalf("%s: group %d says %+v, must be %+v or %+v", what, id, got, certain[id], maybe[id])
		}
	}
}

func checkSnapshots(t *testing.T, what string, disk *sim.FS, finished uint64) {
	t.Helper()
	s, damaged, err := openSnapshots(disk, "d/snapshots", quiet, NewMetrics(nil))
	if err != nil || damaged > 0 {
		t.Fatalf("%s: %d damaged snapshots, %v", what, damaged, err)
	}
	metas, err := s.List()
	must(t, err)
	if len(metas) == 0 {
		if finished > 0 {
			t.Fatalf("%s: no snapshot, %d was finished", what, finished)
		}
		return
	}
	_, r, err := s.Open(metas[0].ID)
	must(t, err)
	if state, _ := io.ReadAll(r); metas[0].Index < finished || string(state) != fmt.Sprint("state ", metas[0].Index/10) {
		t.Fatalf("%s: snapshot %d says %q, %d was finished", what, metas[0].Index, state, finished)
	}
}
