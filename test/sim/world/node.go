package world

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	dataDir = "/data"
	// reserveBytes of a disk are for what was proposed already.
	reserveBytes = 512 << 10
	// burialTime bounds how long a dead life's goroutines may take to end.
	burialTime = 30 * time.Second
)

// node is one machine: its disk and its clock outlive the processes that run on it.
type node struct {
	world    *World
	id       int
	name     string
	clock    *wall
	drive    *drive
	coordLog *raft.InmemStore
	rng      *rand.Rand // guarded by mu

	mu          sync.Mutex
	disk        *sim.FS
	life        *life           // guarded by mu; nil while the node is down
	lives       int             // guarded by mu
	formed      map[int32]bool  // guarded by mu; what the metadata would know
	quarantined map[int32]error // guarded by mu
	damaged     bool            // guarded by mu; its drive has destroyed data
}

// life is one process on a node. Once dead it has no effect any more: its disk refuses, and
// its endpoints reach nobody.
type life struct {
	node     *node
	number   int
	disk     *sim.FS
	dead     atomic.Bool
	ready    atomic.Bool
	stable   *raftgroup.StableStore
	watchdog *log.Watchdog
	shared   log.Config
	registry *prometheus.Registry
	runs     *run.Group

	mu          sync.Mutex
	replicas    map[int32]*partition.Replica // guarded by mu
	nonces      map[uint64]bool              // guarded by mu; of requests that came
	coordinator *group.Coordinator           // guarded by mu; nil until it is open
	coordState  *raftgroup.StateGroup        // guarded by mu
}

// start boots the node's process. It returns when its replicas run, or are known not to.
func (n *node) start() {
	n.mu.Lock()
	if n.life != nil || n.world.over.Load() {
		n.mu.Unlock()
		return
	}
	n.lives++
	l := &life{node: n, number: n.lives, disk: n.disk, replicas: map[int32]*partition.Replica{}, nonces: map[uint64]bool{},
		runs: run.Owned(fmt.Sprintf("%s life %d", n.name, n.lives))}
	n.life = l
	n.disk.SetHook(n.drive.hook(l))
	n.mu.Unlock()
	n.world.trace.say(n.name, "starts, life %d", l.number)
	if err := l.open(); err != nil {
		l.exit("does not start: %v", err)
		return
	}
	if !l.dead.Load() {
		n.world.trace.say(n.name, "is up")
	}
}

// up tells whether the node's process runs.
func (n *node) up() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

func (l *life) open() (err error) {
	if err := errors.Join(l.disk.MkdirAll(dataDir, 0o700), l.disk.SyncDir("/")); err != nil {
		return err
	}
	if l.stable, err = raftgroup.OpenStable(l.disk, dataDir+"/stable", nil); err != nil {
		return fmt.Errorf("stable store: %w", err)
	}
	l.watchdog = log.NewWatchdog(log.WatchdogConfig{OnHang: func(name string, after time.Duration) {
		l.exit("the disk hangs for %v in %s", after, name)
	}})
	l.watchdog.Start()
	space, err := log.NewSpace(l.disk, dataDir, reserveBytes)
	if err != nil {
		return err
	}
	l.registry = prometheus.NewRegistry()
	l.shared = log.Config{Metrics: log.NewMetrics(l.registry), Budget: log.NewBudget(4 << 20), Files: log.NewFiles(0, 0), Syncs: log.NewSyncLimit(16), Watchdog: l.watchdog, Space: space}
	for _, p := range l.node.world.partitionsOf(l.node.id) {
		if err := l.openReplica(p); err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
	}
	if err := l.openCoordinator(); err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	l.node.world.net.serve(l)
	l.runs.Go("watch", l.watch)
	l.ready.Store(true)
	return nil
}

// openReplica opens and starts one replica. Damage takes this replica out of service, and no other.
func (l *life) openReplica(p int32) error {
	n, w := l.node, l.node.world
	n.mu.Lock()
	formed, bad := n.formed[p], n.quarantined[p]
	n.mu.Unlock()
	if bad != nil {
		return nil
	}
	slot, err := l.stable.Slot(slotID(p))
	if err != nil {
		return err
	}
	id := serverID(n.id, p)
	cfg := partition.Config{
		Dir: fmt.Sprintf("%s/p%d", dataDir, p), Topic: topicID, TopicName: topicName, Partition: p, ID: id,
		TopicConfig: w.topic,
	}
	if !formed {
		cfg.Voters = w.voters(p)
	}
	r, err := partition.Open(cfg, partition.Deps{
		FS: l.disk, Clock: n.clock, Log: l.shared, Stable: &votes{StableStore: slot, life: l, p: p}, Timing: timing,
		Transport:    w.net.link(l, groupName(p), id),
		OnLeadership: func(epoch record.Epoch, leads bool) { l.led(p, epoch, leads) },
		OnFatal:      func(err error) { l.lostTrust(p, err) },
		OnReset:      func() { l.reset(p) },
	})
	if err != nil {
		return l.refused(p, err)
	}
	if err := r.Start(); err != nil {
		_ = r.Stop(context.Background()) // gives the log's lock back
		return l.refused(p, err)
	}
	l.mu.Lock()
	l.replicas[p] = r
	l.mu.Unlock()
	n.mu.Lock()
	n.formed[p] = true
	n.mu.Unlock()
	return nil
}

// refused is what became of a replica that cannot run.
func (l *life) refused(p int32, err error) error {
	if errs.CodeOf(err) != errs.ReplicaQuarantined || l.dead.Load() {
		return err
	}
	l.node.quarantine(p, err)
	return nil
}

// lostTrust is told by a running replica. Damage concerns it alone; anything else is the disk, and the process ends.
func (l *life) lostTrust(p int32, err error) {
	if l.dead.Load() {
		return
	}
	if errs.CodeOf(err) != errs.ReplicaQuarantined {
		l.exit("replica %d: %v", p, err)
		return
	}
	l.node.quarantine(p, err)
	l.mu.Lock()
	r := l.replicas[p]
	delete(l.replicas, p)
	l.mu.Unlock()
	if r != nil {
		l.runs.Go("retire", func(ctx context.Context) { l.retire(ctx, r) })
	}
}

// reset restarts a replica that its leader has seeded anew.
func (l *life) reset(p int32) {
	l.node.world.trace.say(l.node.name, "partition %d was reset", p)
	l.node.world.history.Saw("resets", 1)
	l.mu.Lock()
	r := l.replicas[p]
	delete(l.replicas, p)
	l.mu.Unlock()
	l.runs.Go("reset", func(ctx context.Context) {
		if r != nil {
			l.retire(ctx, r)
		}
		if ctx.Err() != nil {
			return // the process ends
		}
		if err := l.openReplica(p); err != nil {
			l.exit("partition %d does not start after a reset: %v", p, err)
		}
	})
}

// retire stops a replica that is in service no more, also while the process ends.
func (l *life) retire(ctx context.Context, r *partition.Replica) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), burialTime)
	defer cancel()
	_ = r.Stop(ctx)
}

func (n *node) quarantine(p int32, err error) {
	n.mu.Lock()
	n.quarantined[p] = err
	n.mu.Unlock()
	n.world.quarantined(n, p, err)
}

// led keeps the world's metadata: who leads which partition.
func (l *life) led(p int32, epoch record.Epoch, leads bool) {
	if l.dead.Load() {
		return
	}
	if leads {
		f := l.fact(check.Leader, p)
		f.Term = uint64(epoch)
		l.node.world.history.Fact(f)
		l.node.world.leads(l.node, p, epoch)
	} else {
		l.node.world.trace.say(l.node.name, "no longer leads partition %d in epoch %d", p, epoch)
	}
}

// replica returns the running replica of a partition, or nil.
func (l *life) replica(p int32) *partition.Replica {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replicas[p]
}

// exit is a process that ends itself.
func (l *life) exit(format string, args ...any) {
	if l.dead.Load() {
		return
	}
	l.node.world.trace.say(l.node.name, "exits: "+format, args...)
	l.end((*sim.FS).Kill)
	l.node.world.restartLater(l.node, "exit")
}

// dieHere is a process that dies before an operation of its disk; it is called with the file system's lock held.
func (l *life) dieHere(why string, op sim.Op, power bool) {
	n, w := l.node, l.node.world
	if !l.dead.CompareAndSwap(false, true) {
		return
	}
	w.trace.say(n.name, "dies at %s, before %s of %s", why, op.Kind, path.Base(op.Name))
	w.tasks.Go(n.name+" dies", func(context.Context) {
		if power && !n.spared() {
			l.end(func(disk *sim.FS) *sim.FS { return disk.Reboot(n.rng, true) })
		} else {
			l.end((*sim.FS).Kill)
		}
		w.restartLater(n, "failpoint")
	})
}

// spared tells whether the node may not lose power: see damage.
func (n *node) spared() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.damaged
}

// kill ends the process as SIGKILL does: what it wrote is in the page cache.
func (n *node) kill() {
	if l := n.up(); l != nil {
		n.world.trace.say(n.name, "is killed")
		l.end((*sim.FS).Kill)
		n.world.restartLater(n, "kill")
	}
}

// retire stops the node's process in order, and starts it again.
func (n *node) retire() {
	l := n.up()
	if l == nil || !l.ready.Load() {
		return
	}
	n.world.trace.say(n.name, "is told to stop")
	ctx, cancel := context.WithTimeout(context.Background(), burialTime)
	defer cancel()
	l.close(ctx)
	if l.dead.Load() {
		return // something was faster
	}
	n.world.trace.say(n.name, "has stopped")
	l.end((*sim.FS).Kill)
	n.world.restartLater(n, "restart")
}

// cutPower takes what was not synced, also from a node whose process is down.
func (n *node) cutPower(tear bool) {
	if n.spared() {
		return
	}
	n.world.trace.say(n.name, "loses power, tear=%v", tear)
	reboot := func(disk *sim.FS) *sim.FS { return disk.Reboot(n.rng, tear) }
	if l := n.up(); l != nil {
		l.end(reboot)
		n.world.restartLater(n, "power")
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.disk = reboot(n.disk)
}

// end makes the life dead, and keeps what its disk keeps.
func (l *life) end(after func(*sim.FS) *sim.FS) {
	n := l.node
	n.mu.Lock()
	if n.life != l {
		n.mu.Unlock()
		return
	}
	n.life = nil
	l.dead.Store(true)
	n.disk = after(l.disk)
	n.mu.Unlock()
	n.world.net.down(l)
	n.world.tasks.Go(n.name+" burial", l.bury)
}

// tally adds what the logs of the life have counted.
func (l *life) tally() {
	if l.registry == nil {
		return
	}
	families, _ := l.registry.Gather()
	for _, f := range families {
		if name, ok := strings.CutPrefix(f.GetName(), "tidemark_log_"); ok && name == "repaired_tails_total" {
			for _, m := range f.GetMetric() {
				l.node.world.history.Saw("repaired_tails", int64(m.GetCounter().GetValue()))
			}
		}
	}
}

// bury ends the goroutines of a dead life; nothing they do has an effect.
func (l *life) bury(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, burialTime)
	defer cancel()
	l.close(ctx)
}

// close stops what runs in the process.
func (l *life) close(ctx context.Context) {
	_ = l.runs.StopWithin(ctx) // first, because a reset opens replicas
	l.mu.Lock()
	replicas, coordinator, state := l.replicas, l.coordinator, l.coordState
	l.replicas, l.coordinator, l.coordState = nil, nil, nil
	l.mu.Unlock()
	if coordinator != nil {
		coordinator.Stop()
		_ = state.Stop(ctx)
	}
	for _, p := range l.node.world.partitionsOf(l.node.id) {
		if r := replicas[p]; r != nil {
			_ = r.Stop(ctx)
		}
	}
	l.tally()
	if l.watchdog != nil {
		l.watchdog.Stop()
	}
	if l.stable != nil {
		_ = l.stable.Close()
	}
}

func slotID(p int32) [16]byte { return [16]byte{'p', byte(p)} }

// serverID names a replica in its group: broker and replica.
func serverID(node int, p int32) raft.ServerID {
	return raft.ServerID(fmt.Sprintf("%d/p%d", node, p))
}
