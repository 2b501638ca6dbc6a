package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
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

// Hints after a real failure. One survivor that campaigns leads at once; two that do so at the same time split the vote,
// and it costs an election timeout. Hence the second one by rank waits a little.
func TestSurvivorsThatCampaignFindALeader(t *testing.T) {
	for hinted, most := range map[int]time.Duration{1: time.Second, 2: 45 * time.Second} {
		t.Run(fmt.Sprint(hinted), func(t *testing.T) {
			trapped(t, func(t *testing.T, c *trio, l *ledger, rng *rand.Rand) {
				var windows []time.Duration
				for i := range rounds(20) {
					old := c.leader(-1)
					l.try(t.Context(), c.at[old].Replica, fmt.Sprint(i), Append{Batch: batch(fmt.Sprint(i))})
					<-time.After(time.Second)
					l.kill(c, rng, old)
					died := clock.Monotonic()
					for n := range hinted {
						c.campaign((old + 1 + n) % 3)
					}
					c.until("somebody leads", func() bool { return l.leading(c) != nil })
					windows = append(windows, clock.Since(died))
					l.revive(c, old)
				}
				l.settle(c)
				slices.Sort(windows)
				longest := windows[len(windows)-1]
				t.Logf("%d hinted: median %v without a leader, longest %v", hinted, windows[len(windows)/2], longest)
				if longest > most {
					t.Errorf("without a leader for %v", longest)
				}
			})
		})
	}
}

// rounds are fewer in a short run.
func rounds(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}
