package world

import (
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// wall is a node's wall clock: the machine's time, an offset that jumps, and a drift. It survives the node's crashes.
type wall struct {
	began time.Time
	from  clock.Mono

	mu     sync.Mutex
	offset time.Duration // guarded by mu
	drift  float64       // guarded by mu; seconds gained per second
}

func newWall(now time.Time) *wall { return &wall{began: now, from: clock.Monotonic()} }

// Now implements clock.Clock.
func (c *wall) Now() time.Time {
	passed := clock.Since(c.from)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.began.Add(passed + c.offset + time.Duration(c.drift*float64(passed)))
}

// jump moves the clock.
func (c *wall) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// right sets the clock to the true time, without drift.
func (c *wall) right() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset, c.drift = 0, 0
}

// run makes the clock gain d seconds per second from now on.
func (c *wall) run(d float64) {
	passed := clock.Since(c.from)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += time.Duration((c.drift - d) * float64(passed))
	c.drift = d
}
