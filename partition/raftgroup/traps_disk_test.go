package raftgroup_test

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

// slowLog keeps entries while its gate is shut.
type slowLog struct {
	raft.LogStore
	mu   sync.Mutex
	gate chan struct{} // guarded by mu; nil: open
}

func (l *slowLog) StoreLogs(entries []*raft.Log) error {
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return l.LogStore.StoreLogs(entries)
}

func (l *slowLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// Finding F2 (hashicorp/raft #503, #614, #666). The heartbeats are a goroutine of their own: with a hung disk the
// library's leader leads for ever and commits nothing. Our groups fall silent; see
// TestALeaderWhoseDiskHangsIsReplaced.
func TestTheLibrarysLeaderSurvivesAHungDisk(t *testing.T) {
	onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
		c := newReplicas(t, n, "g")
		for i, r := range c.all {
			r.slow = &slowLog{LogStore: r.logs}
			c.start(i, kind{})
		}
		l := c.leader(-1)
		gate := make(chan struct{})
		c.all[l].slow.mu.Lock()
		c.all[l].slow.gate = gate
		c.all[l].slow.mu.Unlock()
		future := c.all[l].raft.Apply([]byte("x"), time.Second)
		<-time.After(10 * time.Minute)
		for i, r := range c.all {
			if leads := r.raft.State() == raft.Leader; leads != (i == l) {
				t.Errorf("after ten minutes of a hung disk, replica %d leads: %v", i, leads)
			}
		}
		if got := c.all[(l+1)%3].fsm.list(); len(got) > 0 {
			t.Errorf("committed %q", got)
		}
		close(gate)
		must(t, future.Error())
	})
}

// A disk error while a vote or a term is made durable would have hashicorp/raft panic; it is told a lie instead,
// and what it then answers must not leave: the vote could be given again after a restart.
func TestAFencedGroupsAnswersAreWithheld(t *testing.T) {
	for name, ask := range map[string]func(c *replicas) (any, error){
		"vote": func(c *replicas) (any, error) {
			var resp raft.RequestVoteResponse
			err := c.all[1].link.RequestVote(c.voters[0].ID, c.voters[0].Address,
				&raft.RequestVoteRequest{RPCHeader: c.header(1), Term: 7, LastLogIndex: 9, LastLogTerm: 6}, &resp)
			return resp, err
		},
		"entries": func(c *replicas) (any, error) {
			var resp raft.AppendEntriesResponse
			err := c.all[1].link.AppendEntries(c.voters[0].ID, c.voters[0].Address,
				&raft.AppendEntriesRequest{RPCHeader: c.header(1), Term: 7, PrevLogEntry: 1, PrevLogTerm: 1,
					Entries: []*raft.Log{{Index: 2, Term: 7, Data: []byte("x")}}}, &resp)
			return resp, err
		},
		"confirm": func(c *replicas) (any, error) {
			return nil, c.all[1].link.Confirm(c.t.Context(), 7, []raft.ServerID{c.voters[0].ID, c.voters[1].ID, c.voters[2].ID})
		},
	} {
		t.Run(name, func(t *testing.T) {
			onNet(t, simnet.Config{}, func(t *testing.T, n *simnet.Net) {
				c := newReplicas(t, n, "g")
				disk := sim.New()
				must(t, disk.MkdirAll("data", 0o700))
				stable, err := raftgroup.OpenStable(disk, "data/stable", nil)
				must(t, err)
				slot, err := stable.Slot([16]byte{1})
				must(t, err)
				c.startOurs(0, slot)
				disk.SetHook(func(op sim.Op) sim.Fault { return sim.Fault{Err: errors.New("EIO")} })
				if name == "confirm" { // brings the term, which cannot be stored
					_ = c.all[1].link.AppendEntries(c.voters[0].ID, c.voters[0].Address,
						&raft.AppendEntriesRequest{RPCHeader: c.header(1), Term: 7}, &raft.AppendEntriesResponse{})
				}
				if resp, err := ask(c); err == nil {
					t.Errorf("a group whose disk has failed answered %+v", resp)
				}
				select {
				case <-c.all[0].group.Failed():
				default:
					t.Error("the group is not fenced")
				}
			})
		})
	}
}

// metaFSM has snapshots that hold none of the data, as with a Raft log that is the data log.
type metaFSM struct{ lister }

func (m *metaFSM) Snapshot() (raft.FSMSnapshot, error) { return noData{}, nil }

type noData struct{}

func (noData) Persist(s raft.SnapshotSink) error { return s.Close() }
func (noData) Release()                          {}

// Finding F6, design section 5 rule 4. A replica that needs what the leader's log no longer has gets a snapshot, which
// holds none of the data: the library goes on behind the snapshot, and counts it a full voter. An intercepted
// snapshot never gets there; package partition's reset gives it all that is retained.
func TestAnInstalledSnapshotLosesRetainedData(t *testing.T) {
	for _, plain := range []bool{true, false} {
		t.Run(fmt.Sprintf("plain %v", plain), func(t *testing.T) {
			onNet(t, simnet.Config{Traps: simnet.Traps{PlainSnapshot: plain}}, func(t *testing.T, n *simnet.Net) {
				c := newReplicas(t, n, "g")
				for i, r := range c.all {
					r.meta = &metaFSM{}
					c.start(i, kind{})
				}
				l := c.leader(-1)
				v := (l + 1) % 3
				n.Isolate(hostName(v), hostName(l), hostName((l+2)%3))
				load(t, c, l, 1000)
				must(t, c.all[l].raft.Snapshot().Error())
				must(t, c.all[l].logs.DeleteRange(1, 100)) // retention
				first, _ := c.all[l].logs.FirstIndex()
				asked := &asked{}
				c.all[v].link.Intercept(asked)
				n.HealAll()
				<-time.After(time.Minute)
				must(t, c.apply(l, "last"))
				<-time.After(time.Second)
				missing := 0
				ends, _ := c.all[v].logs.LastIndex()
				for i := first; i <= ends; i++ {
					if c.all[v].logs.GetLog(i, &raft.Log{}) != nil {
						missing++
					}
				}
				t.Logf("the leader retains entries from %d on; the replica ends at %d and lacks %d", first, ends, missing)
				if lost := missing > 0; lost != plain {
					t.Errorf("retained entries are missing: %v", lost)
				}
				if refused := asked.times() > 0; refused == plain {
					t.Errorf("the interceptor was asked %d times", asked.times())
				}
			})
		})
	}
}

// Issue hashicorp/raft #697. A follower whose log disagrees at the snapshot's index keeps its log when it installs the
// snapshot, refuses what follows, and is sent the snapshot again, for ever. Our groups install no
// snapshot through Raft: see TestADivergentLeaderBehindRetentionIsReset of package partition.
func TestTheLibraryInstallsSnapshotsForEverAtADivergentFollower(t *testing.T) {
	onNet(t, simnet.Config{Traps: simnet.Traps{PlainSnapshot: true}}, func(t *testing.T, n *simnet.Net) {
		c := newReplicas(t, n, "g")
		c.entries(2, 1, 150, "divergent")
		n.Isolate(hostName(2), hostName(0), hostName(1))
		for i, r := range c.all {
			r.meta = &metaFSM{}
			if i < 2 {
				c.start(i, kind{})
			}
		}
		l := c.leader(-1)
		load(t, c, l, 100)
		must(t, c.all[l].raft.Snapshot().Error())
		must(t, c.all[l].logs.DeleteRange(1, 50))
		load(t, c, l, 100)
		snapshots := 0
		n.Intercept(func(m *simnet.Message) simnet.Fate {
			if _, ok := m.Body.(*raft.InstallSnapshotRequest); ok {
				snapshots++ // by one goroutine of the leader, and read when it is quiet
			}
			return simnet.Fate{}
		})
		n.HealAll()
		c.start(2, kind{})
		<-time.After(10 * time.Second)
		n.Intercept(nil)
		if last, _ := c.all[l].logs.LastIndex(); c.all[2].raft.AppliedIndex() >= last || snapshots < 10 {
			t.Errorf("the follower applied %d of %d entries after %d snapshots: is #697 fixed?", c.all[2].raft.AppliedIndex(), last, snapshots)
		}
	})
}

// asked refuses snapshots and counts them.
type asked struct {
	mu sync.Mutex
	n  int // guarded by mu
}

func (a *asked) InstallSnapshot(req *raft.InstallSnapshotRequest, _ io.Reader) (*raft.InstallSnapshotResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	return &raft.InstallSnapshotResponse{Term: req.Term}, nil
}

func (a *asked) times() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}
