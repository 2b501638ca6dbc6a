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
// jump ahead against the monotonic clock is believed late.
//
// What other leaders and earlier processes have stored counts like the own wall clock of that moment: otherwise the
// first entry of a new leader whose clock is days ahead would make all producers older. A
// process that was down for long falls behind by clockGrace at most, and producers live
// longer by that. Only in an empty log is the wall clock believed at once.
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

// learn takes the log time of an entry that this process did not stamp.
func (c *logClock) learn(logTime int64) {
	if logTime > 0 {
		*c = logClock{seen: true, read: clock.Monotonic(), trusted: logTime}
	}
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
