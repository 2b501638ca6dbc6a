//go:build failpoint

package replicas

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// At every failpoint of the package, at its first and its second hit, the process is killed or the
// power goes: every topic that the metadata knows is there with all that was acknowledged.
func TestCrashAtEveryFailpoint(t *testing.T) {
	defer failpoint.SetHook(nil)
	places, err := failpoint.Names(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range places {
		for hit := 1; hit <= 2; hit++ {
			for mode := range 3 { // cut and tear, cut, kill
				t.Run(fmt.Sprintf("%s/hit=%d/mode=%d", place, hit, mode), func(t *testing.T) {
					crashTopics(t, place, hit, mode)
				})
			}
		}
	}
}

func crashTopics(t *testing.T, place string, hit, mode int) {
	h := newHouse(t)
	rng := rand.New(rand.NewPCG(uint64(hit), uint64(mode)))
	fs := h.fs
	reached := failpoint.At(place, hit, func() { fs.CrashAt(1) })
	acked := map[string]map[record.Offset]string{}
	for round := 0; round < 8 && !reached(); round++ {
		h.work(rng, round, acked)
	}
	waitFor(t, reached)
	failpoint.SetHook(nil)
	h.halt(rng, mode+1)
	h.reopen()
	for name, records := range acked {
		got := h.read(name, 0)
		for offset, value := range records {
			if got[offset] != value {
				t.Fatalf("%s offset %d: acknowledged %.20q, found %.20q\n%s", name, offset, value, got[offset], h.logged)
			}
		}
	}
	if err := h.m.Trouble(); err != nil {
		t.Fatalf("%v\n%s", err, h.logged)
	}
	h.must(h.close())
}
