package partition

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// trio is three replicas of one partition, each with its own disk, in a synctest bubble.
type trio struct {
	t     *testing.T
	net   *simnet.Net
	disks [3]*sim.FS
	at    [3]*rig
}

func host(i int) string { return fmt.Sprint("host-", i) }

// three runs f on three started replicas.
func three(t *testing.T, f func(c *trio, t *testing.T), opts ...option) {
	synctest.Test(t, func(t *testing.T) {
		c := &trio{t: t, net: simnet.New(rand.New(rand.NewPCG(1, 2)), simnet.Config{})}
		defer c.stop()
		c.net.SetDefault(simnet.Path{Delay: time.Millisecond})
		for i := range c.at {
			c.disks[i] = sim.New()
			c.at[i] = newRig(t, c.disks[i], "/data", append([]option{func(r *rig) { c.member(r, i) }}, opts...)...)
			if err := c.at[i].tryStart(); err != nil {
				t.Fatal(err)
			}
		}
		f(c, t)
	})
}

func (c *trio) stop() {
	for _, r := range c.at {
		if r != nil && r.Replica != nil {
			_ = r.tryStop()
		}
	}
	c.net.Close()
}

func (c *trio) member(r *rig, i int) {
	r.cfg.Voters = nil
	for j := range c.at {
		id := raft.ServerID(fmt.Sprint(j, "/replica"))
		r.cfg.Voters = append(r.cfg.Voters, raft.Server{ID: id, Address: raft.ServerAddress(id)})
	}
	r.cfg.ID = r.cfg.Voters[i].ID
	r.deps.Transport = c.net.Host(host(i)).Endpoint("orders/3", raft.ServerAddress(r.cfg.ID))
}

// until waits for a condition, a virtual minute at most.
func (c *trio) until(what string, ok func() bool) {
	c.t.Helper()
	for began := clock.Monotonic(); !ok(); <-time.After(10 * time.Millisecond) {
		if clock.Since(began) > time.Minute {
			c.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// leader waits for one; other is not it.
func (c *trio) leader(other int) (n int) {
	c.t.Helper()
	c.until("a leader", func() bool {
		for i, r := range c.at {
			if i != other && r.View().Leader {
				n = i
				return true
			}
		}
		return false
	})
	return n
}

// isolate cuts a replica off from the others.
func (c *trio) isolate(n int) {
	for i := range c.at {
		if i != n {
			c.net.Cut(host(n), host(i))
		}
	}
}

// timed appends and tells how long the answer took.
func (r *rig) timed(a Append) (Appended, time.Duration, error) {
	began := clock.Monotonic()
	got, err := r.append(a)
	return got, clock.Since(began), err
}

func TestAcksAllOfThreeReplicas(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		leader, follower := c.at[n], (n+1)%3
		c.until("all are in sync", func() bool { return len(leader.ISR()) == 3 })
		if a, _, err := leader.timed(Append{Batch: batch("a")}); err != nil || !a.Durable || a.Acked != AcksAll {
			t.Fatalf("got %+v, %v", a, err)
		}
		<-time.After(time.Minute)
		if got := leader.ISR(); len(got) != 3 {
			t.Errorf("after an idle minute only %v are in sync", got)
		}

		c.isolate(follower)
		if _, took, err := leader.timed(Append{Batch: batch("b"), Acks: AcksQuorum}); err != nil || took > 100*time.Millisecond {
			t.Errorf("a majority has it, and the answer took %v: %v", took, err)
		}
		if _, took, err := leader.timed(Append{Batch: batch("c")}); err != nil || took < 1800*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("acks=all with a silent follower took %v, %v; it is to be given up after 2 s", took, err)
		}
		if _, took, err := leader.timed(Append{Batch: batch("d")}); err != nil || took > 100*time.Millisecond {
			t.Errorf("the follower still holds answers back: %v, %v", took, err)
		}
		if got := leader.ISR(); len(got) != 2 {
			t.Errorf("in sync are %v", got)
		}

		tight := *leader.topic.Load()
		tight.MinInsync = 3
		leader.Configure(tight)
		if _, err := leader.append(Append{Batch: batch("x")}); errs.CodeOf(err) != errs.NotEnoughReplicas || errs.OutcomeUnknown(err) {
			t.Errorf("with two of three in sync: %v", err)
		}
		c.net.HealAll()
		c.until("the follower is back", func() bool { return len(leader.ISR()) == 3 })
		if _, took, err := leader.timed(Append{Batch: batch("e")}); err != nil || took > 100*time.Millisecond {
			t.Errorf("took %v: %v", took, err)
		}
		c.isolate(follower)
		if _, err := leader.append(Append{Batch: batch("f")}); errs.CodeOf(err) != errs.NotEnoughReplicasAfterAppend || !errs.OutcomeUnknown(err) {
			t.Errorf("with two of three in sync while it waited: %v", err)
		}
		if now := c.leader(-1); now != n {
			t.Errorf("%d leads, not %d: this was no test of the ISR", now, n)
		}
	})
}

func TestACutOffLeaderRefusesAcksAll(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		c.at[n].mustAppend(batch("a"))
		c.isolate(n)
		p, err := c.at[n].Append(t.Context(), Append{Batch: batch("b")})
		if err != nil {
			t.Fatal(err)
		}
		c.until("nobody else is in sync", func() bool { return len(c.at[n].ISR()) == 1 })
		if _, err := c.at[n].Append(t.Context(), Append{Batch: batch("c")}); errs.CodeOf(err) != errs.NotEnoughReplicas {
			t.Errorf("without a majority in sync: %v", err)
		}
		limit, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.Result(limit); !errs.OutcomeUnknown(err) || limit.Err() != nil {
			t.Errorf("the append on the minority side: %v", err)
		}
		m := c.leader(n)
		c.at[m].mustAppend(batch("d"))
		c.net.HealAll()
		c.until("the old leader has what it missed", func() bool {
			got, err := c.at[n].readAll()
			return err == nil && len(got) == 2 && got[1] == "d"
		})
	})
}

// flush=interval and os: an ack of several copies never says that they are durable.
func TestCopiesInMemoryAreNotCalledDurable(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		leader := c.at[c.leader(-1)]
		if a, err := leader.append(Append{Batch: batch("a")}); err != nil || a.Durable {
			t.Errorf("all: %+v, %v", a, err)
		}
		p, err := leader.Append(t.Context(), Append{Batch: batch("b"), Acks: AcksQuorum})
		if err = errors.Join(err, leader.Flush()); err != nil {
			t.Fatal(err)
		}
		if a, err := p.Result(t.Context()); err != nil || a.Durable {
			t.Errorf("quorum, the leader's copy is on disk: %+v, %v", a, err)
		}
	}, withTopic(func(c *TopicConfig) { c.Flush = flushOS }))
}

// A leader that was cut off, and replaced before its lease ended, must not serve a linearizable read.
func TestACutOffLeaderLinearizesNothing(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		old := c.at[n]
		old.mustAppend(batch("a"))
		if err := old.Linearize(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.isolate(n)
		c.at[(n+1)%3].group.Load().Campaign()
		next := c.at[c.leader(n)]
		if _, err := next.append(Append{Batch: batch("b"), Acks: AcksQuorum}); err != nil {
			t.Fatal(err)
		}
		if !old.View().Leader {
			t.Fatal("the lease has ended before another leader was there: this tests nothing")
		}
		if err := old.Linearize(t.Context()); errs.CodeOf(err) != errs.NotLeaderOrFollower {
			t.Errorf("the high watermark is %d, another leader's is %d: %v", old.View().HighWatermark, next.View().HighWatermark, err)
		}
		if err := next.Linearize(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The disk of the leader hangs in a sync, and comes back: another one leads meanwhile (F2).
func TestALeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	quick := raftgroup.Timing{Heartbeat: 500 * time.Millisecond, Election: 500 * time.Millisecond, Lease: 400 * time.Millisecond, Commit: 100 * time.Millisecond}
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		old := c.at[n]
		old.mustAppend(batch("a"))
		back := make(chan struct{})
		c.disks[n].SetHook(func(op sim.Op) sim.Fault {
			if op.Kind == sim.OpSync {
				return sim.Fault{Until: back}
			}
			return sim.Fault{}
		})
		p, err := old.Append(t.Context(), Append{Batch: batch("b"), Acks: AcksQuorum})
		if err != nil {
			t.Fatal(err)
		}
		began := clock.Monotonic()
		next := c.at[c.leader(n)]
		if took, most := clock.Since(began), 3*time.Second+2*quick.Heartbeat+2*quick.Election; took > most {
			t.Errorf("another leader after %v, at most %v are due", took, most)
		}
		if old.View().Leader {
			t.Error("the old one says that it leads")
		}
		if _, err := old.Append(t.Context(), Append{Batch: batch("x")}); err == nil || errs.OutcomeUnknown(err) {
			t.Errorf("an append to a muted replica: %v", err)
		}
		next.mustAppend(batch("c"))
		c.disks[n].SetHook(nil)
		close(back)
		if _, err := p.Result(t.Context()); !errs.OutcomeUnknown(err) {
			t.Errorf("the append that hung: %v", err)
		}
		c.until("the old leader follows again", func() bool {
			got, err := old.readAll()
			return err == nil && len(got) == 2 && got[1] == "c"
		})
		c.until("it is in sync", func() bool { return len(next.ISR()) == 3 })
	}, func(r *rig) { r.deps.Timing = quick })
}

// Nothing is appended, but a flush hangs: the leader must go all the same, or nothing ever can be.
func TestALeaderWhoseFlushHangsIsReplaced(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		c.at[n].mustAppend(batch("a"))
		back := make(chan struct{})
		c.disks[n].SetHook(func(op sim.Op) sim.Fault {
			if op.Kind == sim.OpSync {
				return sim.Fault{Until: back}
			}
			return sim.Fault{}
		})
		flushed := make(chan error, 1)
		go func() { flushed <- c.at[n].Flush() }()
		next := c.at[c.leader(n)]
		next.mustAppend(batch("b"))
		c.disks[n].SetHook(nil)
		close(back)
		if err := <-flushed; err != nil {
			t.Error(err)
		}
	}, withTopic(func(c *TopicConfig) { c.Flush = flushOS }))
}

// The leadership is handed over under load: no append is lost, none is in doubt.
func TestALeadershipIsHandedOver(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		leader, to := c.at[n], (n+2)%3
		c.until("all are in sync", func() bool { return len(leader.ISR()) == 3 })
		var wg sync.WaitGroup
		var acked atomic.Int64
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					_, err := leader.append(Append{Batch: batch("a")})
					if errs.OutcomeUnknown(err) {
						t.Errorf("in doubt: %v", err)
					}
					if err != nil {
						return
					}
					acked.Add(1)
				}
			})
		}
		<-time.After(50 * time.Millisecond)
		if err := leader.Transfer(t.Context(), c.at[to].cfg.ID); err != nil {
			t.Fatal(err)
		}
		if now := c.leader(n); now != to {
			t.Errorf("%d leads, not %d", now, to)
		}
		wg.Wait()
		if err := c.at[to].Linearize(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := c.at[to].values(); int64(len(got)) != acked.Load() || len(got) < 20 {
			t.Errorf("%d records, %d were acknowledged", len(got), acked.Load())
		}
	})
}

func TestALeadershipGoesToNobodyWhoLags(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		leader, late := c.at[n], (n+1)%3
		c.isolate(late)
		if _, err := leader.append(Append{Batch: batch("a"), Acks: AcksQuorum}); err != nil {
			t.Fatal(err)
		}
		began := clock.Monotonic()
		if err := leader.Transfer(t.Context(), c.at[late].cfg.ID); errs.CodeOf(err) != errs.RequestTimedOut {
			t.Errorf("to a voter that lags: %v", err)
		}
		if took := clock.Since(began); took > 3*time.Second {
			t.Errorf("appends were paused for %v", took)
		}
		leader.mustAppend(batch("b"))
		if err := leader.Transfer(t.Context(), leader.cfg.ID); err == nil {
			t.Error("to itself")
		}
		leader.mustAppend(batch("c"))
	})
}

// deaf is a link whose TimeoutNow has no deadline, which wedges Raft (hashicorp/raft #696).
type deaf struct {
	*simnet.Endpoint
	until chan struct{}
}

func (d deaf) TimeoutNow(raft.ServerID, raft.ServerAddress, *raft.TimeoutNowRequest, *raft.TimeoutNowResponse) error {
	<-d.until
	return context.Canceled
}

func TestAWedgedTransferHasTheReplicaOpenedAgain(t *testing.T) {
	var until chan struct{}
	reset := map[raft.ServerID]chan struct{}{}
	three(t, func(c *trio, t *testing.T) {
		defer close(until)
		n := c.leader(-1)
		leader := c.at[n]
		leader.mustAppend(batch("a"))
		c.until("all have it", func() bool { return leader.isr.hasAll(c.at[(n+1)%3].cfg.ID) })
		if err := leader.Transfer(t.Context(), c.at[(n+1)%3].cfg.ID); err == nil {
			t.Error("the transfer succeeded")
		}
		<-reset[leader.cfg.ID]
		if _, err := leader.Append(t.Context(), Append{Batch: batch("x")}); !errors.Is(err, errReset) {
			t.Errorf("an append to the old replica: %v", err)
		}
		leader.stop()
		leader.cfg.Voters = nil
		if err := leader.tryStart(); err != nil {
			t.Fatal(err)
		}
		now := c.at[c.leader(-1)]
		now.mustAppend(batch("b"))
		c.until("the reopened one has everything", func() bool {
			got, err := leader.readAll()
			return err == nil && len(got) == 2
		})
	}, func(r *rig) {
		if until == nil {
			until = make(chan struct{})
		}
		done := make(chan struct{})
		reset[r.cfg.ID], r.deps.OnReset = done, func() { close(done) }
		r.deps.Transport = deaf{r.deps.Transport.(*simnet.Endpoint), until}
	})
}
