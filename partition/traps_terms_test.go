package partition

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Design section 3, probes of requests that outlive their term: Raft's queue keeps what was appended in one
// term, and a later term of the same replica may store it, behind another leader's entries. Verdicts are taken in log
// order, and what was withdrawn when its term ended takes no effect.
func TestRequestsThatOutliveTheirTermTakeNoEffect(t *testing.T) {
	trapped(t, func(t *testing.T, c *trio, l *ledger, rng *rand.Rand) {
		c.net.SetDefault(simnet.Path{})
		for round := range 8 {
			old := c.leader(-1)
			end := c.at[old].View().LogEnd
			release := c.hangs(old) // so that requests pile up
			var producers sync.WaitGroup
			for i := range 500 {
				v := fmt.Sprintf("%d-%d", round, i)
				a := Append{Batch: batch(v)}
				if i%2 == 1 { // an expectation that another leader's entry breaks
					a.Conditional, a.Expect = true, end+record.Offset(rng.IntN(50))
				}
				producers.Go(func() { l.try(t.Context(), c.at[old].Replica, v, a) })
			}
			<-time.After(10 * time.Millisecond)
			c.pingPong(old, release)
			l.try(t.Context(), c.at[c.leader(-1)].Replica, fmt.Sprint("other-", round), Append{Batch: batch(fmt.Sprint("other-", round))})
			producers.Wait()
		}
		l.settle(c)
		t.Logf("%d requests outlived their term and were voided", c.voided(t))
	})
}

// pingPong has another replica take the leadership from old, and old take it back, as fast as they can.
func (c *trio) pingPong(old int, release func()) {
	next := (old + 1) % 3
	for i := range 3000 {
		who := next
		if i >= 1000 {
			who = old
			release()
		}
		if c.at[who].group.Load().Raft().State() == raft.Follower {
			c.campaign(who)
		}
		runtime.Gosched()
	}
}

func (c *trio) voided(t *testing.T) (n int) {
	for i := c.at[0].log.FirstIndex(); i <= c.at[0].log.LastIndex(); i++ {
		e, err := c.at[0].log.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		if e.Verdict == withdrawn {
			n++
		}
	}
	return n
}
