package raftgroup_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// three state groups in one process, on a simulated network.
type three struct {
	net    *simnet.Net
	groups []*raftgroup.StateGroup
	states []*kv
	stable []*raftgroup.StableStore
}

func startThree(t *testing.T, n *simnet.Net) *three {
	t.Helper()
	c := &three{net: n}
	var voters []raft.Server
	for i := range 3 {
		addr := raft.ServerAddress(fmt.Sprint("b/", i))
		voters = append(voters, raft.Server{ID: raft.ServerID(addr), Address: addr})
	}
	disk := &killFS{FS: fsx.OS(), left: 1 << 40} // syncs nothing
	dir := t.TempDir()
	for i := range 3 {
		stable, err := raftgroup.OpenStable(disk, filepath.Join(dir, fmt.Sprint("stable", i)), nil)
		must(t, err)
		slot, err := stable.Slot([16]byte{1})
		must(t, err)
		sm := newKV()
		g, err := raftgroup.OpenState(raftgroup.StateConfig{
			Name: "meta", Dir: filepath.Join(dir, fmt.Sprint("meta", i)), FS: disk, ID: voters[i].ID,
			Transport: n.Host(hostName(i)).Endpoint("meta", voters[i].Address), Stable: slot, Voters: voters,
		}, sm)
		must(t, err)
		c.groups, c.states, c.stable = append(c.groups, g), append(c.states, sm), append(c.stable, stable)
	}
	return c
}

func (c *three) leader(t *testing.T, except int) int {
	t.Helper()
	for range 600 {
		for i, g := range c.groups {
			if _, ok := g.Leading(); ok && i != except {
				return i
			}
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Fatal("nobody leads after a minute")
	return 0
}

func (c *three) stop(t *testing.T, except int) {
	t.Helper()
	for i, g := range c.groups {
		if i != except {
			must(t, g.Stop(context.Background()))
		}
	}
	for _, s := range c.stable {
		must(t, s.Close())
	}
}

func TestThreeVotersKeepTheirLeaderAndSurviveIt(t *testing.T) {
	onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
		c := startThree(t, n)
		first := c.leader(t, -1)
		for i := range 20 {
			propose(t, c.groups[first], fmt.Sprintf("k%d=%d", i, i))
		}
		must(t, c.groups[first].Read(t.Context()))
		term, _ := c.groups[first].Leading()
		<-time.After(10 * time.Minute)
		if now, ok := c.groups[first].Leading(); !ok || now != term {
			t.Errorf("led in term %d, after ten idle minutes in %d (%v)", term, now, ok)
		}
		must(t, c.groups[first].Stop(context.Background()))
		second := c.leader(t, first)
		must(t, c.groups[second].Read(t.Context()))
		for i := range 20 {
			if got := c.states[second].get(fmt.Sprintf("k%d", i)); got != fmt.Sprint(i) {
				t.Errorf("the new leader has k%d = %q", i, got)
			}
		}
		c.stop(t, first)
	})
}

func TestCutOffLeaderAnswersUnknownAndThenRefuses(t *testing.T) {
	onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
		c := startThree(t, n)
		old := c.leader(t, -1)
		propose(t, c.groups[old], "a=1")
		n.Isolate(hostName(old), hostName(0), hostName(1), hostName(2))
		began := time.Now()
		if _, err := c.groups[old].Propose(t.Context(), []byte("a=2")); !errs.OutcomeUnknown(err) {
			t.Errorf("propose on the minority side: %v", err)
		}
		if took := time.Since(began); took > raftgroup.DefaultTiming().Lease*3 {
			t.Errorf("the answer took %v: the lease did not end it", took)
		}
		if err := c.groups[old].Read(t.Context()); errs.CodeOf(err) != errs.NotLeaderOrFollower {
			t.Errorf("read on the minority side: %v", err)
		}
		now := c.leader(t, old)
		propose(t, c.groups[now], "a=3")
		if c.states[old].get("a") == "2" {
			t.Error("the minority side applied what it could not commit")
		}
		c.stop(t, -1)
	})
}
