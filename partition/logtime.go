package partition

import (
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

const (
	// clockSlack is how far the wall clock may run ahead of the monotonic one between two entries.
	clockSlack = time.Minute
	// clockGrace is how long a jump ahead must last before it is believed: far longer than any
	// producer sends a batch again.
	clockGrace = time.Hour
)

// logClock is the leader's clock for log time, by which producers expire.
//
// A machine that was suspended for a day, or whose clock was set, wakes up with all producers a day
// older. The batches that they send again, because the answer was lost, would count as new. So a
// jump ahead against the monotonic clock is believed late. At the first look the
// wall clock is believed: there is nothing to compare with.
type logClock struct {
	seen    bool
	read    clock.Mono
	trusted int64         // ms
	ahead   time.Duration // how long the wall clock has been ahead, monotonic
}

func (c *logClock) now(wall int64) int64 {
	read := clock.Monotonic()
	passed := read.Sub(c.read)
	c.read = read
	return c.tick(wall, passed)
}

func (c *logClock) tick(wall int64, passed time.Duration) int64 {
	if !c.seen {
		c.seen, c.trusted = true, wall
		return wall
	}
	expected := c.trusted + passed.Milliseconds()
	if wall > expected+clockSlack.Milliseconds() && c.ahead+passed < clockGrace {
		c.ahead += passed
		c.trusted = expected
		return expected
	}
	c.ahead, c.trusted = 0, wall
	return wall
}
