package raftgroup_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/simnet"
)

// slowReads is a log whose reads of one entry wait while its gate is shut.
type slowReads struct {
	raft.LogStore
	mu    sync.Mutex
	index uint64        // guarded by mu
	gate  chan struct{} // guarded by mu; nil: open
	wait  int           // guarded by mu; how many do
}

func (l *slowReads) GetLog(index uint64, out *raft.Log) error {
	l.mu.Lock()
	gate := l.gate
	if index != l.index {
		gate = nil
	}
	if gate != nil {
		l.wait++
	}
	l.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return l.LogStore.GetLog(index, out)
}

// shut keeps reads of an entry from now on, and forget those after it no longer.
func (l *slowReads) shut(index uint64) (forget, open func()) {
	gate := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index, l.gate = index, gate
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.gate = nil
	}, func() { close(gate) }
}

func (l *slowReads) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wait
}

// hashicorp/raft reads the entries of a request beside its main loop, and does not look again whether it still leads. A read
// takes long; meanwhile another leader deposes this one and replaces the end of its log. The request then has the
// entry before of the old log and entries of the new one. A follower that has not heard of the new term stores them, and
// the new leader finds there what it looks for: the replica is counted for entries that it does not have.
// It takes five voters: of three, the two others have both elected the new leader.
func TestADeposedLeaderSendsNoEntriesOfTwoLogs(t *testing.T) {
	for _, k := range []kind{{name: "library"}, {name: "our group", ours: true}} {
		t.Run(k.name, func(t *testing.T) {
			onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
				c := newGroup(t, n, "g", 5)
				reads := make([]*slowReads, len(c.all))
				for i, r := range c.all {
					reads[i] = &slowReads{LogStore: r.logs}
					r.slow = &slowLog{LogStore: reads[i]}
					c.start(i, k)
				}
				l := c.leader(-1)
				friend, rest := (l+1)%5, []int{(l + 2) % 5, (l + 3) % 5, (l + 4) % 5}
				must(t, c.apply(l, "common"))
				c.until("all have it", func() bool {
					return !slices.ContainsFunc(c.all, func(r *replica) bool { return r.fsm.last() != "common" })
				})
				for _, i := range rest {
					n.Cut(hostName(l), hostName(i))
					n.Cut(hostName(friend), hostName(i))
				}
				// One entry reaches the friend, the next one's reader sleeps.
				term, last := c.all[l].raft.CurrentTerm(), c.all[l].raft.LastIndex()
				c.all[l].raft.Apply([]byte("old"), time.Second)
				c.until("the friend has it", func() bool { return c.all[friend].raft.LastIndex() == last+1 })
				<-time.After(100 * time.Millisecond)
				forget, open := reads[l].shut(last + 2)
				c.all[l].raft.Apply([]byte("old, too"), time.Second)
				c.until("it is being read", func() bool { return reads[l].waiting() > 0 })

				next := c.leader(l)
				must(t, c.apply(next, "new"))
				forget()
				n.Heal(hostName(l), hostName(next))
				c.until("the old leader has what is committed", func() bool { return c.all[l].fsm.last() == "new" })
				open()
				<-time.After(time.Second)

				var a, b raft.Log
				mixed := c.all[friend].logs.GetLog(last+1, &a) == nil && c.all[friend].logs.GetLog(last+2, &b) == nil && a.Term == term && b.Term > term
				if mixed == k.ours {
					t.Errorf("the friend has entries of both logs: %v", mixed)
				}
				// A leader that is elected later looks behind the place where the logs part.
				other := rest[0]
				if other == next {
					other = rest[1]
				}
				c.campaign(other)
				c.until("another leads", func() bool { return c.all[other].raft.State() == raft.Leader })
				n.HealAll()
				must(t, c.apply(c.leader(-1), "end"))
				c.until("all have applied the end", func() bool {
					return !slices.ContainsFunc(c.all, func(r *replica) bool { return r.fsm.last() != "end" })
				})
				if same := slices.Equal(c.all[friend].fsm.list(), c.all[next].fsm.list()); same != k.ours {
					t.Errorf("the friend has applied %q, the leader %q", c.all[friend].fsm.list(), c.all[next].fsm.list())
				}
			})
		})
	}
}
