package raftgroup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

func often(cfg *raftgroup.StateConfig) { cfg.Timing, cfg.SnapshotEvery = quick, 64 }

// fill makes the group drop what a follower that is cut off would need next.
func (c *three) fill(m *member, from, to int) {
	c.t.Helper()
	for i := from; i < to; i++ {
		propose(c.t, m.StateGroup, fmt.Sprintf("k%d=%d", i%50, i))
	}
	c.until("a snapshot is taken", func() bool { first, _ := m.log.FirstIndex(); return first > 1 })
}

func (c *three) agrees(a, b *member) bool {
	x, err1 := a.sm.Snapshot()
	y, err2 := b.sm.Snapshot()
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func TestAFollowerGetsTheLeadersSnapshot(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		leader := c.leader(nil)
		late := c.at[0]
		if late == leader {
			late = c.at[1]
		}
		propose(t, leader.StateGroup, "before=1")
		c.isolate(late)
		c.fill(leader, 0, 400)
		before := late.Group()
		c.n.HealAll()
		c.until("the follower has everything", func() bool { return c.agrees(leader, late) })
		if late.Group() == before {
			t.Fatal("no snapshot was installed: this tests nothing")
		}
		c.fill(leader, 400, 420)
		c.until("it follows the log again", func() bool { return c.agrees(leader, late) })

		// It leads as well as any other, and what it knows survives a restart.
		must(t, leader.Stop(context.Background()))
		for now := c.leader(leader); now != late; now = c.leader(leader) {
			late.Group().Campaign()
			<-time.After(time.Second)
		}
		must(t, late.Read(t.Context()))
		propose(t, late.StateGroup, "after=1")
		must(t, late.Stop(context.Background()))
		must(t, late.stable.Close())
		must(t, late.start())
		c.until("the restarted one has everything", func() bool { return late.sm.get("after") == "1" && late.sm.get("k19") == "419" })
	}, often)
}

// hashicorp/raft #697: the follower's log conflicts with the snapshot.
func TestAFollowerWhoseLogConflictsGetsTheLeadersSnapshot(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		old := c.leader(nil)
		propose(t, old.StateGroup, "a=1")
		c.isolate(old)
		for range 50 { // a tail that never commits
			go func() { _, _ = old.Propose(t.Context(), []byte("a=lost")) }()
		}
		leader := c.leader(old)
		c.fill(leader, 0, 400)
		c.n.HealAll()
		c.until("the old leader has everything", func() bool { return c.agrees(leader, old) })
		if got := old.sm.get("a"); got != "1" {
			t.Errorf("a = %q", got)
		}
		c.fill(leader, 400, 410)
		c.until("it follows", func() bool { return c.agrees(leader, old) })
	}, often)
}

// A snapshot that arrives again, much later, takes nothing back.
func TestALateSnapshotChangesNothing(t *testing.T) {
	onThree(t, func(c *three, t *testing.T) {
		leader := c.leader(nil)
		late := c.at[0]
		if late == leader {
			late = c.at[1]
		}
		var copies int
		c.n.Intercept(func(m *simnet.Message) simnet.Fate {
			if _, ok := m.Body.(*raft.InstallSnapshotRequest); ok && !m.Answer {
				copies++
				return simnet.Fate{Copies: 1}
			}
			return simnet.Fate{}
		})
		c.isolate(late)
		c.fill(leader, 0, 400)
		c.n.HealAll()
		c.until("the follower has everything", func() bool { return c.agrees(leader, late) })
		if copies == 0 {
			t.Fatal("no snapshot was sent: this tests nothing")
		}
		// And one from the archives, in the leader's name and term.
		group := late.Group()
		old, err := json.Marshal(map[string]string{"k1": "old"})
		must(t, err)
		resp, err := late.InstallSnapshot(&raft.InstallSnapshotRequest{
			SnapshotVersion: 1, Term: late.Group().Term(), LastLogIndex: 20, LastLogTerm: late.Group().Term(), Size: int64(len(old)),
			Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: late.cfg.Voters}), ConfigurationIndex: 1,
		}, bytes.NewReader(old))
		if err != nil || !resp.Success {
			t.Errorf("a late request: %+v, %v", resp, err)
		}
		if late.Group() != group || !c.agrees(leader, late) {
			t.Error("the late request changed something")
		}
		for _, term := range []uint64{group.Term() - 1, group.Term() + 1} {
			resp, err := late.InstallSnapshot(&raft.InstallSnapshotRequest{
				SnapshotVersion: 1, Term: term, LastLogIndex: 1 << 20, LastLogTerm: 1, Size: int64(len(old)),
				Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: late.cfg.Voters}), ConfigurationIndex: 1,
			}, bytes.NewReader(old))
			if err != nil || resp.Success || resp.Term != group.Term() {
				t.Errorf("a request of term %d in term %d: %+v, %v", term, group.Term(), resp, err)
			}
		}
	}, often)
}

// alone is a follower whose leader is the test.
type alone struct {
	member
	n      *simnet.Net
	leader *simnet.Endpoint
	failed atomic.Int32
}

// crashingLog keeps what it was given, at once, as long as the disk works. Each change is an operation of the disk.
type crashingLog struct {
	*raft.InmemStore
	disk *sim.FS
}

func (l crashingLog) up() error { return l.disk.SyncDir("/data") }
func (l crashingLog) StoreLog(e *raft.Log) error {
	return l.StoreLogs([]*raft.Log{e})
}
func (l crashingLog) StoreLogs(e []*raft.Log) error {
	if err := l.up(); err != nil {
		return err
	}
	return l.InmemStore.StoreLogs(e)
}
func (l crashingLog) DeleteRange(first, last uint64) error {
	if err := l.up(); err != nil {
		return err
	}
	return l.InmemStore.DeleteRange(first, last)
}
func (l crashingLog) Size() int64  { return 0 }
func (l crashingLog) Close() error { return nil }

func newAlone(t *testing.T, disk *sim.FS, log *raft.InmemStore) *alone {
	f := &alone{n: simnet.New(rand.New(rand.NewPCG(5, 6)), simnet.Config{})}
	f.leader = f.n.Host("leader").Endpoint("meta", "b/0")
	f.disk, f.link = disk, f.n.Host("follower").Endpoint("meta", "b/1")
	f.cfg = raftgroup.StateConfig{Name: "meta", Dir: "/data/meta", ID: "b/1", Transport: f.link, Log: crashingLog{log, disk},
		OnFailure: func(error) { f.failed.Add(1) }}
	return f
}

func (f *alone) stop() {
	if f.StateGroup != nil {
		_ = f.Stop(context.Background())
		_ = f.stable.Close()
	}
	f.n.Close()
}

// send brings entries of the leader: the first stands behind prev.
func (f *alone) send(term, prev, prevTerm, commit uint64, entries ...*raft.Log) (*raft.AppendEntriesResponse, error) {
	var resp raft.AppendEntriesResponse
	return &resp, f.leader.AppendEntries("b/1", "b/1", &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b/0"), Addr: []byte("b/0")},
		Term:      term, PrevLogEntry: prev, PrevLogTerm: prevTerm, LeaderCommitIndex: commit, Entries: entries,
	}, &resp)
}

func (f *alone) install(term, index, indexTerm uint64, state []byte) (*raft.InstallSnapshotResponse, error) {
	var resp raft.InstallSnapshotResponse
	return &resp, f.leader.InstallSnapshot("b/1", "b/1", &raft.InstallSnapshotRequest{
		RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b/0"), Addr: []byte("b/0")},
		SnapshotVersion: 1, Term: term, LastLogIndex: index, LastLogTerm: indexTerm, Size: int64(len(state)),
		Configuration: raft.EncodeConfiguration(two), ConfigurationIndex: 1,
	}, &resp, bytes.NewReader(state))
}

var two = raft.Configuration{Servers: []raft.Server{{ID: "b/0", Address: "b/0"}, {ID: "b/1", Address: "b/1"}}}

// conflicting is the log of a follower that heard from a leader of term 2, of which two entries have committed: the
// leader of term 3 has others from entry 4 on.
func (f *alone) conflicting(t *testing.T) {
	t.Helper()
	entries := []*raft.Log{{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(two)}}
	for i := uint64(2); i <= 30; i++ {
		entries = append(entries, &raft.Log{Index: i, Term: 2, Type: raft.LogNoop})
	}
	if resp, err := f.send(2, 0, 0, 3, entries...); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	if resp, err := f.send(3, 3, 2, 3); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
}

// The power fails at every operation of an installation. Whatever the disk holds then opens, with the old state or
// the new one, and the leader's next attempt succeeds.
func TestACrashWhileASnapshotIsInstalled(t *testing.T) {
	state, err := json.Marshal(map[string]string{"a": "snapshot"})
	must(t, err)
	for _, base := range []uint64{20, 40} { // the log disagrees there; the log ends below
		var olds, news, n int
		for ended := false; !ended; n++ {
			if n > 200 {
				t.Fatal("no end")
			}
			synctest.Test(t, func(t *testing.T) {
				disk, log := sim.New(), raft.NewInmemStore()
				must(t, errors.Join(disk.MkdirAll("/data", 0o700), disk.SyncDir("/")))
				f := newAlone(t, disk, log)
				must(t, f.start())
				f.conflicting(t)
				disk.CrashAt(n + 1)
				resp, err := f.install(3, base, 3, state)
				ended = err == nil && resp.Success
				if ended {
					disk.SetHook(nil)
					if got := f.sm.get("a"); got != "snapshot" || f.failed.Load() > 0 {
						t.Errorf("after %d operations a = %q, failures %d", n, got, f.failed.Load())
					}
				}
				f.stop()

				after := disk.Reboot(rand.New(rand.NewPCG(uint64(n), base)), n%2 == 0)
				again := newAlone(t, after, log)
				defer again.stop()
				if err := again.start(); err != nil {
					t.Errorf("crash at operation %d: %v", n+1, err)
					return
				}
				first, _ := log.FirstIndex()
				last, _ := log.LastIndex()
				switch got := again.sm.get("a"); {
				case got == "" && !ended && first == 1 && last == 30:
					olds++
				case got == "snapshot" && first == 0 && last == 0:
					news++
				default:
					t.Errorf("crash at operation %d: a = %q, log from %d to %d", n+1, got, first, last)
				}
				if resp, err := again.send(3, 0, 0, 0); err != nil || resp.Term != 3 {
					t.Errorf("crash at operation %d: heartbeat: %+v, %v", n+1, resp, err)
				}
				if resp, err := again.install(3, base, 3, state); err != nil || !resp.Success || again.sm.get("a") != "snapshot" {
					t.Errorf("crash at operation %d: the next attempt: %+v, %v", n+1, resp, err)
				}
				if resp, err := again.send(3, base, 3, base+1, &raft.Log{Index: base + 1, Term: 3, Type: raft.LogNoop}); err != nil || !resp.Success {
					t.Errorf("crash at operation %d: the next entry: %+v, %v", n+1, resp, err)
				}
			})
		}
		t.Logf("base %d: %d operations, then the old state %d times, the new one %d times", base, n, olds, news)
		if olds == 0 || news < 2 {
			t.Error("this tests nothing")
		}
	}
}

func TestASnapshotThatIsNotWholeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := sim.New()
		must(t, disk.MkdirAll("/data", 0o700))
		f := newAlone(t, disk, raft.NewInmemStore())
		defer f.stop()
		must(t, f.start())
		f.conflicting(t)
		before := f.Group()
		good := raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 3, LastLogIndex: 40, LastLogTerm: 3, Size: 2,
			Configuration: raft.EncodeConfiguration(two), ConfigurationIndex: 1}
		for name, change := range map[string]func(r *raft.InstallSnapshotRequest){
			"more announced":       func(r *raft.InstallSnapshotRequest) { r.Size = 3 },
			"less announced":       func(r *raft.InstallSnapshotRequest) { r.Size = 1 },
			"negative":             func(r *raft.InstallSnapshotRequest) { r.Size = -1 },
			"too large":            func(r *raft.InstallSnapshotRequest) { r.Size = 1 << 40 },
			"no configuration":     func(r *raft.InstallSnapshotRequest) { r.Configuration = nil },
			"bad configuration":    func(r *raft.InstallSnapshotRequest) { r.Configuration = []byte("\xff\xff") },
			"configuration beyond": func(r *raft.InstallSnapshotRequest) { r.ConfigurationIndex = 41 },
			"another version":      func(r *raft.InstallSnapshotRequest) { r.SnapshotVersion = 2 },
			"no index":             func(r *raft.InstallSnapshotRequest) { r.LastLogIndex = 0 },
			"a term of the future": func(r *raft.InstallSnapshotRequest) { r.LastLogTerm = 4 },
		} {
			req := good
			change(&req)
			if resp, err := f.InstallSnapshot(&req, bytes.NewReader([]byte("{}"))); err == nil {
				t.Errorf("%s: %+v", name, resp)
			}
		}
		if f.Group() != before {
			t.Error("the group was restarted for nothing")
		}
		must(t, f.Stop(context.Background()))
		if _, err := f.InstallSnapshot(&good, bytes.NewReader([]byte("{}"))); err == nil {
			t.Error("a group that has ended installed a snapshot")
		}
	})
}

// A disk that takes no snapshot leaves the follower as it was.
func TestASnapshotThatCannotBeWrittenChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := sim.New()
		must(t, disk.MkdirAll("/data", 0o700))
		f := newAlone(t, disk, raft.NewInmemStore())
		defer f.stop()
		must(t, f.start())
		f.conflicting(t)
		disk.SetHook(func(op sim.Op) sim.Fault {
			if op.Kind == sim.OpCreate {
				return sim.Fault{Err: errors.New("no space left on device")}
			}
			return sim.Fault{}
		})
		if resp, err := f.install(3, 40, 3, []byte("{}")); err == nil {
			t.Errorf("%+v", resp)
		}
		disk.SetHook(nil)
		if f.failed.Load() > 0 || f.Group().Err() != nil {
			t.Errorf("the group has failed: %v", f.Group().Err())
		}
		if resp, err := f.send(3, 3, 2, 4, &raft.Log{Index: 4, Term: 3, Type: raft.LogNoop}); err != nil || !resp.Success {
			t.Errorf("an entry after that: %+v, %v", resp, err)
		}
		if resp, err := f.install(3, 40, 3, []byte("{}")); err != nil || !resp.Success {
			t.Errorf("the next attempt: %+v, %v", resp, err)
		}
	})
}

// lateError is a log whose next write waits, and fails then.
type lateError struct {
	hangingLog
	err atomic.Pointer[error]
}

func (l *lateError) StoreLogs(e []*raft.Log) error {
	if err := l.hangingLog.StoreLogs(e); err != nil || l.err.Load() == nil {
		return err
	}
	return *l.err.Load()
}

// The disk fails while Raft is being stopped for a snapshot: the owner hears of it, since there is no group any more.
func TestAnErrorWhileRaftStopsForASnapshotReachesTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := sim.New()
		must(t, errors.Join(disk.MkdirAll("/data", 0o700), disk.SyncDir("/")))
		f := newAlone(t, disk, nil)
		defer f.stop()
		log := &lateError{hangingLog: hangingLog{InmemStore: raft.NewInmemStore()}}
		f.cfg.Log = log
		must(t, f.start())
		f.conflicting(t)
		until, boom := make(chan struct{}), errors.New("EIO")
		log.hang.Store(&until)
		log.err.Store(&boom)
		go f.send(3, 3, 2, 3, &raft.Log{Index: 4, Term: 3, Type: raft.LogNoop})
		<-time.After(100 * time.Millisecond)
		go f.install(3, 40, 3, []byte("{}"))
		<-time.After(time.Second)
		if n := f.failed.Load(); n != 0 {
			t.Fatalf("%d failures before there was an error", n)
		}
		close(until)
		<-time.After(time.Second)
		if n := f.failed.Load(); n != 1 {
			t.Errorf("the owner heard of %d failures", n)
		}
	})
}

// What came after an installed snapshot was never committed: the next leader's entries take its place. Raft finds no entry
// at the snapshot, and refused them for ever, as a snapshot that this replica had already.
func TestAnotherLeadersEntriesFollowAnInstalledSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := sim.New()
		must(t, errors.Join(disk.MkdirAll("/data", 0o700), disk.SyncDir("/")))
		log := raft.NewInmemStore()
		f := newAlone(t, disk, log)
		defer f.stop()
		must(t, f.start())
		f.conflicting(t)
		if resp, err := f.install(3, 40, 3, []byte("{}")); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		noop := func(index, term uint64) *raft.Log { return &raft.Log{Index: index, Term: term, Type: raft.LogNoop} }
		if resp, err := f.send(3, 40, 3, 40, noop(41, 3), noop(42, 3)); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		var got raft.Log
		if resp, err := f.send(4, 40, 3, 40, noop(41, 4)); err != nil || !resp.Success || log.GetLog(41, &got) != nil || got.Term != 4 {
			t.Errorf("%+v, %v; entry 41 is of term %d", resp, err, got.Term)
		}
		if resp, err := f.send(4, 38, 3, 40, noop(39, 3), noop(40, 3), noop(41, 4), noop(42, 4)); err != nil || !resp.Success {
			t.Errorf("beginning below the snapshot: %+v, %v", resp, err)
		}
	})
}

// Raft was started anew and the snapshot is not there: there was no room. The state stays what it was. Its readers have seen it, and what
// the disk has of it may be old: of an old configuration, a retention that is no longer in force.
func TestTheStateDoesNotGoBackWhereASnapshotIsNotInstalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := sim.New()
		must(t, errors.Join(disk.MkdirAll("/data", 0o700), disk.SyncDir("/")))
		f := newAlone(t, disk, raft.NewInmemStore())
		defer f.stop()
		must(t, f.start())
		command := func(index, term uint64, text string) *raft.Log {
			return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: append(append([]byte{1, 0}, make([]byte, 16)...), text...)}
		}
		send := func(term, prev, prevTerm, commit uint64, entries ...*raft.Log) {
			t.Helper()
			if resp, err := f.send(term, prev, prevTerm, commit, entries...); err != nil || !resp.Success {
				t.Fatalf("%+v, %v", resp, err)
			}
			synctest.Wait()
		}
		send(3, 0, 0, 3, &raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(two)},
			command(2, 3, "a=1"), command(3, 3, "a=2"))
		disk.SetHook(func(op sim.Op) sim.Fault {
			if op.Kind == sim.OpWrite && strings.Contains(op.Name, "snapshot-") {
				return sim.Fault{Err: syscall.ENOSPC}
			}
			return sim.Fault{}
		})
		before := f.Group()
		if resp, err := f.install(3, 40, 3, []byte(`{"a":"3"}`)); err == nil {
			t.Fatalf("installed without room: %+v", resp)
		}
		disk.SetHook(nil)
		if f.Group() == before || f.failed.Load() > 0 {
			t.Fatal("Raft was not started anew: this tests nothing")
		}
		if got := f.sm.get("a"); got != "2" {
			t.Errorf("a is %q now, and was 2", got)
		}
		// Raft passes entry 2 again, and the state is at 3: nothing may be kept as the state of entry 2.
		send(3, 1, 1, 2, command(2, 3, "a=1"))
		if got, err := f.sm.get("a"), f.Snapshot(); got != "2" || err == nil {
			t.Errorf("a is %q, a snapshot between: %v", got, err)
		}
		send(3, 3, 3, 4, command(4, 3, "b=1"))
		must(t, f.Snapshot())
		must(t, f.Stop(context.Background()))
		must(t, f.stable.Close())
		must(t, f.start())
		if a, b := f.sm.get("a"), f.sm.get("b"); a != "2" || b != "1" {
			t.Errorf("a is %q, b is %q after a start", a, b)
		}
	})
}
