package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/simnet"
)

// Probes of false failure hints: a follower campaigns, without a pre-vote, although its leader is well. That
// may cost a term and its time, and never a record.
func TestAFalseFailureHintLosesNothing(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut off from the leader %v", cut), func(t *testing.T) {
			trapped(t, func(t *testing.T, c *trio, l *ledger, rng *rand.Rand) {
				ctx, cancel := context.WithCancel(t.Context())
				produced := make(chan struct{})
				go func() { defer close(produced); l.produce(ctx, c, "p", 250*time.Millisecond) }()
				var gaps []time.Duration
				for range rounds(20) {
					leader := c.leader(-1)
					victim := (leader + 1 + rng.IntN(2)) % 3
					if cut { // both still reach the third: the hint is wrong all the same
						c.net.Cut(host(leader), host(victim))
					}
					<-time.After(time.Duration(rng.IntN(1000)) * time.Millisecond)
					l.lap()
					c.campaign(victim)
					<-time.After(30 * time.Second)
					gaps = append(gaps, l.lap())
					c.net.HealAll()
				}
				cancel()
				<-produced
				l.settle(c)
				slices.Sort(gaps)
				longest := gaps[len(gaps)-1]
				t.Logf("without an ack after a false hint: median %v, longest %v", gaps[len(gaps)/2], longest)
				if longest > 25*time.Second {
					t.Errorf("after a false hint nothing was acknowledged for %v", longest)
				}
			})
		})
	}
}

// Everything at once, for ten virtual minutes: a network that delays, reorders, repeats, loses and is cut, false
// hints, power cuts of one replica at a time.
func TestThreeReplicasUnderFaults(t *testing.T) {
	trapped(t, func(t *testing.T, c *trio, l *ledger, rng *rand.Rand) {
		ctx, cancel := context.WithCancel(t.Context())
		produced := make(chan struct{})
		go func() { defer close(produced); l.produce(ctx, c, "p", 50*time.Millisecond) }()
		for range rounds(60) {
			c.net.HealAll()
			c.net.SetDefault(simnet.Path{Delay: time.Millisecond})
			switch victim := rng.IntN(3); rng.IntN(5) {
			case 0:
				c.net.SetDefault(simnet.Path{Jitter: 50 * time.Millisecond, Reorder: true, Duplicate: 0.1, Loss: 0.02})
			case 1:
				c.isolate(victim)
			case 2:
				c.net.CutOneWay(host(victim), host((victim+1)%3))
			case 3:
				c.campaign(victim)
			case 4:
				c.net.Host(host(victim)).Pause()
				<-time.After(time.Duration(rng.IntN(8000)) * time.Millisecond)
				c.net.Host(host(victim)).Resume()
			}
			<-time.After(time.Duration(rng.IntN(15000)) * time.Millisecond)
		}
		cancel()
		<-produced
		l.settle(c)
		if s := c.net.Stats(); s.Lost == 0 || s.Duplicated == 0 {
			t.Errorf("the network did nothing: %+v", s)
		}
	})
}

// rounds are fewer in a short run.
func rounds(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}
