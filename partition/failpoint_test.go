//go:build failpoint

package partition

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

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
		if strings.HasPrefix(place, "partition/reset/") {
			continue // see TestCrashAtEveryFailpointOfAReset
		}
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

// At every failpoint of a reset, in the first of two and in the second: the replica stands wholly in
// one of the generations, in the newer one once the leader was answered, and gets there when the offers come again.
func TestCrashAtEveryFailpointOfAReset(t *testing.T) {
	defer failpoint.SetHook(nil)
	places, err := failpoint.Names(".")
	if err != nil {
		t.Fatal(err)
	}
	leader, whole := retained(t)
	base, term := leader.log.FirstIndex()-1, leader.group.Load().Term()
	early := earlierOrigin(t, whole, base)
	early.req.Term = term
	offers := []offered{early, offering(t, leader.Replica, term)}
	for _, place := range places {
		if !strings.HasPrefix(place, "partition/reset/") {
			continue
		}
		for hit := 1; hit <= 2; hit++ {
			for mode := range 3 { // kill, cut, cut and tear
				t.Run(fmt.Sprintf("%s/hit=%d/mode=%d", place, hit, mode), func(t *testing.T) {
					crashResets(t, leader, offers, place, hit, mode)
				})
			}
		}
	}
}

func crashResets(t *testing.T, leader *rig, offers []offered, place string, hit, mode int) {
	f := joining(t, sim.New())
	fs := f.fs.(*sim.FS)
	reached := failpoint.At(place, hit, func() { fs.CrashAt(1) })
	answered, err := resets(f, offers)
	failpoint.SetHook(nil)
	if !reached() || err != nil && !errors.Is(err, sim.ErrCrashed) {
		t.Fatalf("reached %t: %v", reached(), err)
	}
	if mode == 0 {
		fs = fs.Kill()
	} else {
		fs = fs.Reboot(rand.New(rand.NewPCG(uint64(hit), uint64(mode))), mode == 2)
	}
	f = joining(t, fs)
	f.start()
	at := []uint64{0, offers[0].req.LastLogIndex, offers[1].req.LastLogIndex}
	switch last := uint64(f.log.LastIndex()); {
	case f.gen.n != uint64(answered) && f.gen.n != uint64(answered)+1:
		t.Fatalf("%d offers were answered, and the replica stands in generation %d", answered, f.gen.n)
	case last != at[f.gen.n]:
		t.Fatalf("generation %d ends at %d", f.gen.n, last)
	}
	f.heartbeat(leader.group.Load().Term())
	if int(f.gen.n) < len(offers) {
		if resp, err := offers[1].to(f.Replica); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		f.reopen()
	}
	last := leader.log.LastIndex()
	f.mustFeed(leader.log, leader.group.Load().Term(), last, last)
	leader.same(t, f.rig)
}

// resets answers one offer after the other, as long as the power is on.
func resets(f *follower, offers []offered) (answered int, err error) {
	defer func() {
		if f.Replica != nil {
			_ = f.tryStop()
		}
	}()
	if err := f.tryStart(); err != nil {
		return 0, err
	}
	for _, o := range offers {
		if _, err := f.send(&raft.AppendEntriesRequest{Term: o.req.Term}); err != nil {
			return answered, err
		}
		if _, err := o.to(f.Replica); err != nil {
			return answered, err
		}
		answered++
		<-f.reset
		if err := f.tryStop(); err != nil {
			return answered, err
		}
		if err := f.tryStart(); err != nil {
			return answered, err
		}
	}
	return answered, nil
}
