package partition

import (
	"testing"
	"time"
)

// What only a cut-off leader has may be replaced: nobody is shown it, there or anywhere.
func TestACutOffLeaderShowsNothingUncommitted(t *testing.T) {
	three(t, func(c *trio, t *testing.T) {
		n := c.leader(-1)
		c.at[n].mustAppend(batch("a"))
		c.isolate(n)
		if _, err := c.at[n].append(Append{Batch: batch("lost"), Acks: AcksLeader}); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if got, err := c.at[n].readAll(); err != nil || len(got) != 1 {
				t.Fatalf("read %q, %v", got, err)
			}
			<-time.After(20 * time.Millisecond)
		}
		c.at[c.leader(n)].mustAppend(batch("b"))
		c.net.HealAll()
		c.until("the old leader has what it missed", func() bool {
			got, err := c.at[n].readAll()
			return err == nil && len(got) == 2 && got[1] == "b"
		})
	})
}
