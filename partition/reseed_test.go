package partition

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// house is a trio whose replicas are opened again after a reset, as their owner would.
type house struct {
	*trio
	reset chan *rig
	count int // of resets
	next  int // value to append
}

// housed runs f on three replicas of small segments.
func housed(t *testing.T, f func(h *house, t *testing.T), opts ...option) {
	h := &house{}
	three(t, func(c *trio, t *testing.T) {
		h.trio = c
		f(h, t)
	}, append([]option{func(r *rig) {
		if h.reset == nil {
			h.reset = make(chan *rig, 16) // made in the bubble
		}
		h.owns(r)
	}}, opts...)...)
}

func (h *house) owns(r *rig) {
	r.cfg.TopicConfig.SegmentBytes = log.MinSegmentBytes
	r.deps.OnReset = func() { h.reset <- r }
}

// settle waits for a condition and does an owner's work meanwhile.
func (h *house) settle(what string, ok func() bool) {
	h.t.Helper()
	h.until(what, func() bool {
		select {
		case r := <-h.reset:
			h.count++
			if err := r.tryStop(); err != nil {
				h.t.Fatal(err)
			}
			r.cfg.Voters = nil
			if err := r.tryStart(); err != nil {
				h.t.Fatal(err)
			}
		default:
		}
		return ok()
	})
}

// load appends n values of 4 KB at a leader and waits until a majority has them.
func (h *house) load(r *rig, n int) {
	h.t.Helper()
	for range n {
		b := numbered(int64(h.next%3), 0, int32(h.next/3), fmt.Sprintf("%d-%04000d", h.next, h.next))
		if _, err := r.append(Append{Batch: b, Acks: AcksQuorum}); err != nil {
			h.t.Fatal(err)
		}
		h.next++
	}
}

// caughtUp tells whether b has applied all that a's log holds.
func caughtUp(a, b *rig) bool {
	return b.log.LastIndex() == a.log.LastIndex() && b.highWatermark() == a.highWatermark()
}

// identical compares the records that two replicas serve, byte by byte.
func identical(t *testing.T, a, b *rig) {
	t.Helper()
	x, y := served(t, a), served(t, b)
	if !bytes.Equal(x, y) || len(x) == 0 {
		t.Fatalf("one replica serves %d bytes, the other %d, and they are not the same", len(x), len(y))
	}
}

func served(t *testing.T, r *rig) (all []byte) {
	t.Helper()
	for next := r.View().LogStart; ; {
		batches, _, err := r.Read(next, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(batches) == 0 {
			return all
		}
		for _, b := range batches {
			all = append(all, b...)
			next = b.BaseOffset() + record.Offset(b.Count())
		}
	}
}

// What F6 was: a replica that lags behind retention ends with everything that its leader retains.
func TestALaggingReplicaGetsAllThatIsRetained(t *testing.T) {
	housed(t, func(h *house, t *testing.T) {
		n := h.leader(-1)
		leader, lagging := h.at[n], h.at[(n+1)%3]
		h.load(leader, 10)
		h.isolate((n + 1) % 3)
		h.load(leader, 60)
		leader.giveUp(t)
		h.net.HealAll()
		began := time.Now()
		h.settle("the replica has caught up", func() bool { return caughtUp(leader, lagging) })
		if h.count != 1 {
			t.Errorf("it was reset %d times", h.count)
		}
		if took := time.Since(began); took > 10*time.Second { // Raft's backoff and a commit timeout or two
			t.Errorf("it took %v: the leader does not hear of the reset", took)
		}
		if a := leader.View().LogStart; a == 0 || lagging.View().LogStart != a {
			t.Fatalf("the leader's log starts at %d, the replica's at %d", a, lagging.View().LogStart)
		}
		leader.same(t, lagging)
		identical(t, leader, lagging)

		// It is a member like any other.
		h.settle("all are in sync", func() bool { return len(leader.ISR()) == 3 })
		leader.mustAppend(batch("acks=all"))
		to := lagging.cfg.ID
		if err := leader.group.Load().Raft().LeadershipTransferToServer(to, raft.ServerAddress(to)).Error(); err != nil {
			t.Fatal(err)
		}
		h.settle("it leads", func() bool { return lagging.View().Leader })
		h.load(lagging, 5)
		// A batch from below its base that comes again is a duplicate.
		again, err := lagging.append(Append{Batch: numbered(int64((h.next-1)%3), 0, int32((h.next-1)/3), fmt.Sprintf("%d-%04000d", h.next-1, h.next-1))})
		if err != nil || !again.Duplicate {
			t.Errorf("%+v, %v", again, err)
		}
		h.settle("all have caught up", func() bool {
			return caughtUp(lagging, h.at[0]) && caughtUp(lagging, h.at[1]) && caughtUp(lagging, h.at[2])
		})
		identical(t, lagging, leader)
	})
}

// A leader that was cut off with a long tail of its own comes back behind retention: the tail goes, everything
// that is retained comes.
func TestADivergentLeaderBehindRetentionIsReset(t *testing.T) {
	housed(t, func(h *house, t *testing.T) {
		n := h.leader(-1)
		old := h.at[n]
		h.load(old, 5)
		h.until("all have it", func() bool { return caughtUp(old, h.at[0]) && caughtUp(old, h.at[1]) && caughtUp(old, h.at[2]) })
		h.isolate(n)
		fork := old.log.LastIndex()
		for range 60 { // it stores them, and nobody else ever does
			if _, err := old.Append(t.Context(), Append{Batch: batch(string(make([]byte, 4000))), Acks: AcksNone}); err != nil {
				t.Fatal(err)
			}
		}
		m := h.leader(n)
		leader := h.at[m]
		h.until("the tail is stored", func() bool { return old.log.LastIndex() >= fork+50 })
		h.load(leader, 60)
		leader.giveUp(t)
		base := leader.log.FirstIndex() - 1
		if base <= old.commitIndex() || base > old.log.LastIndex() {
			t.Fatalf("the base %d is not in the tail (%d,%d]", base, old.commitIndex(), old.log.LastIndex())
		}
		h.net.HealAll()
		h.settle("the old leader has caught up", func() bool { return caughtUp(leader, old) })
		if h.count != 1 {
			t.Errorf("it was reset %d times", h.count)
		}
		leader.same(t, old)
		identical(t, leader, old)
	})
}

// A new replica joins as a non-voter, gets all that is retained, and is promoted.
func TestANewReplicaJoinsBehindRetention(t *testing.T) {
	housed(t, func(h *house, t *testing.T) {
		n := h.leader(-1)
		leader := h.at[n]
		h.load(leader, 60)
		leader.giveUp(t)
		fourth := newRig(t, sim.New(), "/data", func(r *rig) {
			h.owns(r)
			r.cfg.ID, r.cfg.Voters, r.cfg.Join = "3/replica", nil, true
			r.deps.Transport = h.net.Host(host(3)).Endpoint("orders/3", raft.ServerAddress(r.cfg.ID))
		})
		if err := fourth.tryStart(); err != nil {
			t.Fatal(err)
		}
		defer fourth.tryStop()
		g := leader.group.Load().Raft()
		addr := raft.ServerAddress(fourth.cfg.ID)
		if err := g.AddNonvoter(fourth.cfg.ID, addr, 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		h.settle("the new replica has caught up", func() bool { return caughtUp(leader, fourth) })
		leader.same(t, fourth)
		if err := g.AddVoter(fourth.cfg.ID, addr, 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		h.load(leader, 3)
		h.settle("the voter has caught up", func() bool { return caughtUp(leader, fourth) && len(leader.ISR()) == 4 })
		identical(t, leader, fourth)
		if h.count != 1 {
			t.Errorf("%d resets", h.count)
		}
	})
}

// Offers are doubled, late and out of order, and retention goes on while the replica is fed. It gets there, without
// being reset again and again.
func TestAReplicaGetsThereWhileRetentionGoesOn(t *testing.T) {
	housed(t, func(h *house, t *testing.T) {
		n := h.leader(-1)
		leader, lagging := h.at[n], h.at[(n+1)%3]
		h.isolate((n + 1) % 3)
		h.load(leader, 60)
		leader.giveUp(t)
		offers := 0
		h.net.SetDefault(simnet.Path{Delay: 20 * time.Millisecond, Jitter: 30 * time.Millisecond, Reorder: true, Loss: 0.02, Duplicate: 0.05})
		h.net.Intercept(func(m *simnet.Message) simnet.Fate {
			if _, ok := m.Body.(*raft.InstallSnapshotRequest); !ok {
				return simnet.Fate{}
			}
			offers++
			return simnet.Fate{Copies: 2, Delay: time.Duration(offers%4) * 700 * time.Millisecond}
		})
		h.net.HealAll()
		h.settle("the replica has caught up", func() bool {
			h.load(leader, 1)
			_, err := leader.Retain()
			return err == nil && lagging.highWatermark() > leader.highWatermark()-3 && lagging.failure() == nil
		})
		h.net.Intercept(nil)
		h.net.SetDefault(simnet.Path{Delay: time.Millisecond})
		h.settle("the replica has all", func() bool { return caughtUp(leader, lagging) })
		if h.count == 0 || h.count > 2 {
			t.Errorf("%d resets after %d offers", h.count, offers)
		}
		t.Logf("%d resets after %d offers", h.count, offers)
		for i := lagging.log.FirstIndex(); i <= leader.log.LastIndex(); i++ {
			a, err1 := leader.log.Entry(i)
			b, err2 := lagging.log.Entry(i)
			if i >= leader.log.FirstIndex() && (err1 != nil || err2 != nil || !bytes.Equal(a.Body, b.Body) || a.Term != b.Term) {
				t.Fatalf("entry %d differs: %v, %v", i, err1, err2)
			}
		}
	})
}

// The front of the log stays for a follower that was just sent there, and not for ever.
func TestTheFrontThatWasOfferedStaysAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sim.New(), "/data", withTopic(func(c *TopicConfig) { c.SegmentBytes = log.MinSegmentBytes }))
		r.start()
		for i := range 60 {
			r.mustAppend(batch(fmt.Sprintf("%d-%04000d", i, i)))
		}
		r.giveUp(t)
		offering(t, r.Replica, 2)
		r.log.SetRetention(log.Retention{Age: -1, Bytes: 1})
		for began := time.Now(); time.Since(began) < offerLease-time.Second; <-time.After(30 * time.Second) {
			offering(t, r.Replica, 2) // a follower that does not get on asks again and again
			if n, err := r.Retain(); n != 0 || err != nil {
				t.Fatalf("%v after the offer %d segments went: %v", time.Since(began), n, err)
			}
		}
		offering(t, r.Replica, 2)
		if n, err := r.Retain(); n == 0 || err != nil {
			t.Fatalf("the lease does not end: %d segments, %v", n, err)
		}
		offering(t, r.Replica, 2)
		if n, err := r.Retain(); n != 0 || err != nil {
			t.Fatalf("the next offer holds nothing: %d segments went, %v", n, err)
		}
		r.stop()
	})
}
