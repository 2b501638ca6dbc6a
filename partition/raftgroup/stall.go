package raftgroup

import (
	"sync"
	"sync/atomic"
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
	born  clock.Mono // what oldest counts from

	oldest atomic.Int64 // written with mu held: when the oldest call under way began; 0: none is

	mu    sync.Mutex
	next  int           // guarded by mu
	calls map[int]int64 // guarded by mu; under way, and when they began
}

func newStall(name string, dog *log.Watchdog, owner func() time.Duration) *stall {
	return &stall{owner: owner, gauge: dog.Gauge(name), born: clock.Monotonic(), calls: map[int]int64{}}
}

// begin and end bracket a disk call.
func (s *stall) begin() (call int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := max(1, int64(clock.Since(s.born)))
	if len(s.calls) == 0 {
		s.gauge.Begin()
		s.oldest.Store(now)
	}
	s.next++
	s.calls[s.next] = now
	return s.next
}

func (s *stall) end(call int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, call)
	oldest := int64(0)
	for _, began := range s.calls {
		if oldest == 0 || began < oldest {
			oldest = began
		}
	}
	s.oldest.Store(oldest)
	if oldest == 0 {
		s.gauge.End()
	}
}

// longest is how long the oldest call under way has been taking; 0 when there is none. It takes no lock.
func (s *stall) longest() (d time.Duration) {
	if s.owner != nil {
		d = s.owner()
	}
	if began := s.oldest.Load(); began != 0 {
		d = max(d, clock.Since(s.born)-time.Duration(began))
	}
	return d
}

func (s *stall) close() { s.gauge.Close() }
