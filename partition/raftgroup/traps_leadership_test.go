package raftgroup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

// Design section 5, timers: with a lease below max(heartbeat/5, 2 × commit) hashicorp/raft's leaders step
// down although nothing is wrong. Timing.Validate refuses such timers; ours survive load over a slow network.
func TestALeaderWithLongTimersKeepsItsLease(t *testing.T) {
	short := raftgroup.Timing{Heartbeat: 20 * time.Second, Election: 20 * time.Second, Lease: 1500 * time.Millisecond, Commit: time.Second}
	long := raftgroup.Timing{Heartbeat: 12 * time.Second, Election: 12 * time.Second, Lease: 3 * time.Second, Commit: time.Second}
	if short.Validate() == nil || long.Validate() != nil {
		t.Fatal("Validate draws the line elsewhere")
	}
	for _, k := range []struct {
		kind
		timing raftgroup.Timing
		keeps  bool
	}{
		{kind{name: "library, short lease"}, short, false},
		{kind{name: "our group", ours: true}, raftgroup.DefaultTiming(), true},
		{kind{name: "our group, longest heartbeat", ours: true}, long, true},
	} {
		t.Run(k.name, func(t *testing.T) {
			onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
				c := newReplicas(t, n, "g")
				c.timing = k.timing
				for i := range c.all {
					c.start(i, k.kind)
				}
				l := c.leader(-1)
				term := c.all[l].raft.CurrentTerm()
				n.SetDefault(simnet.Path{Delay: 50 * time.Millisecond, Jitter: 200 * time.Millisecond})
				kept := func() bool { return c.all[l].raft.State() == raft.Leader && c.all[l].raft.CurrentTerm() == term }
				for i := 0; i < 200 && kept(); i++ { // load, then idle
					_ = c.apply(l, "x")
					<-time.After(100 * time.Millisecond)
				}
				for i := 0; i < 600 && kept(); i++ {
					<-time.After(time.Second)
				}
				if kept() != k.keeps {
					t.Errorf("the leader of term %d kept its leadership: %v", term, kept())
				}
			})
		})
	}
}

// A hint that came while the replica led used up the answer to the one before, and Campaign waited for that
// answer for ever: no failure hint had any effect any more.
func TestAReplicaCampaignsAgainAfterItLed(t *testing.T) {
	onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
		c, l := startAll(t, n, "g", kind{ours: true})
		for range 3 {
			for _, next := range []int{(l + 1) % 3, l} {
				must(t, c.apply(c.leader(-1), "a"))
				<-time.After(100 * time.Millisecond)
				began := time.Now()
				c.all[next].group.Campaign()
				c.until("it leads", func() bool { return c.all[next].raft.State() == raft.Leader })
				if took := time.Since(began); took > time.Second {
					t.Errorf("the election took %v: the hint was not heard", took)
				}
				c.all[next].group.Campaign() // it leads: nothing happens
			}
		}
	})
}

// Design section 5 rule 7. hashicorp/raft closes a transport that has a Close when one group shuts down; all
// groups of two brokers share the connections below theirs.
func TestTheEndOfOneGroupLeavesTheOthersAlone(t *testing.T) {
	onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
		k := kind{ours: true}
		first, l1 := startAll(t, n, "first", k)
		second, l2 := startAll(t, n, "second", k)
		term := second.all[l2].raft.CurrentTerm()
		must(t, first.apply(l1, "a"))
		first.stop(0, 1, 2)
		began := time.Now()
		for range 100 {
			must(t, second.apply(l2, "b"))
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("a hundred commands took %v", took)
		}
		<-time.After(time.Minute)
		if now := second.all[l2].raft.CurrentTerm(); now != term || second.all[l2].raft.State() != raft.Leader {
			t.Errorf("the other group went from term %d to %d", term, now)
		}
		var closes any = second.all[0].link
		if _, ok := closes.(raft.WithClose); ok {
			t.Error("the link has a Close")
		}
	})
}

// Issue hashicorp/raft #696. A leader loses its leadership while a transfer waits for a replicating goroutine that is
// stuck in the transport: the mark "transfer in progress" stays for ever, and when it is elected again it
// refuses every write. Deadlines on all requests free the goroutine. (With a deadline of an hour this test's leader
// refuses, and Raft's goroutine can never be ended: hence no counterpart here.)
func TestAnInterruptedTransferDoesNotBlockTheNextTerm(t *testing.T) {
	onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
		c, l := startAll(t, n, "g", kind{ours: true})
		target, third := (l+1)%3, (l+2)%3
		n.Cut(hostName(l), hostName(target))
		must(t, c.apply(l, "a")) // what the target lacks
		for range 2 {
			if c.transfer(l, target).Error() == nil {
				t.Fatal("a transfer to a replica that cannot be reached succeeded")
			}
			<-time.After(10 * time.Millisecond)
		}
		c.transfer(l, target)
		n.Cut(hostName(l), hostName(third))
		c.until("the leader has stepped down", func() bool { return c.all[l].raft.State() != raft.Leader })
		n.HealAll()
		<-time.After(10 * time.Second)
		for c.all[l].raft.State() != raft.Leader {
			c.campaign(l)
			<-time.After(20 * time.Second)
		}
		must(t, c.apply(l, "b"))
		if _, ok := c.all[l].group.LeadsIn(); !ok {
			t.Error("the group does not say that it leads")
		}
	})
}

func (c *replicas) transfer(from, to int) raft.Future {
	return c.all[from].raft.LeadershipTransferToServer(c.voters[to].ID, c.voters[to].Address)
}

// Design section 3. Raft's queue outlives terms: what was asked for in one term is stored by the same replica in a
// later one, behind another leader's entries, and no setting of the library prevents it. Hence package
// partition rules on a request when it is stored, and voids what was withdrawn.
func TestTheLibraryStoresRequestsOfAnEarlierTerm(t *testing.T) {
	// On one processor the queue is emptied in one go, before the election gets its turn.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))))
	crossed := 0
	for try := 0; try < 100 && crossed == 0; try++ {
		onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
			n.SetDefault(simnet.Path{})
			c, old := startAll(t, n, "g", kind{})
			term := c.all[old].raft.CurrentTerm()
			var appliers sync.WaitGroup
			for range 10000 {
				appliers.Go(func() { c.all[old].raft.Apply(fmt.Append(nil, term), time.Second) })
			}
			for _, next := range []int{(old + 1) % 3, old} {
				for range 1000 {
					if c.all[next].raft.State() == raft.Follower {
						c.campaign(next)
					}
					runtime.Gosched()
				}
			}
			appliers.Wait()
			c.leader(-1)
			last, _ := c.all[old].logs.LastIndex()
			for i := uint64(2); i <= last; i++ {
				var e raft.Log
				must(t, c.all[old].logs.GetLog(i, &e))
				if e.Term > term && string(e.Data) == fmt.Sprint(term) {
					crossed++
				}
			}
		})
	}
	if crossed == 0 {
		t.Error("no request outlived its term")
	}
}

// Issue hashicorp/raft #661 and design section 5 rule 11: a vote that a candidate has heard of is not given
// to another one in the same term, whatever the disk operation at which the power went.
func TestAVoteSurvivesACrashAtEveryStep(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		twice, granted := 0, 0
		for step := 0; ; step++ {
			gave, again, reached := voteAndCrash(t, step, forgets)
			if gave {
				granted++
			}
			if gave && again {
				twice++
			}
			if !reached {
				break
			}
		}
		if granted == 0 || (twice > 0) != forgets {
			t.Errorf("disk that forgets: %v. Of %d votes that were heard, %d were given again in the same term", forgets, granted, twice)
		}
	}
}

// voteAndCrash cuts the power before the given disk operation of a vote, and asks for
// a vote for somebody else in the same term after the restart.
func voteAndCrash(t *testing.T, step int, forgets bool) (gave, again, reached bool) {
	onNet(t, simnet.Config{Timeout: time.Second}, func(t *testing.T, n *simnet.Net) {
		c := newReplicas(t, n, "g")
		disk := sim.New()
		must(t, disk.MkdirAll("data", 0o700))
		must(t, disk.SyncDir("."))
		start := func() {
			stable, err := raftgroup.OpenStable(disk, "data/stable", nil)
			must(t, err)
			slot, err := stable.Slot([16]byte{1})
			must(t, err)
			c.startOurs(0, slot)
		}
		ask := func(candidate int) bool {
			var resp raft.RequestVoteResponse
			err := c.all[candidate].link.RequestVote(c.voters[0].ID, c.voters[0].Address,
				&raft.RequestVoteRequest{RPCHeader: c.header(candidate), Term: 7, LastLogIndex: 9, LastLogTerm: 6}, &resp)
			return err == nil && resp.Granted
		}
		start()
		ops := 0
		disk.SetHook(func(op sim.Op) sim.Fault {
			if ops++; ops-1 < step {
				return sim.Fault{}
			}
			if ops-1 == step {
				reached = true
				c.all[0].host.Crash()
			}
			return sim.Fault{Crash: true}
		})
		gave = ask(1)
		disk.SetHook(nil)
		c.all[0].host.Crash()
		_ = c.all[0].group.Stop(context.Background())
		c.all[0].raft = nil
		disk = disk.Reboot(rand.New(rand.NewPCG(1, uint64(step))), true)
		if forgets {
			disk = sim.New()
			must(t, disk.MkdirAll("data", 0o700))
		}
		c.all[0].link = c.all[0].host.Endpoint("g", c.voters[0].Address)
		start()
		again = ask(2)
		if term := c.all[0].raft.CurrentTerm(); gave && !forgets && term < 7 {
			t.Errorf("the term went back to %d", term)
		}
	})
	return gave, again, reached
}
