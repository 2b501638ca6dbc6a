// Package clock is where Tidemark learns the time.
//
// The wall clock stamps records, ages segments and names log lines, and it may
// jump; nothing orders events by it. Durations, deadlines and leases use
// monotonic time only. No other package may call time.Now or time.Since (a test in
// internal/arch keeps this true); timers come from package time, so that
// testing/synctest and the simulator can drive them.
package clock

import (
	"sync"
	"time"
)

// Clock tells the wall-clock time. It is safe for concurrent use.
type Clock interface {
	// Now is the wall-clock time. It may go backwards between two calls.
	Now() time.Time
}

// System is the machine's clock.
func System() Clock { return system{} }

type system struct{}

func (system) Now() time.Time { return time.Now() }

// Mono is a reading of the monotonic clock. Only differences mean something.
type Mono struct{ t time.Time }

// Monotonic reads the monotonic clock.
func Monotonic() Mono { return Mono{time.Now()} }

// Since is the time that passed since m was read. It never goes backwards.
func Since(m Mono) time.Duration { return time.Since(m.t) }

// Sub is the time between two readings.
func (m Mono) Sub(earlier Mono) time.Duration { return m.t.Sub(earlier.t) }

// Deadline turns a duration from now into a time for context.WithDeadline.
func Deadline(d time.Duration) time.Time { return time.Now().Add(d) }

// Manual is a wall clock for tests: it stands still until it is told otherwise.
type Manual struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

// NewManual returns a clock that shows t.
func NewManual(t time.Time) *Manual { return &Manual{now: t} }

// Now implements Clock.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// Set makes the clock jump to t, forwards or backwards.
func (m *Manual) Set(t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = t
}

// Advance moves the clock by d, which may be negative.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
}
