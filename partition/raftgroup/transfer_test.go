package raftgroup_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

func (c *three) others(m *member) (out []*member) {
	for _, o := range c.at {
		if o != m {
			out = append(out, o)
		}
	}
	return out
}

// The leadership goes to whom it was given, under load, and no command is left in doubt.
func TestALeadershipIsHandedOver(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		leader := c.leader(nil)
		next := c.others(leader)[1]
		var wg sync.WaitGroup
		var mu sync.Mutex
		acked := map[string]bool{}
		for w := range 8 {
			wg.Go(func() {
				for i := range 1000 {
					key := fmt.Sprintf("w%d-%d", w, i)
					_, err := leader.Propose(t.Context(), []byte(key+"=1"))
					if errs.OutcomeUnknown(err) {
						t.Errorf("%s is in doubt: %v", key, err)
					}
					if err != nil {
						return
					}
					mu.Lock()
					acked[key] = true
					mu.Unlock()
				}
			})
		}
		<-time.After(100 * time.Millisecond)
		began := clock.Monotonic()
		if err := leader.Transfer(t.Context(), next.cfg.ID); err != nil {
			t.Fatal(err)
		}
		if now := c.leader(leader); now != next {
			t.Errorf("%s leads, not %s", now.cfg.ID, next.cfg.ID)
		}
		if took := clock.Since(began); took > quick.Heartbeat {
			t.Errorf("it took %v", took)
		}
		wg.Wait()
		must(t, next.Read(t.Context()))
		for key := range acked {
			if next.sm.get(key) != "1" {
				t.Errorf("%s was acknowledged and is gone", key)
			}
		}
		if len(acked) < 10 {
			t.Errorf("only %d commands before the transfer", len(acked))
		}
	}, func(cfg *raftgroup.StateConfig) { cfg.Timing = quick })
}

func TestALeadershipGoesToNobodyWhoCannotHaveIt(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		leader := c.leader(nil)
		late := c.others(leader)[0]
		for _, id := range []raft.ServerID{leader.cfg.ID, "b/7"} {
			if err := leader.Transfer(t.Context(), id); err == nil {
				t.Errorf("%s got the leadership", id)
			}
		}
		if err := late.Transfer(t.Context(), leader.cfg.ID); errs.CodeOf(err) != errs.NotLeaderOrFollower {
			t.Errorf("a follower's transfer: %v", err)
		}
		c.isolate(late)
		propose(t, leader.StateGroup, "a=1")
		began := clock.Monotonic()
		if err := leader.Transfer(t.Context(), late.cfg.ID); errs.CodeOf(err) != errs.RequestTimedOut {
			t.Errorf("to a voter that lags: %v", err)
		}
		if took := clock.Since(began); took > 3*time.Second {
			t.Errorf("proposals were paused for %v", took)
		}
		propose(t, leader.StateGroup, "a=2")

		// It has everything, and does not hear that it shall lead.
		c.n.HealAll()
		c.until("it has caught up", func() bool { return late.sm.get("a") == "2" })
		c.n.Intercept(func(m *simnet.Message) simnet.Fate {
			_, ok := m.Body.(*raft.TimeoutNowRequest)
			return simnet.Fate{Drop: ok}
		})
		term, _ := leader.Leading()
		if err := leader.Transfer(t.Context(), late.cfg.ID); err == nil {
			t.Error("the request was lost, and the transfer succeeded")
		}
		propose(t, leader.StateGroup, "a=3")
		if now, ok := leader.Leading(); !ok || now != term {
			t.Errorf("led in term %d, now in %d (%v)", term, now, ok)
		}
	}, func(cfg *raftgroup.StateConfig) { cfg.Timing = quick })
}

// deaf is a link that breaks a rule: its TimeoutNow has no deadline. Raft then refuses entries for ever (#696).
type deaf struct {
	*simnet.Endpoint
	until chan struct{}
}

func (d deaf) TimeoutNow(raft.ServerID, raft.ServerAddress, *raft.TimeoutNowRequest, *raft.TimeoutNowResponse) error {
	<-d.until
	return context.Canceled
}

func TestAWedgedTransferStartsTheGroupAnew(t *testing.T) {
	var until chan struct{}
	onThree(t, func(c *three, t *testing.T) {
		defer close(until)
		leader := c.leader(nil)
		propose(t, leader.StateGroup, "a=1")
		c.until("all have it", func() bool { return c.agrees(c.at[0], c.at[1]) && c.agrees(c.at[1], c.at[2]) })
		before := leader.Group()
		if err := leader.Transfer(t.Context(), c.others(leader)[0].cfg.ID); err == nil {
			t.Error("the transfer succeeded")
		}
		c.until("the group starts anew", func() bool { return leader.Group() != before })
		now := c.leader(nil)
		propose(t, now.StateGroup, "a=2")
		must(t, now.Read(t.Context()))
		c.until("all follow", func() bool {
			return c.at[0].sm.get("a") == "2" && c.at[1].sm.get("a") == "2" && c.at[2].sm.get("a") == "2"
		})
	}, func(cfg *raftgroup.StateConfig) {
		if cfg.ID == "b/0" {
			until = make(chan struct{})
		}
		cfg.Timing, cfg.Transport = quick, deaf{cfg.Transport.(*simnet.Endpoint), until}
	})
}
