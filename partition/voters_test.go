package partition

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Cuts, loss, hung disks and transfers at once, with acks=all of two copies. No acknowledged record is lost, no
// linearizable read is stale, and of each acknowledged record there were two copies.
func TestThreeVotersUnderFaults(t *testing.T) {
	timing := raftgroup.Timing{Heartbeat: time.Second, Election: time.Second, Lease: 800 * time.Millisecond, Commit: 100 * time.Millisecond}
	trapped(t, func(t *testing.T, c *trio, l *ledger, rng *rand.Rand) {
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		var mu sync.Mutex
		reads, transfers, hangs := 0, 0, 0
		for i, r := range c.at {
			clients.Go(func() { l.produce(ctx, c, string(rune('a'+i)), 20*time.Millisecond) })
			clients.Go(func() {
				for ctx.Err() == nil {
					before := l.highest()
					limit, done := context.WithTimeout(ctx, 5*time.Second)
					if r.Linearize(limit) == nil {
						mu.Lock()
						reads++
						mu.Unlock()
						if high := r.View().HighWatermark; high <= before {
							t.Errorf("offset %d was acknowledged before a read at %s, whose high watermark is %d", before, r.cfg.ID, high)
						}
					}
					done()
					<-time.After(20 * time.Millisecond)
				}
			})
		}
		n := c.leader(-1)
		if err := c.at[n].Transfer(ctx, c.at[(n+1)%3].cfg.ID); err == nil { // while nothing is in its way
			transfers++
		}
		var back []func()
		for range 80 {
			a, b := rng.IntN(3), rng.IntN(3)
			switch rng.IntN(7) {
			case 0:
				c.isolate(a)
			case 1:
				c.net.CutOneWay(host(a), host(b))
			case 2, 3:
				c.net.HealAll()
				c.net.SetDefault(simnet.Path{Delay: time.Millisecond})
			case 4:
				c.net.SetDefault(simnet.Path{Delay: time.Millisecond, Jitter: 20 * time.Millisecond, Loss: 0.1, Duplicate: 0.1, Reorder: true})
			case 5:
				if len(back) == 0 {
					back = append(back, c.hangs(a))
					hangs++
				}
			case 6:
				if r := l.leading(c); r != nil && r.Transfer(ctx, c.at[b].cfg.ID) == nil {
					transfers++
				}
			}
			<-time.After(time.Duration(rng.Int64N(int64(3 * time.Second))))
			if len(back) > 0 && rng.IntN(3) == 0 {
				back[0]()
				back = nil
			}
		}
		for _, f := range back {
			f()
		}
		c.net.HealAll()
		c.net.SetDefault(simnet.Path{Delay: time.Millisecond})
		cancel()
		clients.Wait()
		l.settle(c)
		t.Logf("%d reads, %d transfers, %d hung disks", reads, transfers, hangs)
		if reads == 0 || transfers == 0 || hangs == 0 || len(l.acked) == 0 {
			t.Error("this tests too little")
		}
	}, withTopic(func(c *TopicConfig) { c.MinInsync = 2 }), func(r *rig) { r.deps.Timing = timing })
}

// highest is the highest offset that was acknowledged so far; -1 for none.
func (l *ledger) highest() record.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	high := record.Offset(-1)
	for _, at := range l.acked {
		high = max(high, at)
	}
	return high
}
