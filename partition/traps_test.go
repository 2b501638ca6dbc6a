package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// The tests in traps_*_test.go run three replicas into known faults of hashicorp/raft, of disks and of networks.
// Those of partition/raftgroup show the same faults on the library alone.

// trapped runs f on three started replicas whose network is driven by a printed seed.
func trapped(t *testing.T, f func(t *testing.T, c *trio, l *ledger, rng *rand.Rand), opts ...option) {
	rng, seed := seeded(t)
	synctest.Test(t, func(t *testing.T) {
		c := &trio{t: t, net: simnet.New(rand.New(rand.NewPCG(seed, 1)), simnet.Config{})}
		defer c.stop()
		c.net.SetDefault(simnet.Path{Delay: time.Millisecond})
		for i := range c.at {
			c.disks[i] = sim.New()
			c.at[i] = newRig(t, c.disks[i], "/data", append(opts, func(r *rig) { c.member(r, i) })...)
			if err := c.at[i].tryStart(); err != nil {
				t.Fatal(err)
			}
		}
		l := &ledger{acked: map[string]record.Offset{}, failed: map[string]error{}}
		f(t, c, l, rng)
	})
}

// ledger is what producers were told.
type ledger struct {
	mu      sync.Mutex
	acked   map[string]record.Offset // guarded by mu
	failed  map[string]error         // guarded by mu; not done, for certain
	unknown int                      // guarded by mu
	last    clock.Mono               // guarded by mu; of the newest ack
	gap     time.Duration            // guarded by mu; the longest time without an ack
}

// note keeps the answer to an append of one value.
func (l *ledger) note(value string, a Appended, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acked[value] = a.BaseOffset
		l.gap = max(l.gap, clock.Since(l.last))
		l.last = clock.Monotonic()
	case errs.OutcomeUnknown(err):
		l.unknown++
	default:
		l.failed[value] = err
	}
}

// lap tells the longest time without an ack since the last lap.
func (l *ledger) lap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	gap := max(l.gap, clock.Since(l.last))
	l.gap, l.last = 0, clock.Monotonic()
	return gap
}

// produce appends values, one after the other, to whoever leads, until ctx ends.
func (l *ledger) produce(ctx context.Context, c *trio, name string, pause time.Duration) {
	for i := 0; ctx.Err() == nil; i++ {
		for _, r := range c.at {
			if !r.View().Leader {
				continue
			}
			value := fmt.Sprint(name, "-", i)
			i++
			a, err := r.append(Append{Batch: batch(value)})
			l.note(value, a, err)
		}
		<-time.After(pause)
	}
}

// settle heals the network, waits until the replicas are equal, and holds what they have against the ledger.
func (l *ledger) settle(c *trio) {
	c.t.Helper()
	c.net.HealAll()
	c.net.SetDefault(simnet.Path{Delay: time.Millisecond})
	var end record.Offset
	c.until("an append at the end", func() bool {
		a, err := c.at[c.leader(-1)].append(Append{Batch: numbered(9, 0, 0, "the end")})
		end = a.EndOffset
		return err == nil
	})
	var all []string
	c.until("all replicas are equal", func() bool {
		for i, r := range c.at {
			got, err := r.readAll()
			if err != nil || r.View().HighWatermark < end || i > 0 && !slices.Equal(got, all) {
				return false
			}
			all = got
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	count := map[string]int{}
	for _, v := range all {
		count[v]++
	}
	for v, n := range count {
		if n > 1 {
			c.t.Errorf("%s is there %d times", v, n)
		}
		if err := l.failed[v]; err != nil {
			c.t.Errorf("%s is there, and its producer was told that nothing was appended: %v", v, err)
		}
	}
	for v, at := range l.acked {
		if int(at) >= len(all) || all[at] != v {
			c.t.Errorf("%s was acknowledged at offset %d and is not there", v, at)
		}
	}
	c.t.Logf("%d acknowledged, %d not done, %d unknown", len(l.acked), len(l.failed), l.unknown)
}

// hangs has the disk of a replica keep its writes and syncs until the returned function is called.
func (c *trio) hangs(i int) (release func()) {
	until := make(chan struct{})
	c.disks[i].SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpWrite || op.Kind == sim.OpSync {
			return sim.Fault{Until: until}
		}
		return sim.Fault{}
	})
	return sync.OnceFunc(func() {
		c.disks[i].SetHook(nil)
		close(until)
	})
}

// campaign has a replica start an election, as a failure hint does.
func (c *trio) campaign(i int) { c.at[i].group.Load().Campaign() }

// term is the leader's, or 0.
func (c *trio) term() (term uint64) {
	for _, r := range c.at {
		if r.View().Leader {
			term = max(term, r.group.Load().Term())
		}
	}
	return term
}

// kill ends a replica's process, and the machine's power with it.
func (c *trio) kill(i int, rng *rand.Rand) {
	c.net.Host(host(i)).Crash()
	c.disks[i] = c.disks[i].Reboot(rng, true)
	_ = c.at[i].tryStop()
}

// revive starts it again from what the disk holds.
func (c *trio) revive(i int, opts ...option) {
	c.t.Helper()
	c.at[i] = newRig(c.t, c.disks[i], "/data", append(opts, func(r *rig) { c.member(r, i) })...)
	c.at[i].cfg.Voters = nil
	if err := c.at[i].tryStart(); err != nil {
		c.t.Fatal(err)
	}
}
