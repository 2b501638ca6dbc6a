// Package world is a Tidemark cluster in one process: nodes with their disks and clocks, the network between
// them, clients, and a nemesis that breaks all of it.
//
// What runs on the nodes is the product: log, partition, raftgroup and group. Everything around it is
// simulated, and every choice comes from the seed, so that the same seed is the same run
// where time and Go's scheduler are the seed's too (see package sim).
package world

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Options say what to run.
type Options struct {
	Seed       uint64
	Duration   time.Duration // virtual time under load
	Nodes      int
	Partitions int
	Faults     Faults
}

const (
	topicName = "orders"
	// settleTime bounds how long the cluster may take to form and, after the faults, to be whole.
	settleTime = 60 * time.Second
)

var (
	topicID = log.UUID{0x71, 0xde}
	// timing is short, so that a minute holds many elections.
	timing = raftgroup.Timing{Heartbeat: time.Second, Election: time.Second, Lease: 600 * time.Millisecond, Commit: 100 * time.Millisecond}
)

// World is one run.
type World struct {
	options Options
	trace   *trace
	topic   partition.TopicConfig
	net     *network
	nodes   []*node
	tasks   *run.Group    // restarts and burials
	found   *check.Report // nil until judged
	// dying is the failpoint at which the process with the next operation on disk dies; nil: none.
	dying      atomic.Pointer[string]
	failpoints failpoints
	over       atomic.Bool // nothing starts any more
	history    *check.Recorder

	mu      sync.Mutex
	rng     *rand.Rand              // guarded by mu
	leaders map[int32]leading       // guarded by mu; what the metadata would say
	term    map[leading]int         // guarded by mu; who led which term
	starts  map[int32]record.Offset // guarded by mu; the highest log start that a client has seen
	healed  bool                    // guarded by mu; nodes restart at once
}

// leading is a leadership: of a node in what leaders holds, of a partition in what term holds.
type leading struct {
	of    int
	epoch record.Epoch
}

// Run runs a world and reports whether all promises were kept. The trace ends with a RESULT line.
func Run(o Options, out io.Writer) bool {
	w := newWorld(o, out)
	defer w.failpoints.install(w)()
	return w.live()
}

func newWorld(o Options, out io.Writer) *World {
	w := &World{
		options: o, trace: newTrace(out), tasks: run.Owned("world"), rng: source(o.Seed, "world"),
		starts: map[int32]record.Offset{}, leaders: map[int32]leading{}, term: map[leading]int{}, history: check.NewRecorder("sim", o.Seed, 4<<20),
		topic: partition.TopicConfig{SegmentBytes: log.MinSegmentBytes, Retention: log.Retention{Age: -1, Bytes: -1}},
	}
	switch o.Seed % 3 {
	case 1: // by size: the log start moves by itself
		w.topic.Retention.Bytes = 4 * log.MinSegmentBytes
	case 2: // by age, which no run reaches, though its clocks may: the log start moves on request only
		w.topic.Retention.Age = 6 * time.Hour
	}
	w.topic.MinInsync = 1 + int(o.Seed/3%2)
	w.net = newNetwork(w)
	began := clock.System().Now().Round(0)
	for i := range o.Nodes {
		name := fmt.Sprintf("n%d", i)
		n := &node{world: w, id: i, name: name, clock: newWall(began), rng: source(o.Seed, name),
			disk: sim.New(), coordLog: raft.NewInmemStore(), formed: map[int32]bool{}, quarantined: map[int32]error{}}
		n.drive = newDrive(n, source(o.Seed, name+" drive"))
		w.nodes = append(w.nodes, n)
	}
	return w
}

// source is a random source of its own for each part of the world: what one part draws changes nothing for another.
func source(seed uint64, part string) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, c := range []byte(part) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, h))
}

// live is a run's course.
func (w *World) live() bool {
	o := w.options
	w.trace.say("-", "seed %d: %d nodes, %d partitions, %v, faults %s", o.Seed, o.Nodes, o.Partitions, o.Duration, o.Faults)
	w.startAll()
	if !w.await("a leader of every partition", w.everyoneLed) {
		return w.report()
	}
	clients := newClients(w)
	clients.start()
	nemesis := newNemesis(w)
	w.sleep(o.Duration, nemesis.run)
	nemesis.end()
	w.heal()
	w.await("every node to be up", w.everyoneUp)
	w.probe()
	clients.stop()
	w.judge()
	return w.report()
}

// sleep runs f for a time.
func (w *World) sleep(d time.Duration, f func(context.Context)) {
	ctx, cancel := context.WithTimeout(w.tasks.Context(), d)
	defer cancel()
	f(ctx)
	<-ctx.Done()
}

func (w *World) startAll() {
	for _, n := range w.nodes {
		w.tasks.Go("start "+n.name, func(context.Context) { n.start() })
	}
}

// await waits until a condition holds, which must be soon.
func (w *World) await(what string, holds func() bool) bool {
	ctx, cancel := context.WithTimeout(w.tasks.Context(), settleTime)
	defer cancel()
	for !holds() {
		if pause(ctx, 20*time.Millisecond) != nil {
			w.trace.violation("-", "waited %v for %s", settleTime, what)
			return false
		}
	}
	return true
}

func (w *World) everyoneLed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.leaders) == w.options.Partitions+1 // and the coordinator
}

func (w *World) everyoneUp() bool {
	for _, n := range w.nodes {
		if l := n.up(); l == nil || !l.ready.Load() {
			return false
		}
	}
	return true
}

// heal ends all faults and brings every node back.
func (w *World) heal() {
	w.trace.say("-", "heals")
	w.mu.Lock()
	w.healed = true
	w.mu.Unlock()
	for _, n := range w.nodes {
		n.clock.right()
		n.drive.repair()
		n.space(-1)
	}
	w.startAll()
}

// restartLater brings a node back after a while, as an operator or a supervisor does.
func (w *World) restartLater(n *node, why string) {
	from := w.stamp()
	w.mu.Lock()
	wait := time.Duration(200+w.rng.IntN(6000)) * time.Millisecond
	if w.healed {
		wait = 200 * time.Millisecond
	}
	w.mu.Unlock()
	w.tasks.Go("restart "+n.name, func(ctx context.Context) {
		if pause(ctx, wait) == nil {
			n.start()
		}
		w.history.Fault(check.Fault{Kind: why, From: from, Until: w.stamp()})
	})
}

// leads is told of every leadership. No term may have two leaders.
func (w *World) leads(n *node, p int32, epoch record.Epoch) {
	w.mu.Lock()
	if epoch > w.leaders[p].epoch {
		w.leaders[p] = leading{n.id, epoch}
	}
	this := leading{int(p), epoch}
	other, twice := w.term[this]
	w.term[this] = n.id
	w.mu.Unlock()
	w.trace.say(n.name, "leads partition %d in epoch %d", p, epoch)
	if twice && other != n.id {
		w.trace.violation(n.name, "two_leaders_per_term: partition %d, epoch %d was led by n%d", p, epoch, other)
	}
}

// leader is the node that the metadata holds for the leader.
func (w *World) leader(p int32) *node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[w.leaders[p].of]
}

func (w *World) quarantined(n *node, p int32, err error) {
	w.history.Saw("quarantined", 1)
	n.mu.Lock()
	why := n.damaged
	n.mu.Unlock()
	if why {
		w.trace.say(n.name, "partition %d is quarantined: %v", p, err)
		return
	}
	w.trace.violation(n.name, "partition %d is quarantined without a cause: %v", p, err)
}

// members are the nodes that host a partition.
func (w *World) members(p int32) []int {
	if p == coordPartition {
		p = 1 // on every node
	}
	all := make([]int, len(w.nodes))
	for i := range all {
		all[i] = (int(p) + i) % len(all)
	}
	if len(all) > 3 && p%2 == 0 {
		all = all[:3]
	}
	return all
}

func (w *World) voters(p int32) (list []raft.Server) {
	for _, n := range w.members(p) {
		id := serverID(n, p)
		list = append(list, raft.Server{Suffrage: raft.Voter, ID: id, Address: raft.ServerAddress(id)})
	}
	return list
}

func (w *World) partitionsOf(node int) (list []int32) {
	for p := range int32(w.options.Partitions) {
		for _, n := range w.members(p) {
			if n == node {
				list = append(list, p)
			}
		}
	}
	return list
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
