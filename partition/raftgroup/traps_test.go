package raftgroup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

// The tests in traps_*_test.go are about known faults of hashicorp/raft, or of ways to use it. Each shows
// the fault on the library alone, so that the test is known to see it, and that our groups and our rules
// for a transport avoid it.

// kind is what a trap is tried on.
type kind struct {
	name  string
	ours  bool // a raftgroup.Group, not hashicorp/raft alone
	traps simnet.Traps
}

// replica is one replica of a trap's group.
type replica struct {
	host  *simnet.Host
	link  *simnet.Endpoint
	raft  *raft.Raft
	group *raftgroup.Group // nil for hashicorp/raft alone
	logs  *raft.InmemStore
	slow  *slowLog // what Raft gets instead of logs; nil: logs
	fsm   *lister
	meta  *metaFSM // what Raft gets instead of fsm; nil: fsm
}

// replicas are a group on a simulated network. Peers that are not started may be played by a test.
type replicas struct {
	t      *testing.T
	net    *simnet.Net
	name   string
	timing raftgroup.Timing
	voters []raft.Server
	all    []*replica
}

// lister is a state machine that remembers what was applied.
type lister struct {
	mu      sync.Mutex
	applied []string // guarded by mu
}

func (m *lister) Apply(l *raft.Log) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied = append(m.applied, string(l.Data))
	return nil
}
func (m *lister) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots") }
func (m *lister) Restore(r io.ReadCloser) error       { return r.Close() }
func (m *lister) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.applied)
}
func (m *lister) last() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.applied) == 0 {
		return ""
	}
	return m.applied[len(m.applied)-1]
}

func hostName(i int) string { return fmt.Sprint("h", i) }

// onNet runs f with a network in a bubble of virtual time.
func onNet(t *testing.T, cfg simnet.Config, f func(t *testing.T, n *simnet.Net)) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(rand.New(rand.NewPCG(seed, seed)), cfg)
		t.Cleanup(n.Close)
		n.SetDefault(simnet.Path{Delay: time.Millisecond})
		f(t, n)
	})
}

// newReplicas describes a group of three; none is started.
func newReplicas(t *testing.T, n *simnet.Net, name string) *replicas { return newGroup(t, n, name, 3) }

func newGroup(t *testing.T, n *simnet.Net, name string, size int) *replicas {
	c := &replicas{t: t, net: n, name: name, timing: raftgroup.DefaultTiming(), all: make([]*replica, size)}
	for i := range c.all {
		id := raft.ServerID(fmt.Sprintf("%d/%s", i, name))
		c.voters = append(c.voters, raft.Server{ID: id, Address: raft.ServerAddress(id)})
		c.all[i] = &replica{host: n.Host(hostName(i)), logs: raft.NewInmemStore(), fsm: &lister{}}
		c.all[i].link = c.all[i].host.Endpoint(name, c.voters[i].Address)
	}
	t.Cleanup(func() {
		for i := range c.all {
			c.stop(i)
		}
	})
	return c
}

// startAll starts all three and returns the leader's number.
func startAll(t *testing.T, n *simnet.Net, name string, k kind) (*replicas, int) {
	c := newReplicas(t, n, name)
	for i := range c.all {
		c.start(i, k)
	}
	return c, c.leader(-1)
}

// start bootstraps and starts one replica, whose log may hold entries already.
func (c *replicas) start(i int, k kind) {
	c.t.Helper()
	r := c.all[i]
	if k.ours {
		disk := sim.New()
		must(c.t, disk.MkdirAll("data", 0o700))
		stable, err := raftgroup.OpenStable(disk, "data/stable", nil)
		must(c.t, err)
		slot, err := stable.Slot([16]byte{1})
		must(c.t, err)
		c.startOurs(i, slot)
		return
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID, cfg.Logger = c.voters[i].ID, hclog.NewNullLogger()
	cfg.HeartbeatTimeout, cfg.ElectionTimeout = c.timing.Heartbeat, c.timing.Election
	cfg.LeaderLeaseTimeout, cfg.CommitTimeout = c.timing.Lease, c.timing.Commit
	cfg.BatchApplyCh, cfg.TrailingLogs = true, 1<<40
	stable, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	if last, _ := r.logs.LastIndex(); last == 0 {
		must(c.t, raft.BootstrapCluster(cfg, r.logs, stable, snaps, r.link, raft.Configuration{Servers: c.voters}))
	}
	var err error
	var logs raft.LogStore = r.logs
	if r.slow != nil {
		logs = r.slow
	}
	var fsm raft.FSM = r.fsm
	if r.meta != nil {
		fsm = r.meta
	}
	r.raft, err = raft.NewRaft(cfg, fsm, logs, stable, snaps, r.link)
	must(c.t, err)
}

func (c *replicas) startOurs(i int, stable raft.StableStore) {
	c.t.Helper()
	r := c.all[i]
	cfg := raftgroup.Config{Name: c.name, ID: c.voters[i].ID, Timing: c.timing}
	parts := raftgroup.Parts{FSM: r.fsm, Logs: r.logs, Stable: stable, Snapshots: raft.NewDiscardSnapshotStore(), Transport: r.link}
	if r.slow != nil {
		parts.Logs = r.slow
	}
	if err := raftgroup.Bootstrap(cfg, parts, c.voters); err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		c.t.Fatal(err)
	}
	var err error
	r.group, err = raftgroup.Start(cfg, parts)
	must(c.t, err)
	r.raft = r.group.Raft()
}

// entries gives a replica a log before it starts: a configuration, and commands of term through index.
func (c *replicas) entries(i int, term, through uint64, data string) {
	c.t.Helper()
	logs := c.all[i].logs
	last, _ := logs.LastIndex()
	if last == 0 {
		last = 1
		must(c.t, logs.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: c.voters})}))
	}
	for i := last + 1; i <= through; i++ {
		must(c.t, logs.StoreLog(&raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Append(nil, data, i)}))
	}
}

func (c *replicas) stop(which ...int) {
	c.t.Helper()
	for _, i := range which {
		r := c.all[i]
		if r.raft == nil {
			continue
		}
		var err error
		if r.group != nil {
			err = r.group.Stop(context.Background())
		} else {
			err = r.raft.Shutdown().Error()
		}
		if err != nil {
			c.t.Error(err)
		}
		r.raft = nil
	}
}

// leader waits for one that has committed in its term; it is not except.
func (c *replicas) leader(except int) (n int) {
	c.t.Helper()
	c.until("somebody leads", func() bool {
		for i, r := range c.all {
			if i != except && r.raft != nil && r.raft.State() == raft.Leader && r.raft.Barrier(time.Second).Error() == nil {
				n = i
				return true
			}
		}
		return false
	})
	return n
}

// until waits for a condition, two virtual minutes at most.
func (c *replicas) until(what string, ok func() bool) {
	c.t.Helper()
	for range 24000 {
		if ok() {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	c.t.Fatalf("not within two minutes: %s", what)
}

// campaign has a replica start an election, as a failure hint does.
func (c *replicas) campaign(i int) {
	c.all[i].link.Inject(raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: c.header(i)}, RespChan: make(chan raft.RPCResponse, 1)})
}

func (c *replicas) header(i int) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(c.voters[i].ID), Addr: []byte(c.voters[i].Address)}
}

func (c *replicas) apply(i int, data string) error {
	return c.all[i].raft.Apply([]byte(data), time.Second).Error()
}

// agree waits until all replicas have applied last, and tells whether they have applied the same.
func (c *replicas) agree(last string) bool {
	for range 4000 {
		there := 0
		for _, r := range c.all {
			if r.fsm.last() == last {
				there++
			}
		}
		if there == len(c.all) {
			first := c.all[0].fsm.list()
			return slices.Equal(first, c.all[1].fsm.list()) && slices.Equal(first, c.all[2].fsm.list())
		}
		<-time.After(5 * time.Millisecond)
	}
	return false
}
