package world

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/run"
)

// Fault is a kind of trouble.
type Fault string

// Faults are the kinds that a run uses.
type Faults []Fault

// trouble is what one kind of fault does.
type trouble struct {
	kind Fault
	// inflict makes it happen. end, unless it is nil, takes it back after the time lasts.
	inflict func(m *nemesis) (end func(), lasts time.Duration)
}

// troubles is every kind there is.
var troubles = []trouble{
	{"kill", (*nemesis).kill},
	{"power", (*nemesis).power},
	{"restart", (*nemesis).restart},
	{"transfer", (*nemesis).transfer},
	{"split", (*nemesis).split},
	{"net", (*nemesis).badNet},
	{"pause", (*nemesis).pause},
	{"slowdisk", (*nemesis).slowDisk},
	{"hangdisk", (*nemesis).hangDisk},
	{"eio", (*nemesis).failDisk},
	{"enospc", (*nemesis).fillDisk},
	{"rot", (*nemesis).damage},
	{"clock", (*nemesis).shiftClock},
	{"failpoint", (*nemesis).failpoint},
}

// ParseFaults reads a list, "all", or "none".
func ParseFaults(s string) (list Faults, err error) {
	if s == "none" || s == "" {
		return nil, nil
	}
	for _, t := range troubles {
		if s == "all" || slices.Contains(strings.Split(s, ","), string(t.kind)) {
			list = append(list, t.kind)
		}
	}
	if s != "all" && len(list) != len(strings.Split(s, ",")) {
		return nil, fmt.Errorf("faults %q: want all, none, or a list of %s", s, allFaults())
	}
	return list, nil
}

func allFaults() (list Faults) {
	for _, t := range troubles {
		list = append(list, t.kind)
	}
	return list
}

func (f Faults) String() string {
	if len(f) == 0 {
		return "none"
	}
	parts := make([]string, len(f))
	for i := range f {
		parts[i] = string(f[i])
	}
	return strings.Join(parts, ",")
}

// nemesis makes trouble: every few seconds a random subset of the faults, sometimes none.
type nemesis struct {
	world *World
	rng   *rand.Rand
	runs  *run.Group // owns what ends trouble
	under map[Fault]bool
}

func newNemesis(w *World) *nemesis {
	return &nemesis{world: w, rng: source(w.options.Seed, "nemesis"), runs: run.Owned("nemesis"), under: map[Fault]bool{}}
}

// run makes trouble until ctx is done.
func (m *nemesis) run(ctx context.Context) {
	ended := make(chan Fault, len(troubles))
	next := time.NewTimer(m.wait())
	defer next.Stop()
	for {
		select {
		case f := <-ended:
			delete(m.under, f)
		case <-next.C:
			m.round(ended)
			next.Reset(m.wait())
		case <-ctx.Done():
			return
		}
	}
}

func (m *nemesis) wait() time.Duration { return m.between(time.Second, 5*time.Second) }

// round adds to the trouble that there is.
func (m *nemesis) round(ended chan<- Fault) {
	if m.rng.IntN(4) == 0 {
		return
	}
	for _, t := range troubles {
		if slices.Contains(m.world.options.Faults, t.kind) && !m.under[t.kind] && m.rng.IntN(4) == 0 {
			m.begin(t, ended)
		}
	}
}

func (m *nemesis) begin(t trouble, ended chan<- Fault) {
	from := m.world.stamp()
	end, lasts := t.inflict(m)
	if end == nil {
		return
	}
	m.under[t.kind] = true
	m.runs.Go("end "+string(t.kind), func(ctx context.Context) {
		_ = pause(ctx, lasts)
		end()
		m.world.history.Fault(check.Fault{Kind: string(t.kind), From: from, Until: m.world.stamp()})
		ended <- t.kind
	})
}

// end ends all trouble.
func (m *nemesis) end() { m.runs.Stop() }

func (m *nemesis) between(least, most time.Duration) time.Duration {
	return least + time.Duration(m.rng.Int64N(int64(most-least)))
}

func (m *nemesis) someone() *node { return m.world.nodes[m.rng.IntN(len(m.world.nodes))] }

// some is a random subset of the nodes, at least one; mostly one.
func (m *nemesis) some() []*node {
	all := slices.Clone(m.world.nodes)
	m.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if m.rng.IntN(2) == 0 {
		return all[:1]
	}
	return all[:1+m.rng.IntN(len(all))]
}

func (m *nemesis) kill() (func(), time.Duration) {
	for _, n := range m.some() {
		n.kill()
	}
	return nil, 0
}

func (m *nemesis) power() (func(), time.Duration) {
	tear := m.rng.IntN(2) == 0
	for _, n := range m.some() {
		if m.rng.IntN(2) == 0 {
			n.drive.set(func(d *drive) { d.cut = true })
			continue
		}
		n.cutPower(tear)
	}
	return nil, 0
}

// restart ends a process as SIGTERM does.
func (m *nemesis) restart() (func(), time.Duration) {
	n := m.someone()
	m.world.tasks.Go(n.name+" stops", func(context.Context) { n.retire() })
	return nil, 0
}

// transfer asks a leader to hand over.
func (m *nemesis) transfer() (func(), time.Duration) {
	p := int32(m.rng.IntN(m.world.options.Partitions))
	members := m.world.members(p)
	n, to := m.world.leader(p), serverID(members[m.rng.IntN(len(members))], p)
	l := n.up()
	if l == nil || to == serverID(n.id, p) {
		return nil, 0
	}
	if r := l.replica(p); r != nil {
		m.world.tasks.Go("transfer", func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			m.world.trace.say(n.name, "hands partition %d over to %s: %v", p, to, r.Transfer(ctx, to))
		})
	}
	return nil, 0
}

func (m *nemesis) split() (func(), time.Duration) {
	m.world.net.split(m.rng)
	return m.world.net.HealAll, m.between(time.Second, 8*time.Second)
}

func (m *nemesis) badNet() (func(), time.Duration) {
	m.world.net.worsen(m.rng)
	return m.world.net.mend, m.between(time.Second, 6*time.Second)
}

// pause keeps a node from the network and from its disk. A process that stands still cannot be had here: its timers go on.
func (m *nemesis) pause() (func(), time.Duration) {
	n := m.someone()
	lasts := m.between(200*time.Millisecond, 6*time.Second)
	m.world.trace.say(n.name, "is paused for %v", lasts)
	m.world.net.Host(n.name).Pause()
	hang := n.drive.stop()
	return func() {
		n.drive.release(hang)
		m.world.net.Host(n.name).Resume()
		m.world.trace.say(n.name, "goes on")
	}, lasts
}

func (m *nemesis) slowDisk() (func(), time.Duration) {
	n := m.someone()
	by := m.between(10*time.Millisecond, 400*time.Millisecond)
	m.world.trace.say(n.name, "has a disk that is slower by %v", by)
	n.drive.set(func(d *drive) { d.slow = by })
	return func() { n.drive.set(func(d *drive) { d.slow = 0 }) }, m.between(time.Second, 8*time.Second)
}

// hangDisk hangs a disk, now and then for so long that the watchdog ends the process.
func (m *nemesis) hangDisk() (func(), time.Duration) {
	n := m.someone()
	lasts := m.between(time.Second, 8*time.Second)
	if m.rng.IntN(4) == 0 {
		lasts = m.between(31*time.Second, 40*time.Second)
	}
	m.world.trace.say(n.name, "has a disk that hangs for %v", lasts)
	hang := n.drive.stop()
	return func() {
		n.drive.release(hang)
		m.world.trace.say(n.name, "has a disk again")
	}, lasts
}

func (m *nemesis) failDisk() (func(), time.Duration) {
	n := m.someone()
	n.drive.failNext(m.rng)
	return nil, 0
}

// fillDisk leaves a node with little space.
func (m *nemesis) fillDisk() (func(), time.Duration) {
	n := m.someone()
	left := int64(m.rng.IntN(2 << 20))
	m.world.trace.say(n.name, "has %d bytes left on its disk", left)
	n.space(left)
	return func() {
		n.space(-1)
		m.world.trace.say(n.name, "has space again")
	}, m.between(time.Second, 8*time.Second)
}

// damage destroys bytes of the one node whose data may be destroyed.
func (m *nemesis) damage() (func(), time.Duration) {
	m.world.victim().damage(m.rng)
	return nil, 0
}

// failpoint kills whoever comes to a place between two steps.
func (m *nemesis) failpoint() (func(), time.Duration) {
	if place := m.world.failpoints.arm(m.rng.IntN); place != "" {
		m.world.trace.say("-", "arms %s", place)
	}
	return nil, 0
}

// shiftClock makes a wall clock jump, by hours or days, or run wrong.
func (m *nemesis) shiftClock() (func(), time.Duration) {
	n := m.someone()
	if m.rng.IntN(3) == 0 {
		drift := (m.rng.Float64() - 0.5) / 5
		m.world.trace.say(n.name, "has a clock that gains %.3f s per second", drift)
		n.clock.run(drift)
		return nil, 0
	}
	by := m.between(-2*time.Hour, 2*time.Hour)
	if m.rng.IntN(2) == 0 {
		by = m.between(-240*time.Hour, 240*time.Hour)
	}
	m.world.trace.say(n.name, "has a clock that jumps by %v", by)
	n.clock.jump(by)
	return nil, 0
}
