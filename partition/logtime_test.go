package partition

import (
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// A producer whose answer was lost sends its batch again, and finds a leader that has just started, or was just
// elected, on a machine whose clock is days ahead.
func TestAClockThatIsDaysAheadDoesNotAgeProducersAfterARestart(t *testing.T) {
	wall := clock.NewManual(time.UnixMilli(1_767_225_600_000))
	r := simRig(t, withClock(wall))
	first := r.mustAppend(numbered(7, 0, 0, "once"))
	wall.Advance(9 * 24 * time.Hour)
	r.restart()
	r.mustAppend(batch("another")) // ages the producers
	again := r.mustAppend(numbered(7, 0, 0, "once"))
	if !again.Duplicate || again.BaseOffset != first.BaseOffset {
		t.Errorf("appended again at %d (duplicate: %v); it stands at %d", again.BaseOffset, again.Duplicate, first.BaseOffset)
	}
}

func TestLogTimeOfAnotherLeaderCountsLikeTheOwnWallClock(t *testing.T) {
	const day = int64(24 * time.Hour / time.Millisecond)
	var c logClock
	c.learn(1000)
	if got := c.tick(1000+9*day, time.Second); got != 2000 {
		t.Errorf("a clock nine days ahead of the log is believed: %d", got)
	}
	if got := c.tick(1000+9*day, clockGrace); got != 1000+9*day {
		t.Errorf("a clock that stays ahead is never believed: %d", got)
	}
}
