package partition

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/simnet"
)

// Elected is not enough: until an entry of its own term has committed, a leader does not know what has been
// committed before, and says that it does not lead.
func TestALeaderThatHasCommittedNothingServesNothing(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		c.at[n].mustAppend(batch("a"))
		c.net.Intercept(func(m *simnet.Message) simnet.Fate {
			r, ok := m.Body.(*raft.AppendEntriesRequest)
			return simnet.Fate{Drop: ok && len(r.Entries) > 0} // heartbeats pass
		})
		c.isolate(n)
		elected := func() bool {
			for i, r := range c.at {
				if i != n && r.group.Load().Raft().State() == raft.Leader {
					return true
				}
			}
			return false
		}
		c.until("another one is elected", elected)
		for range 50 {
			for i, r := range c.at {
				if i != n && r.View().Leader {
					t.Fatalf("%d serves, and has committed nothing", i)
				}
			}
			<-time.After(10 * time.Millisecond)
		}
		c.net.Intercept(nil)
		m := c.leader(n)
		c.at[m].mustAppend(batch("b"))
		c.net.HealAll()
		c.until("all have both", func() bool {
			for _, r := range c.at {
				if got, err := r.readAll(); err != nil || len(got) != 2 || got[1] != "b" {
					return false
				}
			}
			return true
		})
	})
}
