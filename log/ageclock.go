package log

import (
	"time"
)

const (
	defaultClockGrace = time.Hour
	clockSlack        = time.Minute
)

// ageClock is the time by which retention judges age.
//
// A wall clock that jumps ahead by ten days would make everything look ten days older,
// and what retention deletes is gone; waiting costs only disk. So a jump ahead,
// against the monotonic clock, is believed only after it has lasted for a
// grace period: a wrong clock is usually set right within it. A jump back is
// believed at once. After a start the newest entry is what the wall clock is compared with: a
// broker that was down for days waits for the grace period too. Only in an empty log is the
// wall clock believed at the first look. mono counts from any fixed moment.
type ageClock struct {
	seen    bool
	trusted time.Time
	read    time.Duration // monotonic reading at that time
	ahead   time.Duration // how long the wall clock has been ahead, monotonic
}

// learn takes a time that has certainly been.
func (a *ageClock) learn(t time.Time, mono time.Duration) {
	*a = ageClock{seen: true, trusted: t, read: mono}
}

func (a *ageClock) now(wall time.Time, mono, grace time.Duration) time.Time {
	if grace == 0 {
		grace = defaultClockGrace
	}
	if !a.seen {
		a.seen, a.trusted, a.read = true, wall, mono
		return wall
	}
	passed := mono - a.read
	expected := a.trusted.Add(passed)
	a.read = mono
	if wall.After(expected.Add(clockSlack)) && a.ahead+passed < grace {
		a.ahead += passed
		a.trusted = expected
		return expected
	}
	a.ahead, a.trusted = 0, wall
	return wall
}
