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
		l := &ledger{acked: map[string]record.Offset{}, failed: map[string]error{}, opts: opts}
		f(t, c, l, rng)
	})
}

// ledger is what producers were told.
type ledger struct {
	opts []option // of the replicas

	swap sync.Mutex // guards the trio's replicas against producers

	mu      sync.Mutex
	acked   map[string]record.Offset // guarded by mu
	failed  map[string]error         // guarded by mu; not done, for certain
	unknown int                      // guarded by mu
	reads   int                      // guarded by mu; linearizable ones
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
		if r := l.leading(c); r != nil {
			value := fmt.Sprint(name, "-", i)
			l.try(context.Background(), r, value, Append{Batch: batch(value)})
		}
		<-time.After(pause)
	}
}

// produceOnce appends values as an idempotent producer does: each is sent until it is acknowledged.
func (l *ledger) produceOnce(ctx context.Context, c *trio, pid int64, pause time.Duration) {
	for i := 0; ctx.Err() == nil; i++ {
		value := fmt.Sprintf("%d/%d", pid, i)
		for !l.acknowledged(value) && ctx.Err() == nil {
			if r := l.leading(c); r != nil {
				l.tryOnce(r, value, Append{Batch: numbered(pid, 0, int32(i), value)})
			}
			<-time.After(pause)
		}
	}
}

// read asks replica i for linearizable reads, and holds them against what was acknowledged before.
func (l *ledger) read(ctx context.Context, c *trio, i int, pause time.Duration) {
	for ; ctx.Err() == nil; <-time.After(pause) {
		r := l.leading(c, i)
		if r == nil {
			continue
		}
		known := l.highest()
		limit, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := r.Linearize(limit)
		cancel()
		if high := r.View().HighWatermark; err == nil && high <= known {
			c.t.Errorf("a linearizable read ends at offset %d, and %d was acknowledged before it began", high, known)
		}
		l.mu.Lock()
		if err == nil {
			l.reads++
		}
		l.mu.Unlock()
	}
}

// leading is one of some replicas that says that it leads, or nil. Without a choice any will do.
func (l *ledger) leading(c *trio, among ...int) *Replica {
	l.swap.Lock()
	defer l.swap.Unlock()
	for i, r := range c.at {
		if (len(among) == 0 || slices.Contains(among, i)) && r.Replica != nil && r.View().Leader {
			return r.Replica
		}
	}
	return nil
}

func (l *ledger) acknowledged(value string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.acked[value]
	return ok
}

// try appends and keeps the answer.
func (l *ledger) try(ctx context.Context, r *Replica, value string, a Append) {
	got, err := appendTo(ctx, r, a)
	l.note(value, got, err)
}

// tryOnce keeps only an acknowledgement, because the batch is sent again otherwise: an earlier one may be there.
func (l *ledger) tryOnce(r *Replica, value string, a Append) {
	if got, err := appendTo(context.Background(), r, a); err == nil {
		l.note(value, got, nil)
	}
}

func appendTo(ctx context.Context, r *Replica, a Append) (Appended, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	p, err := r.Append(ctx, a)
	if err != nil {
		return Appended{}, err
	}
	return p.Result(ctx)
}

// converge heals the network, waits until the replicas are equal, and returns what they have.
func (l *ledger) converge(c *trio) (all []string) {
	c.t.Helper()
	c.net.HealAll()
	c.net.SetDefault(simnet.Path{Delay: time.Millisecond})
	var end record.Offset
	c.until("an append at the end", func() bool {
		a, err := c.at[c.leader(-1)].append(Append{Batch: numbered(9, 0, 0, "the end")})
		end = a.EndOffset
		return err == nil
	})
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
	return all
}

// judge holds what is there against what producers were told.
func (l *ledger) judge(all []string) (wrong []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := map[string]int{}
	for _, v := range all {
		count[v]++
	}
	for v, n := range count {
		if n > 1 {
			wrong = append(wrong, fmt.Sprintf("%s is there %d times", v, n))
		}
		if err := l.failed[v]; err != nil {
			wrong = append(wrong, fmt.Sprintf("%s is there, and its producer was told that nothing was appended: %v", v, err))
		}
	}
	for v, at := range l.acked {
		if int(at) >= len(all) || all[at] != v {
			wrong = append(wrong, fmt.Sprintf("%s was acknowledged at offset %d and is not there", v, at))
		}
	}
	return wrong
}

// settle heals the network, waits until the replicas are equal, and judges them.
func (l *ledger) settle(c *trio) {
	c.t.Helper()
	for _, wrong := range l.judge(l.converge(c)) {
		c.t.Error(wrong)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c.t.Logf("%d acknowledged, %d not done, %d unknown; %d linearizable reads", len(l.acked), len(l.failed), l.unknown, l.reads)
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

// kill ends the processes of replicas, and their machines' power with them, all at once.
func (l *ledger) kill(c *trio, rng *rand.Rand, which ...int) {
	var old []*rig
	for _, i := range which {
		c.net.Host(host(i)).Crash()
		c.disks[i] = c.disks[i].Reboot(rng, true)
		old = append(old, l.replace(c, i, &rig{}))
	}
	for _, r := range old {
		_ = r.tryStop()
	}
}

// revive starts them again from what the disks hold.
func (l *ledger) revive(c *trio, which ...int) {
	c.t.Helper()
	for _, i := range which {
		r := newRig(c.t, c.disks[i], "/data", append(slices.Clone(l.opts), func(r *rig) { c.member(r, i) })...)
		r.cfg.Voters = nil
		if err := r.tryStart(); err != nil {
			c.t.Fatalf("replica %d does not start from what the disk kept: %v", i, err)
		}
		l.replace(c, i, r)
	}
}

// replace does not wait while it holds the lock: time would stand still for those who want it.
func (l *ledger) replace(c *trio, i int, r *rig) (old *rig) {
	l.swap.Lock()
	defer l.swap.Unlock()
	old, c.at[i] = c.at[i], r
	return old
}
