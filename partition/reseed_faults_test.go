package partition

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Retention follows close behind while replicas are cut off, stopped, and lose their power, also in the middle of a
// reset. No acknowledged record that is retained is lost anywhere, and in the end all logs are alike.
func TestResetsUnderFaults(t *testing.T) {
	rng, seed := seeded(t)
	synctest.Test(t, func(t *testing.T) {
		h := &house{reset: make(chan *rig, 64), trio: &trio{t: t, net: simnet.New(rand.New(rand.NewPCG(seed, 1)), simnet.Config{})}}
		s := &storm{house: h, rng: rng, acked: map[record.Offset]string{}}
		defer s.end()
		h.net.SetDefault(simnet.Path{Delay: time.Millisecond, Jitter: 3 * time.Millisecond})
		for i := range h.at {
			h.disks[i] = sim.New()
			s.open(i, true)
		}
		for range rounds(80) {
			s.fault()
			for range 12 {
				s.append()
				s.tend()
			}
			<-time.After(time.Duration(rng.IntN(8000)) * time.Millisecond) // leases end
		}
		s.calm()
		s.compare(t)
		t.Logf("%d resets, %d of them met a power cut, %d acknowledged, %d outcomes unknown", h.count+s.cuts, s.cuts, len(s.acked), s.unknown)
		if h.count < 2 && !testing.Short() {
			t.Errorf("only %d resets: this tested nothing", h.count)
		}
	})
}

// storm is what happens to a house, one thing after the other.
type storm struct {
	*house
	rng     *rand.Rand
	acked   map[record.Offset]string
	n       int // of the next value
	unknown int
	cuts    int // power cuts of replicas that had just been reset
}

func (s *storm) end() {
	for i := range s.at {
		if s.at[i] != nil && s.at[i].Replica != nil {
			_ = s.at[i].tryStop()
		}
	}
	s.net.Close()
}

func (s *storm) open(i int, isNew bool) {
	r := newRig(s.t, s.disks[i], "/data", func(r *rig) {
		s.member(r, i)
		s.owns(r)
		r.cfg.TopicConfig.Retention = log.Retention{Age: -1, Bytes: 2 * log.MinSegmentBytes}
	})
	if !isNew {
		r.cfg.Voters = nil
	}
	if err := r.tryStart(); err != nil && !errors.Is(err, sim.ErrCrashed) {
		s.t.Fatalf("replica %d does not start: %v", i, err)
	} else if err != nil {
		r.Replica = nil
	}
	s.at[i] = r
}

// fault changes what is broken. At most one replica is broken at a time.
func (s *storm) fault() {
	s.net.HealAll()
	s.reviveAll()
	victim := s.rng.IntN(3)
	switch s.rng.IntN(5) {
	case 0:
		<-time.After(time.Duration(s.rng.IntN(3000)) * time.Millisecond) // time to catch up
	case 1:
		s.down(victim)
	case 2: // soon, perhaps in the middle of a reset
		s.disks[victim].CrashAt(1 + s.rng.IntN(60))
	default:
		s.isolate(victim)
	}
}

// down ends a replica with its power.
func (s *storm) down(i int) {
	s.net.Host(host(i)).Crash()
	s.disks[i] = s.disks[i].Reboot(s.rng, s.rng.IntN(2) == 0)
	if s.at[i].Replica != nil {
		_ = s.at[i].tryStop()
		s.at[i].Replica = nil
	}
}

func (s *storm) reviveAll() {
	for i := range s.at {
		for s.at[i].Replica == nil { // a cut that was planned may have met its start
			s.open(i, false)
			if s.at[i].Replica == nil {
				s.down(i)
			}
		}
	}
}

// append tries to append one value wherever there is a leader.
func (s *storm) append() {
	for _, r := range s.at {
		if r.Replica == nil || !r.View().Leader {
			continue
		}
		v := fmt.Sprintf("%d-%04000d", s.n, s.n)
		s.n++
		p, err := r.Append(s.t.Context(), Append{Batch: batch(v), Acks: AcksQuorum})
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Second)
		a, err := p.Result(ctx)
		cancel()
		if err != nil {
			s.unknown++
			continue
		}
		if was, ok := s.acked[a.BaseOffset]; ok {
			s.t.Fatalf("offset %d was given to %.10s and to %.10s", a.BaseOffset, was, v)
		}
		s.acked[a.BaseOffset] = v
		return
	}
	<-time.After(300 * time.Millisecond)
}

// tend does what the owner of replicas does: retention, what has failed, what was reset.
func (s *storm) tend() {
	for i, r := range s.at {
		if r.Replica == nil {
			continue
		}
		_, err := r.Retain()
		if errors.Is(r.failure(), errReset) {
			continue
		}
		if err == nil {
			err = r.failure()
		}
		if errors.Is(err, sim.ErrCrashed) {
			s.down(i)
		} else if err != nil {
			s.t.Fatalf("replica %d: %v", i, err)
		}
	}
	for {
		select {
		case r := <-s.reset:
			s.renew(r)
		default:
			return
		}
	}
}

func (s *storm) renew(r *rig) {
	for i := range s.at {
		if s.at[i] != r || r.Replica == nil {
			continue
		}
		s.count++
		if err := r.tryStop(); err != nil {
			s.cuts++
			r.Replica = nil
			s.down(i)
			return
		}
		s.net.Host(host(i)).Endpoint("orders/3", raft.ServerAddress(r.cfg.ID)).Stop()
		s.open(i, false)
		if s.at[i].Replica == nil {
			s.cuts++
			s.down(i)
		}
	}
}

// calm ends all faults and waits until the replicas are alike.
func (s *storm) calm() {
	s.net.HealAll()
	for _, d := range s.disks {
		d.SetHook(nil)
	}
	acked := len(s.acked)
	s.await("all have caught up", func() bool {
		s.reviveAll()
		if len(s.acked) == acked {
			s.append()
		}
		s.tend()
		s.reviveAll()
		return caughtUp(s.at[0], s.at[1]) && caughtUp(s.at[0], s.at[2]) && s.at[0].highWatermark() == s.at[0].log.EndOffset()
	})
}

func (s *storm) await(what string, ok func() bool) {
	s.t.Helper()
	for range 9000 { // a lost answer to an offer costs its sender 20 s, and then it waits some more
		if ok() {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	for i, r := range s.at {
		s.t.Logf("replica %d: [%d,%d], %+v, %v", i, r.log.FirstIndex(), r.log.LastIndex(), r.View(), r.failure())
	}
	s.t.Fatalf("it never happens: %s", what)
}

// compare looks for every acknowledged record at every replica, from its log start on.
func (s *storm) compare(t *testing.T) {
	t.Helper()
	for i, r := range s.at {
		start, values := r.View().LogStart, r.values()
		for at, v := range s.acked {
			k := int(at - start)
			if at >= start && (k >= len(values) || values[k] != v) {
				t.Errorf("replica %d, log start %d: %.10s was acknowledged at offset %d, and is not there", i, start, v, at)
			}
		}
		for j := max(r.log.FirstIndex(), s.at[0].log.FirstIndex()); j <= r.log.LastIndex(); j++ {
			a, err1 := s.at[0].log.Entry(j)
			b, err2 := r.log.Entry(j)
			if err1 != nil || err2 != nil || a.Term != b.Term || string(a.Body) != string(b.Body) {
				t.Fatalf("entry %d differs at replica %d: %v, %v", j, i, err1, err2)
			}
		}
		if a, b := s.at[0].store.now(), r.store.now(); a.hash() != b.hash() || string(a.encoded) != string(b.encoded) {
			t.Errorf("replica %d has another state", i)
		}
	}
}
