package world

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Fault is a kind of trouble.
type Fault string

// The kinds.
const (
	Kill  Fault = "kill"
	Power Fault = "power"
	Split Fault = "split"
)

// AllFaults is every kind.
var AllFaults = Faults{Kill, Power, Split}

// Faults are the kinds that a run uses.
type Faults []Fault

// ParseFaults reads a list, "all", or "none".
func ParseFaults(s string) (Faults, error) {
	switch s {
	case "all":
		return AllFaults, nil
	case "none", "":
		return nil, nil
	}
	var list Faults
	for part := range strings.SplitSeq(s, ",") {
		f := Fault(strings.TrimSpace(part))
		if !slices.Contains(AllFaults, f) {
			return nil, fmt.Errorf("fault %q is unknown; there are %s", part, AllFaults)
		}
		list = append(list, f)
	}
	return list, nil
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
}

func newNemesis(w *World) *nemesis { return &nemesis{world: w, rng: source(w.options.Seed, "nemesis")} }

// run makes trouble until ctx is done.
func (m *nemesis) run(ctx context.Context) {
	for pause(ctx, time.Duration(1000+m.rng.IntN(4000))*time.Millisecond) == nil {
		m.calm()
		for _, f := range m.world.options.Faults {
			if m.rng.IntN(4) == 0 {
				m.inflict(f)
			}
		}
	}
}

// calm ends what lasts.
func (m *nemesis) calm() { m.world.net.heal() }

// end ends all trouble.
func (m *nemesis) end() { m.calm() }

func (m *nemesis) someone() *node { return m.world.nodes[m.rng.IntN(len(m.world.nodes))] }

// some is a random subset of the nodes, at least one.
func (m *nemesis) some() []*node {
	all := slices.Clone(m.world.nodes)
	m.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+m.rng.IntN(len(all))]
}

func (m *nemesis) inflict(f Fault) {
	switch f {
	case Kill:
		for _, n := range m.some() {
			n.kill()
		}
	case Power:
		tear := m.rng.IntN(2) == 0
		for _, n := range m.some() {
			n.cutPower(tear)
		}
	case Split:
		m.world.net.split(m.rng)
	}
}
