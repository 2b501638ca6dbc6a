package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/simnet"
)

// Everything at once, for some virtual minutes: a network that delays, reorders, repeats, loses and is cut, false
// hints, transfers, disks that are slow or hang, replicas that pause, and power cuts of one replica or of all.
func TestThreeReplicasUnderFaults(t *testing.T) {
	trapped(t, func(t *testing.T, c *trio, l *ledger, rng *rand.Rand) {
		ctx, cancel := context.WithCancel(t.Context())
		var producers sync.WaitGroup
		producers.Go(func() { l.produce(ctx, c, "p", 150*time.Millisecond) })
		producers.Go(func() { l.produceOnce(ctx, c, 1, 150*time.Millisecond) })
		producers.Go(func() { l.produceOnce(ctx, c, 2, 170*time.Millisecond) })
		for i := range c.at {
			producers.Go(func() { l.read(ctx, c, i, 100*time.Millisecond) })
		}
		for range rounds(40) {
			end := l.fault(c, rng)
			<-time.After(time.Duration(rng.IntN(15000)) * time.Millisecond)
			end()
		}
		cancel()
		producers.Wait()
		l.settle(c)
		if s := c.net.Stats(); s.Lost == 0 {
			t.Errorf("the network did nothing: %+v", s)
		}
	})
}

// The tests' judge sees what it is there for: without a sync before the acknowledgement a power cut of all
// replicas loses records, as is said of flush=os. (A replica that kept more than the majority then stops, for good: it knows
// that what the new leader replaces was committed.)
func TestAPowerCutOfAllLosesWhatWasNotSynced(t *testing.T) {
	for _, flush := range []string{flushCommit, flushOS} {
		t.Run(flush, func(t *testing.T) {
			trapped(t, func(t *testing.T, c *trio, l *ledger, rng *rand.Rand) {
				leader := c.at[c.leader(-1)].Replica
				for i := range 100 {
					v := fmt.Sprintf("%d-%01000d", i, i)
					l.try(t.Context(), leader, v, Append{Batch: batch(v)})
				}
				l.kill(c, rng, 0, 1, 2)
				l.revive(c, 0, 1, 2)
				var all []string
				c.until("the leader serves", func() (ok bool) {
					got, err := c.at[c.leader(-1)].readAll()
					all = got
					return err == nil
				})
				if wrong := l.judge(all); len(wrong) > 0 != (flush == flushOS) {
					t.Errorf("of 100 records, the judge misses %d", len(wrong))
				}
			}, withTopic(func(c *TopicConfig) { c.Flush = flush }))
		})
	}
}

// fault begins a fault, and returns what ends it.
func (l *ledger) fault(c *trio, rng *rand.Rand) (end func()) {
	victim := rng.IntN(3)
	switch rng.IntN(10) {
	case 0, 1:
		c.net.SetDefault(simnet.Path{Jitter: 50 * time.Millisecond, Reorder: true, Duplicate: 0.1, Loss: 0.02})
		return func() { c.net.SetDefault(simnet.Path{Delay: time.Millisecond}) }
	case 2:
		c.isolate(victim)
		if rng.IntN(2) == 0 { // as hints do: the next leader is there before the old one's lease ends
			c.campaign((victim + 1) % 3)
		}
		return c.net.HealAll
	case 3:
		c.net.CutOneWay(host(victim), host((victim+1)%3))
		return c.net.HealAll
	case 4:
		c.campaign(victim)
		return func() {}
	case 5:
		c.net.Host(host(victim)).Pause()
		return c.net.Host(host(victim)).Resume
	case 6:
		if rng.IntN(2) == 0 {
			return c.hangs(victim)
		}
		c.disks[victim].SetHook(sim.Plan(rand.New(rand.NewPCG(rng.Uint64(), 0)), sim.Rule{P: 0.3, Do: sim.Slow(0, time.Second)}))
		return func() { c.disks[victim].SetHook(nil) }
	case 7:
		if r := l.leading(c); r != nil {
			_ = r.Transfer(c.t.Context(), c.at[victim].cfg.ID)
		}
		return func() {}
	case 8:
		l.kill(c, rng, 0, 1, 2)
		l.revive(c, 0, 1, 2)
		return func() {}
	default:
		l.kill(c, rng, victim)
		return func() { l.revive(c, victim) }
	}
}
