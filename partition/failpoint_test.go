//go:build failpoint

package partition

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// At every failpoint of the package, at its first and its second hit, the process is killed or the
// power goes while producers of all kinds are at work: nothing acknowledged is lost or doubled.
// A new place needs load that reaches it.
func TestCrashAtEveryFailpoint(t *testing.T) {
	defer failpoint.SetHook(nil)
	rng, _ := seeded(t)
	places, err := failpoint.Names(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range places {
		for hit := 1; hit <= 2; hit++ {
			for mode := range 3 { // kill, cut, cut and tear
				t.Run(fmt.Sprintf("%s/hit=%d/mode=%d", place, hit, mode), func(t *testing.T) {
					crashUnderLoad(t, rng, place, hit, mode)
				})
			}
		}
	}
}

func crashUnderLoad(t *testing.T, rng *rand.Rand, place string, hit, mode int) {
	h := &history{acked: map[string]record.Offset{}}
	sources := []*source{{name: "all", pid: -1, acks: AcksAll}, {name: "idem", pid: 1, acks: AcksAll}, {name: "leader", pid: 2, acks: AcksLeader}}
	small := withTopic(func(c *TopicConfig) { c.SegmentBytes = 64 << 10 })
	fs := sim.New()
	r := newRig(t, fs, "/data", small)
	reached := failpoint.At(place, hit, func() { fs.CrashAt(1) })
	err := r.tryStart()
	if err == nil {
		if err = r.awaitLeader(); err == nil {
			for range 10 {
				if reached() {
					break
				}
				for _, s := range sources {
					if err := s.run(r, h, s.next+60); err != nil {
						t.Fatal(err)
					}
				}
				tidy(r, h, 100)
			}
		}
		_ = r.tryStop()
	}
	if err != nil && !errors.Is(err, sim.ErrCrashed) {
		t.Fatal(err)
	}
	if !reached() {
		t.Fatalf("%s was not hit %d times", place, hit)
	}
	failpoint.SetHook(nil)
	if mode == 0 {
		fs = fs.Kill()
	} else {
		fs = fs.Reboot(rng, mode == 2)
	}
	finish(t, fs, small, h, sources, 0)
}
