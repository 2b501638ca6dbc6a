package world

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/simnet"
)

// network joins nodes and clients. Each is a host of its own.
type network struct {
	world *World
	*simnet.Net
	bad [2]string // the path that worsen has changed; the nemesis's
}

func newNetwork(w *World) *network {
	n := &network{world: w, Net: simnet.New(source(w.options.Seed, "net"), simnet.Config{Timeout: time.Second})}
	n.SetDefault(usual)
	return n
}

// usual is a path without trouble.
var usual = simnet.Path{Delay: 100 * time.Microsecond, Jitter: 200 * time.Microsecond}

// caller is a host that asks.
type caller struct{ host *simnet.Host }

func (n *network) client(name string) caller { return caller{n.Host(name)} }

func (c caller) call(ctx context.Context, to string, q *request) (*answer, error) {
	got, err := c.host.Call(ctx, to, q)
	if err != nil {
		return nil, err
	}
	return got.(*answer), nil
}

// link is the transport of one replica of a life.
func (n *network) link(l *life, group string, id raft.ServerID) *simnet.Endpoint {
	return n.Host(l.node.name).Endpoint(group, raft.ServerAddress(id))
}

// serve opens a life's door.
func (n *network) serve(l *life) {
	n.Host(l.node.name).Serve(func(ctx context.Context, _ string, q any) (any, error) {
		return l.handle(ctx, q.(*request)), nil
	})
}

// down ends a life's endpoints.
func (n *network) down(l *life) { n.Host(l.node.name).Crash() }

// worsen makes the paths between some hosts slow, lossy, out of order, or all of it.
func (n *network) worsen(rng *rand.Rand) {
	p := usual
	if rng.IntN(2) == 0 {
		p.Delay, p.Jitter = time.Duration(rng.IntN(20_000))*time.Microsecond, time.Duration(1+rng.IntN(60_000))*time.Microsecond
	}
	if rng.IntN(2) == 0 {
		p.Loss = rng.Float64() / 5
	}
	if rng.IntN(2) == 0 {
		p.Duplicate = rng.Float64() / 3
	}
	p.Reorder = rng.IntN(2) == 0
	if rng.IntN(3) == 0 {
		a, b := n.world.nodes[rng.IntN(len(n.world.nodes))].name, n.world.nodes[rng.IntN(len(n.world.nodes))].name
		n.world.trace.say("net", "from %s to %s: %+v", a, b, p)
		n.SetPath(a, b, p)
		n.bad = [2]string{a, b}
		return
	}
	n.world.trace.say("net", "everywhere: %+v", p)
	n.SetDefault(p)
}

// mend takes back what worsen did.
func (n *network) mend() {
	n.world.trace.say("net", "is usual again")
	n.SetDefault(usual)
	if n.bad[0] != n.bad[1] {
		n.SetPath(n.bad[0], n.bad[1], usual)
	}
}

// split cuts the network in one of the ways that networks are cut.
func (n *network) split(rng *rand.Rand) {
	nodes := n.world.nodes
	p := int32(rng.IntN(n.world.options.Partitions))
	leader := n.world.leader(p)
	switch rng.IntN(4) {
	case 0:
		n.world.trace.say("net", "isolates %s, which leads partition %d", leader.name, p)
		for _, o := range nodes {
			if o != leader {
				n.Cut(leader.name, o.name)
			}
		}
	case 1:
		half := rng.Perm(len(nodes))[:len(nodes)/2]
		in := map[int]bool{}
		for _, i := range half {
			in[i] = true
		}
		n.world.trace.say("net", "cuts off %v", half)
		n.cutWhere(func(a, b *node) bool { return in[a.id] != in[b.id] })
	case 2:
		bridge := rng.IntN(len(nodes))
		n.world.trace.say("net", "leaves n%d as the only bridge", bridge)
		n.cutWhere(func(a, b *node) bool { return a.id != bridge && b.id != bridge })
	default:
		from, to := nodes[rng.IntN(len(nodes))], nodes[rng.IntN(len(nodes))]
		if from != to {
			n.world.trace.say("net", "loses all from %s to %s", from.name, to.name)
			n.CutOneWay(from.name, to.name)
		}
	}
}

func (n *network) cutWhere(apart func(a, b *node) bool) {
	for _, a := range n.world.nodes {
		for _, b := range n.world.nodes {
			if a != b && apart(a, b) {
				n.CutOneWay(a.name, b.name)
			}
		}
	}
}

func groupName(p int32) string { return fmt.Sprintf("%s/%d", topicName, p) }
