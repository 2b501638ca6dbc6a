package raftgroup_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/simnet"
)

// Issue hashicorp/raft #695. The transport runs Raft's heartbeat handler beside the leader loop: a deposed
// leader gets the new term there and stamps the next command with it, at an index that the new leader fills
// in the same term. Log matching is broken, and both commands are applied.
func TestADeposedLeaderNeverWritesInItsSuccessorsTerm(t *testing.T) {
	fast := simnet.Traps{FastHeartbeat: true}
	for _, k := range []kind{{"library with the handler", false, fast}, {"library without it", false, simnet.Traps{}}, {"our group", true, fast}} {
		t.Run(k.name, func(t *testing.T) {
			onNet(t, simnet.Config{Traps: k.traps}, func(t *testing.T, n *simnet.Net) {
				c, old := startAll(t, n, "g", k)
				must(t, c.apply(old, "first"))
				next, third := (old+1)%3, (old+2)%3
				n.CutOneWay(hostName(old), hostName(next))
				n.CutOneWay(hostName(old), hostName(third))
				n.Intercept(func(m *simnet.Message) simnet.Fate { // nothing but heartbeats reaches the old leader in time
					r, ok := m.Body.(*raft.AppendEntriesRequest)
					return simnet.Fate{Drop: m.From == hostName(next) && m.To == hostName(old) && (!ok || r.PrevLogEntry > 0)}
				})
				term := c.all[old].raft.CurrentTerm()
				c.campaign(next)
				c.until("the old leader has heard of the new term", func() bool { return c.all[old].raft.CurrentTerm() > term })
				forgery := c.all[old].raft.Apply([]byte("forgery"), time.Second)
				must(t, c.apply(next, "second"))
				<-time.After(100 * time.Millisecond)
				n.Intercept(nil)
				n.HealAll()
				agreed := c.agree("second")
				if trap := !k.ours && k.traps.FastHeartbeat; trap == agreed {
					t.Errorf("the replicas agree: %v. They applied %q, %q, %q", agreed, c.all[0].fsm.list(), c.all[1].fsm.list(), c.all[2].fsm.list())
				}
				c.stop(0, 1, 2) // Raft may answer the future only now
				if err := forgery.Error(); err == nil && agreed {
					t.Error("the deposed leader acknowledged a command that it lost")
				}
			})
		})
	}
}

// Issue hashicorp/raft #612 (pyroscope #5518). After a refusal Raft reads no more from a pipeline, and its sender waits
// for ever for the window: the follower never hears of another entry.
func TestAFollowerCatchesUpAfterARefusedRequest(t *testing.T) {
	for _, k := range []kind{
		{"library, pipeline not closed", false, simnet.Traps{DeafPipeline: true}},
		{"library", false, simnet.Traps{}},
		{"our group, pipeline not closed", true, simnet.Traps{DeafPipeline: true}},
		{"our group", true, simnet.Traps{}},
	} {
		t.Run(k.name, func(t *testing.T) {
			onNet(t, simnet.Config{Traps: k.traps}, func(t *testing.T, n *simnet.Net) {
				c, l := startAll(t, n, "g", k)
				v := (l + 1) % 3
				// Requests that overtake each other are refused: the entry before theirs is missing.
				late := simnet.Path{Jitter: 20 * time.Millisecond, Reorder: true}
				n.SetPath(hostName(l), hostName(v), late)
				n.SetPath(hostName(v), hostName(l), late)
				load(t, c, l, 3000)
				n.SetPath(hostName(l), hostName(v), simnet.Path{})
				n.SetPath(hostName(v), hostName(l), simnet.Path{})
				<-time.After(10 * time.Second)
				load(t, c, l, 10)
				must(t, c.apply(l, "last"))
				if caughtUp := c.agree("last"); caughtUp == k.traps.DeafPipeline {
					t.Errorf("caught up: %v; leader applied %d, follower %d", caughtUp, len(c.all[l].fsm.list()), len(c.all[v].fsm.list()))
				}
				for _, r := range c.all {
					r.link.Stop() // frees a sender that is wedged
				}
			})
		})
	}
}

// load applies commands, a new one each millisecond.
func load(t *testing.T, c *replicas, at, commands int) {
	t.Helper()
	var futures []raft.ApplyFuture
	for i := range commands {
		futures = append(futures, c.all[at].raft.Apply(fmt.Append(nil, i), time.Second))
		<-time.After(time.Millisecond)
	}
	for _, f := range futures {
		must(t, f.Error())
	}
}

// Design section 5 rule 3. A follower commits up to the lesser of the leader's commit index and its own
// last index. A request that shows agreement up to entry 8 and says "30 are committed" has
// it apply its divergent tail, 11 to 20.
func TestACommitIndexCoversOnlyWhatTheRequestShows(t *testing.T) {
	for _, k := range []kind{
		{"library, loose commit index", false, simnet.Traps{LooseCommit: true}},
		{"library", false, simnet.Traps{}},
		{"our group", true, simnet.Traps{}},
	} {
		t.Run(k.name, func(t *testing.T) {
			onNet(t, simnet.Config{Traps: k.traps, RequestBytes: 30}, func(t *testing.T, n *simnet.Net) {
				c := newReplicas(t, n, "g")
				c.entries(0, 1, 10, "agreed")
				c.entries(0, 2, 20, "stale")
				c.start(0, k)
				var sent []*raft.Log
				for i := uint64(6); i <= 10; i++ {
					sent = append(sent, &raft.Log{Index: i, Term: 1, Data: fmt.Append(nil, "agreed", i)})
				}
				req := &raft.AppendEntriesRequest{RPCHeader: c.header(1), Term: 3, PrevLogEntry: 5, PrevLogTerm: 1, Entries: sent, LeaderCommitIndex: 30}
				var resp raft.AppendEntriesResponse
				must(t, c.all[1].link.AppendEntries(c.voters[0].ID, c.voters[0].Address, req, &resp))
				<-time.After(time.Second)
				got := c.all[0].fsm.list()
				if !resp.Success || len(req.Entries) >= 5 {
					t.Fatalf("answer %+v; %d entries sent, want fewer than 5", resp, len(req.Entries))
				}
				if stale := slices.Contains(got, "stale20"); stale != k.traps.LooseCommit {
					t.Errorf("applied %q", got)
				}
				if want := int(req.Entries[len(req.Entries)-1].Index) - 1; !k.traps.LooseCommit && len(got) != want {
					t.Errorf("applied %q, want %d commands", got, want)
				}
			})
		})
	}
}
