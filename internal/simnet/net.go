// Package simnet is a network between replicas, and between clients and brokers, that lies in memory.
//
// It carries Raft's requests (Endpoint implements raftgroup.Link) and opaque calls (Host.Call) between
// named hosts, and makes them late, early, double or lost as the Path between two hosts says. Tests
// drive it in a testing/synctest bubble, the simulator in a wasip1 module with a virtual clock.
//
// What holds:
//   - Nothing is shared: whatever arrives was copied as a wire would have copied it.
//   - All groups of two hosts share one Path, as they share one cable.
//   - An answer that does not arrive says nothing about its request.
//   - What a crashed host sends or answers after the crash never arrives. What it sent before may.
//   - Every choice comes from the one random source that New was given.
package simnet

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
)

// Config describes a network. Its zero value is ready for use.
type Config struct {
	// Timeout is how long a request waits for its answer; 0 means 2 s. A snapshot has ten times as long.
	Timeout time.Duration
	// RequestBytes is the budget of one AppendEntries request, one entry at least; 0 means 1 MiB.
	RequestBytes int
	// WindowRequests and WindowBytes bound what a pipeline has under way; 0 means 32 and 4 MiB.
	WindowRequests, WindowBytes int
	// Traps are the rules to break.
	Traps Traps
}

// Traps break the rules of raftgroup.Link on purpose, so that a test can show what each of them is good
// for. Nothing else may set them.
type Traps struct {
	FastHeartbeat bool // run Raft's heartbeat handler beside its main loop (hashicorp/raft #695)
	LooseCommit   bool // send the commit index as Raft gives it
	DeafPipeline  bool // a pipeline has no deadlines and is not closed by a refusal (#612)
	PlainSnapshot bool // let InstallSnapshot reach Raft (#697)
}

func (c Config) withDefaults() Config {
	c.Timeout = orElse(c.Timeout, 2*time.Second)
	c.RequestBytes = orElse(c.RequestBytes, 1<<20)
	c.WindowRequests = orElse(c.WindowRequests, 32)
	c.WindowBytes = orElse(c.WindowBytes, 4<<20)
	return c
}

func orElse[T int | time.Duration](x, otherwise T) T {
	if x <= 0 {
		return otherwise
	}
	return x
}

// Path is the way from one host to another; the way back is another Path. The zero Path
// delivers at once.
type Path struct {
	Delay, Jitter   time.Duration // a message takes Delay, and up to Jitter more
	Reorder         bool          // later messages may overtake earlier ones
	Loss, Duplicate float64       // probabilities; only requests are duplicated
	Cut             bool          // nothing arrives
}

// Stats counts what happened to messages, so that a test can tell that it tested something.
type Stats struct {
	Sent, Delivered, Lost, Duplicated, Refused int
}

type way struct{ from, to string }

// Net is the network. It is safe for concurrent use.
type Net struct {
	cfg   Config
	runs  *run.Group    // owns deliver
	wake  chan struct{} // capacity 1: the first event may have changed
	began clock.Mono

	mu     sync.Mutex
	rng    *rand.Rand            // guarded by mu
	hosts  map[string]*Host      // guarded by mu
	where  map[key]string        // guarded by mu; the host at which an endpoint was made last
	normal Path                  // guarded by mu
	paths  map[way]Path          // guarded by mu; those that differ from normal
	cut    map[way]bool          // guarded by mu; on top of the path
	last   map[way]time.Duration // guarded by mu; the latest arrival on a way that keeps order
	events events                // guarded by mu
	seq    uint64                // guarded by mu; of the newest event
	tap    func(*Message) Fate   // guarded by mu
	stats  Stats                 // guarded by mu
	owners []*run.Group          // guarded by mu; of hosts and endpoints, dead ones too
	nonce  uint64                // guarded by mu; of the last Confirm
}

// withBugs breaks the rule that a negative control wants to see broken.
func (c Config) withBugs() Config {
	c.Traps.FastHeartbeat = c.Traps.FastHeartbeat || bug.On(bug.FastHeartbeat)
	c.Traps.LooseCommit = c.Traps.LooseCommit || bug.On(bug.LooseCommit)
	c.Traps.DeafPipeline = c.Traps.DeafPipeline || bug.On(bug.DeafPipeline)
	return c
}

// New returns a network whose choices come from rng, which belongs to the network from now on.
func New(rng *rand.Rand, cfg Config) *Net {
	n := &Net{
		cfg: cfg.withDefaults().withBugs(), runs: run.Owned("simnet"), wake: make(chan struct{}, 1), began: clock.Monotonic(), rng: rng,
		hosts: map[string]*Host{}, where: map[key]string{}, paths: map[way]Path{}, cut: map[way]bool{}, last: map[way]time.Duration{},
	}
	n.runs.Go("deliver", n.deliver)
	return n
}

// Close ends the network and waits for its goroutines. Groups that use it are stopped first, calls
// that are served then see their context end.
func (n *Net) Close() {
	n.runs.Stop()
	n.mu.Lock()
	owners := n.owners
	n.mu.Unlock()
	for _, o := range owners {
		o.Stop()
	}
}

// Host returns the host of that name, which exists from then on.
func (n *Net) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		h = &Host{net: n, name: name, life: n.newLifeLocked(name)}
		n.hosts[name] = h
	}
	return h
}

// SetDefault gives all paths that SetPath does not name.
func (n *Net) SetDefault(p Path) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.normal = p
}

// SetPath gives the way from one host to another.
func (n *Net) SetPath(from, to string, p Path) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paths[way{from, to}] = p
}

// CutOneWay loses everything from one host to another, what is under way included.
func (n *Net) CutOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[way{from, to}] = true
}

// Cut is CutOneWay in both directions.
func (n *Net) Cut(a, b string) {
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// Isolate cuts a host off from the given others.
func (n *Net) Isolate(host string, others ...string) {
	for _, o := range others {
		if o != host {
			n.Cut(host, o)
		}
	}
}

// Heal takes back the cuts in both directions between two hosts.
func (n *Net) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, way{a, b})
	delete(n.cut, way{b, a})
}

// HealAll takes back all cuts.
func (n *Net) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// Intercept has every message pass tap when it is sent; nil ends that. tap is called from the
// sender's goroutine, or from the network's for an answer, without locks; it must not block.
func (n *Net) Intercept(tap func(*Message) Fate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = tap
}

// Stats counts messages since New.
func (n *Net) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}
