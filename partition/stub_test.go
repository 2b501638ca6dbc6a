package partition

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
)

// In place of the entry before its first one a log shows a stub, which is no entry and must not be sent as one: whoever got
// it would miss the entry, or, since it holds no command, fail.

// A group's first entry is given up by age as soon as there are others: then the stub is where a new replica begins.
func TestANewReplicaOfALogWithoutItsVeryFirstEntry(t *testing.T) {
	housed(t, func(h *house, t *testing.T) {
		n := h.leader(-1)
		leader := h.at[n]
		h.load(leader, 5)
		h.until("retention takes it", func() bool {
			_, err := leader.Retain()
			return err == nil && leader.log.FirstIndex() > 1
		})
		if first := leader.log.FirstIndex(); first != 2 {
			t.Fatalf("the log begins at %d: this tests nothing", first)
		}
		fourth := newRig(t, sim.New(), "/data", func(r *rig) {
			h.owns(r)
			r.cfg.ID, r.cfg.Voters, r.cfg.Join = "3/replica", nil, true
			r.deps.Transport = h.net.Host(host(3)).Endpoint("orders/3", raft.ServerAddress(r.cfg.ID))
		})
		must(t, fourth.tryStart())
		defer fourth.tryStop()
		must(t, leader.group.Load().Raft().AddNonvoter(fourth.cfg.ID, raft.ServerAddress(fourth.cfg.ID), 0, 0).Error())
		h.settle("the new replica has caught up", func() bool { return broken(fourth) != nil || caughtUp(leader, fourth) })
		must(t, broken(fourth))
		identical(t, leader, fourth)
	}, withTopic(func(c *TopicConfig) { c.LogAppendTime, c.Retention = true, log.Retention{Age: time.Hour, Bytes: -1} }))
}

// Raft knows the term of the entry from which it started without asking the log. Where the one behind it is the last
// that was given up, a replica that ends at the same entry begins at the stub.
func TestAReplicaThatEndsWhereItsLeaderStarted(t *testing.T) {
	housed(t, func(h *house, t *testing.T) {
		n := h.leader(-1)
		old, leader, down := h.at[n], h.at[(n+1)%3], h.at[(n+2)%3]
		h.load(old, 5)
		h.until("all have it", func() bool { return caughtUp(old, leader) && caughtUp(old, down) })
		leader.stop()
		down.stop()
		leader.cfg.Voters = nil
		must(t, leader.tryStart())
		h.load(old, 1)
		h.until("the next leader has it", func() bool { return caughtUp(old, leader) })
		leader.retention(log.Retention{Age: 0, Bytes: -1})
		must(t, leader.store.rollAged()) // a segment ends here
		leader.retention(log.Retention{Age: -1, Bytes: 1})
		must(t, old.Transfer(t.Context(), leader.cfg.ID))
		h.until("it leads", func() bool { return leader.View().Leader })
		h.load(leader, 3)
		h.until("retention takes the segment", func() bool {
			_, err := leader.Retain()
			return err == nil && leader.log.FirstIndex() > 1
		})
		if first, last := leader.log.FirstIndex(), down.log.LastIndex(); first != last+2 {
			t.Fatalf("the leader's log begins at %d, the replica's ends at %d: this tests nothing", first, last)
		}
		h.member(down, (n+2)%3) // with a transport in which nothing waits
		down.cfg.Voters = nil
		must(t, down.tryStart())
		h.settle("the replica has caught up", func() bool { return broken(down) != nil || caughtUp(leader, down) })
		must(t, broken(down))
		identical(t, leader, down)
	})
}

// broken is why a replica has failed, and not only been reset.
func broken(r *rig) error {
	if err := r.failure(); !errors.Is(err, errReset) {
		return err
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// retention changes what the replica's log keeps.
func (r *rig) retention(keep log.Retention) {
	t := *r.topic.Load()
	t.Retention = keep
	r.Configure(t)
}

// A leader that heard where a replica ended before another one reset it goes on from there.
func TestAReplicaThatWasResetTakesWhatBeginsBelowItsBase(t *testing.T) {
	leader, whole := retained(t)
	base, last, term := leader.log.FirstIndex()-1, leader.log.LastIndex(), leader.group.Load().Term()
	reset := func(t *testing.T) *follower {
		f := joining(t, sim.New())
		f.start()
		f.mustFeed(whole, term, base-3, base-3)
		if resp, err := offering(t, leader.Replica, term).to(f.Replica); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		f.reopen()
		return f
	}
	below := func(t *testing.T, f *follower, from, to log.Index) *raft.AppendEntriesRequest {
		prev, err := whole.Entry(from - 1)
		must(t, err)
		req := &raft.AppendEntriesRequest{Term: term, PrevLogEntry: uint64(prev.Index), PrevLogTerm: uint64(prev.Term), LeaderCommitIndex: uint64(to)}
		for i := from; i <= to; i++ {
			e, err := whole.Entry(i)
			must(t, err)
			req.Entries = append(req.Entries, &raft.Log{Index: uint64(e.Index), Term: uint64(e.Term), Type: raft.LogType(e.Type), Data: bytes.Clone(e.Body)})
		}
		return req
	}
	f := reset(t)
	for _, to := range []log.Index{base - 1, base, base + 2} { // it ends below, at, and above the base
		if resp, err := f.send(below(t, f, base-2, to)); err != nil || !resp.Success || f.log.LastIndex() != max(to, base) {
			t.Fatalf("through %d, base %d: %+v, %v; the log ends at %d", to, base, resp, err, f.log.LastIndex())
		}
	}
	old := below(t, f, base-2, base+3)
	old.Term--
	if resp, err := f.send(old); err != nil || resp.Success || f.log.LastIndex() != base+2 {
		t.Errorf("of a deposed leader: %+v, %v", resp, err)
	}
	other := below(t, f, base-2, base+3)
	other.Entries[2].Term++
	if resp, err := f.send(other); err != nil || resp.Success || f.log.LastIndex() != base+2 {
		t.Errorf("with another entry at the base: %+v, %v", resp, err)
	}
	f.mustFeed(leader.log, term, last, last)
	f.awaitHigh(leader.View().HighWatermark)
	leader.same(t, f.rig)
}
