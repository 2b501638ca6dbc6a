package raftgroup

import (
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/log"
)

// muteAfter is how long a disk call may take before the group is muted. Until the process ends (the
// watchdog's limit is 30 s) the disk may come back, and the group with it.
const muteAfter = 3 * time.Second

// stall measures the disk calls of a group.
//
// In hashicorp/raft the heartbeats of a leader are goroutines of their own: while its disk
// hangs, and the main loop with it, they keep it in office for ever (#503, #614). So the group's transport
// falls silent, and the others elect another leader.
type stall struct {
	owner func() time.Duration // what the owner knows of such calls; nil: nothing
	gauge *log.Gauge

	mu    sync.Mutex
	next  int                // guarded by mu
	calls map[int]clock.Mono // guarded by mu; under way, and since when
}

func newStall(name string, dog *log.Watchdog, owner func() time.Duration) *stall {
	return &stall{owner: owner, gauge: dog.Gauge(name), calls: map[int]clock.Mono{}}
}

// begin and the function that it returns bracket a disk call.
func (s *stall) begin() (call int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.calls) == 0 {
		s.gauge.Begin()
	}
	s.next++
	s.calls[s.next] = clock.Monotonic()
	return s.next
}

func (s *stall) end(call int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, call)
	if len(s.calls) == 0 {
		s.gauge.End()
	}
}

// longest is how long the oldest call under way has been taking; 0 when there is none.
func (s *stall) longest() (d time.Duration) {
	if s.owner != nil {
		d = s.owner()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, since := range s.calls {
		d = max(d, clock.Since(since))
	}
	return d
}

func (s *stall) close() { s.gauge.Close() }
