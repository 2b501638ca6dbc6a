package world

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// trace writes what happens, one line per event, in virtual time.
type trace struct {
	began clock.Mono

	mu         sync.Mutex
	out        io.Writer // guarded by mu
	violations int       // guarded by mu
}

func newTrace(out io.Writer) *trace { return &trace{began: clock.Monotonic(), out: out} }

// now is the virtual time since the world began.
func (t *trace) now() time.Duration { return clock.Since(t.began) }

// say notes an event of a node, a client or the nemesis.
func (t *trace) say(who, format string, args ...any) {
	at := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "%12.6f %-4s %s\n", at.Seconds(), who, fmt.Sprintf(format, args...))
}

// violation notes a broken promise; the run has failed.
func (t *trace) violation(who, format string, args ...any) {
	t.mu.Lock()
	t.violations++
	t.mu.Unlock()
	t.say(who, "VIOLATION "+format, args...)
}

func (t *trace) failures() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.violations
}
