package raftgroup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// three is three replicas of a state group, each on its own disk, in a synctest bubble.
type three struct {
	t  *testing.T
	n  *simnet.Net
	at [3]*member
}

// member is one of them.
type member struct {
	cfg    raftgroup.StateConfig
	disk   *sim.FS
	log    *hangingLog
	link   *simnet.Endpoint
	stable *raftgroup.StableStore
	sm     *kv
	*raftgroup.StateGroup
}

// hangingLog is a log in memory whose writes wait while hang is set.
type hangingLog struct {
	*raft.InmemStore
	hang atomic.Pointer[chan struct{}]
}

func (l *hangingLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l *hangingLog) StoreLogs(e []*raft.Log) error {
	if until := l.hang.Load(); until != nil {
		<-*until
	}
	return l.InmemStore.StoreLogs(e)
}

func (l *hangingLog) Size() int64  { return 0 }
func (l *hangingLog) Close() error { return nil }

// quick are timers for tests that measure a failover.
var quick = raftgroup.Timing{Heartbeat: 500 * time.Millisecond, Election: 500 * time.Millisecond, Lease: 400 * time.Millisecond, Commit: 100 * time.Millisecond}

// onThree runs f on three members.
func onThree(t *testing.T, f func(c *three, t *testing.T), change ...func(*raftgroup.StateConfig)) {
	synctest.Test(t, func(t *testing.T) {
		c := &three{t: t, n: simnet.New(rand.New(rand.NewPCG(3, 4)), simnet.Config{Timeout: time.Second})}
		defer c.stop()
		c.n.SetDefault(simnet.Path{Delay: time.Millisecond})
		var voters []raft.Server
		for i := range c.at {
			voters = append(voters, raft.Server{ID: raft.ServerID(fmt.Sprint("b/", i)), Address: raft.ServerAddress(fmt.Sprint("b/", i))})
		}
		for i := range c.at {
			m := &member{disk: sim.New(), log: &hangingLog{InmemStore: raft.NewInmemStore()}}
			m.link = c.n.Host(string(voters[i].ID)).Endpoint("meta", voters[i].Address)
			m.cfg = raftgroup.StateConfig{Name: "meta", Dir: "/data/meta", ID: voters[i].ID, Voters: voters, Transport: m.link, Log: m.log}
			for _, f := range change {
				f(&m.cfg)
			}
			must(t, m.disk.MkdirAll("/data", 0o700))
			must(t, m.start())
			c.at[i] = m
		}
		f(c, t)
	})
}

func (m *member) start() (err error) {
	if m.stable, err = raftgroup.OpenStable(m.disk, "/data/stable", nil); err != nil {
		return err
	}
	if m.cfg.Stable, err = m.stable.Slot([16]byte{1}); err != nil {
		return err
	}
	m.cfg.FS, m.sm = m.disk, newKV()
	m.StateGroup, err = raftgroup.OpenState(m.cfg, m.sm)
	return err
}

func (c *three) stop() {
	for _, m := range c.at {
		if m != nil && m.StateGroup != nil {
			_ = m.Stop(context.Background())
			_ = m.stable.Close()
		}
	}
	c.n.Close()
}

// leader waits for one that is not m.
func (c *three) leader(not *member) *member {
	c.t.Helper()
	for range 6000 {
		for _, m := range c.at {
			if _, ok := m.Leading(); ok && m != not {
				return m
			}
		}
		<-time.After(10 * time.Millisecond)
	}
	c.t.Fatal("nobody leads after a minute")
	return nil
}

func (c *three) until(what string, ok func() bool) {
	c.t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	c.t.Fatalf("not within a minute: %s", what)
}

// isolate cuts a member off from the others.
func (c *three) isolate(m *member) {
	for _, o := range c.at {
		if o != m {
			c.n.Cut(string(m.cfg.ID), string(o.cfg.ID))
		}
	}
}

func TestThreeVotersKeepTheirLeaderAndSurviveIt(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		first := c.leader(nil)
		for i := range 20 {
			propose(t, first.StateGroup, fmt.Sprintf("k%d=%d", i, i))
		}
		must(t, first.Read(t.Context()))
		term, _ := first.Leading()
		<-time.After(10 * time.Minute)
		if now, ok := first.Leading(); !ok || now != term {
			t.Errorf("led in term %d, after ten idle minutes in %d (%v)", term, now, ok)
		}
		must(t, first.Stop(context.Background()))
		second := c.leader(first)
		must(t, second.Read(t.Context()))
		for i := range 20 {
			if got := second.sm.get(fmt.Sprintf("k%d", i)); got != fmt.Sprint(i) {
				t.Errorf("the new leader has k%d = %q", i, got)
			}
		}
	})
}

func TestCutOffLeaderAnswersUnknownAndThenRefuses(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		old := c.leader(nil)
		propose(t, old.StateGroup, "a=1")
		c.isolate(old)
		began := time.Now()
		if _, err := old.Propose(t.Context(), []byte("a=2")); !errs.OutcomeUnknown(err) {
			t.Errorf("propose on the minority side: %v", err)
		}
		if took := time.Since(began); took > raftgroup.DefaultTiming().Lease*3 {
			t.Errorf("the answer took %v: the lease did not end it", took)
		}
		if err := old.Read(t.Context()); errs.CodeOf(err) != errs.NotLeaderOrFollower {
			t.Errorf("read on the minority side: %v", err)
		}
		now := c.leader(old)
		propose(t, now.StateGroup, "a=3")
		if old.sm.get("a") == "2" {
			t.Error("the minority side applied what it could not commit")
		}
	})
}

// A read asks a majority and writes nothing.
func TestAReadOfThreeVotersWritesNothing(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		m := c.leader(nil)
		propose(t, m.StateGroup, "a=1")
		before, err := m.log.LastIndex()
		must(t, err)
		for range 10 {
			must(t, m.Read(t.Context()))
		}
		if after, _ := m.log.LastIndex(); after != before {
			t.Errorf("ten reads made %d entries", after-before)
		}
		for _, o := range c.at {
			if o != m {
				if err := o.Read(t.Context()); errs.CodeOf(err) != errs.NotLeaderOrFollower {
					t.Errorf("a follower's read: %v", err)
				}
			}
		}
	})
}

// A leader that was cut off still thinks that it leads: its lease has not ended. Its reads must not be served.
func TestACutOffLeaderServesNoStaleRead(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		old := c.leader(nil)
		propose(t, old.StateGroup, "a=1")
		c.isolate(old)
		for _, m := range c.at {
			if m != old {
				m.Group().Campaign() // at once, while the lease lasts
				break
			}
		}
		next := c.leader(old)
		propose(t, next.StateGroup, "a=2")
		if _, ok := old.Leading(); !ok {
			t.Fatal("the lease has ended before another leader was there: this tests nothing")
		}
		if err := old.Read(t.Context()); err == nil {
			t.Errorf("a read was served from a = %q", old.sm.get("a"))
		}
		// The same when it hears of the others again while it asks.
		done := make(chan error, 1)
		go func() { done <- old.Read(t.Context()) }()
		<-time.After(50 * time.Millisecond)
		c.n.HealAll()
		if err := <-done; err == nil && old.sm.get("a") != "2" {
			t.Error("a stale read was served after the healing")
		}
	})
}

// A leader that was paused finds, after its pause, answers to a question of before, and asks again.
func TestALateAnswerToAnOlderQuestionDoesNotCount(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		old := c.leader(nil)
		propose(t, old.StateGroup, "a=1")
		term, _ := old.Leading()
		// The answers to the first question stay on the way.
		var gate simnet.Gate
		c.n.Intercept(func(m *simnet.Message) simnet.Fate {
			if _, ok := m.Body.(*simnet.Confirm); ok && m.Answer && m.To == string(old.cfg.ID) {
				return simnet.Fate{Gate: &gate}
			}
			return simnet.Fate{}
		})
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := old.Group().Confirm(short, term); errs.CodeOf(err) != errs.RequestTimedOut {
			t.Errorf("without an answer: %v", err)
		}
		cancel()
		c.until("the answers are under way", func() bool { return gate.Held() >= 2 })
		c.isolate(old)
		c.n.Intercept(nil)
		done := make(chan error, 1)
		long, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		go func() { done <- old.Group().Confirm(long, term) }()
		<-time.After(10 * time.Millisecond)
		c.n.HealAll()
		gate.Open() // now they arrive
		c.isolate(old)
		if err := <-done; err == nil {
			t.Error("answers to the first question confirmed the second")
		}
	})
}

// F2: the disk of the leader hangs. Its heartbeats must stop, so that another one leads.
func TestALeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		old := c.leader(nil)
		propose(t, old.StateGroup, "a=1")
		hang := make(chan struct{})
		old.log.hang.Store(&hang)
		began := clock.Monotonic()
		unknown := make(chan error, 1)
		go func() {
			_, err := old.Propose(t.Context(), []byte("a=2"))
			unknown <- err
		}()
		next := c.leader(old)
		took := clock.Since(began)
		t.Logf("another leader after %v", took)
		if most := 3*time.Second + 2*quick.Heartbeat + 2*quick.Election; took > most {
			t.Errorf("it took %v, at most %v are due", took, most)
		}
		if _, ok := old.Leading(); ok {
			t.Error("the old one says that it leads")
		}
		propose(t, next.StateGroup, "a=3")
		must(t, next.Read(t.Context()))

		close(hang) // the disk comes back
		old.log.hang.Store(nil)
		if err := <-unknown; !errs.OutcomeUnknown(err) {
			t.Errorf("the proposal that hung: %v", err)
		}
		c.until("the old leader follows again", func() bool { return old.sm.get("a") == "3" })
		if now := c.leader(nil); now != next {
			t.Error("it took the leadership back")
		}
	}, func(cfg *raftgroup.StateConfig) { cfg.Timing = quick })
}

// A follower whose disk hangs neither answers nor campaigns, and the others go on.
func TestAFollowerWhoseDiskHangsIsSilent(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		leader := c.leader(nil)
		term, _ := leader.Leading()
		var ill *member
		for _, m := range c.at {
			if m != leader {
				ill = m
			}
		}
		hang := make(chan struct{})
		ill.log.hang.Store(&hang)
		propose(t, leader.StateGroup, "a=1")
		<-time.After(4 * time.Second)
		sent := 0
		c.n.Intercept(func(m *simnet.Message) simnet.Fate {
			if m.From == string(ill.cfg.ID) {
				sent++
			}
			return simnet.Fate{}
		})
		must(t, leader.Read(t.Context())) // without it
		<-time.After(20 * time.Second)
		c.n.Intercept(nil)
		if sent > 0 {
			t.Errorf("it sent %d messages", sent)
		}
		close(hang)
		ill.log.hang.Store(nil)
		c.until("it follows again", func() bool { return ill.sm.get("a") == "1" })
		if now, ok := leader.Leading(); !ok || now != term {
			t.Errorf("the leader of term %d leads in %d (%v)", term, now, ok)
		}
	}, func(cfg *raftgroup.StateConfig) { cfg.Timing = quick })
}

// The log of a state group is no data log; the watchdog watches it all the same.
func TestAHangingStateGroupEndsTheProcess(t *testing.T) {
	hung := make(chan time.Duration, 8)
	var dog *log.Watchdog
	onThree(t, func(c *three, t *testing.T) {
		defer dog.Stop()
		m := c.leader(nil)
		hang := make(chan struct{})
		m.log.hang.Store(&hang)
		go func() { _, _ = m.Propose(t.Context(), []byte("a=1")) }()
		began := clock.Monotonic()
		for len(hung) == 0 && clock.Since(began) < time.Minute {
			<-time.After(time.Second)
		}
		if took := clock.Since(began); took < 30*time.Second || took > 32*time.Second {
			t.Errorf("reported after %v", took)
		}
		m.log.hang.Store(nil)
		close(hang)
	}, func(cfg *raftgroup.StateConfig) {
		if cfg.ID == "b/0" {
			dog = log.NewWatchdog(log.WatchdogConfig{OnHang: func(_ string, after time.Duration) { hung <- after }})
			dog.Start()
		}
		cfg.Watchdog = dog
	})
}
