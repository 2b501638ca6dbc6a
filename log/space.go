package log

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

const (
	minReserve = 64 << 20
	maxReserve = 1 << 30
	spaceEvery = time.Second
)

// Space knows whether the disk of a data directory is nearly full, cheaply.
//
// A log cannot refuse a write: a failed StoreLogs ends the Raft group. So
// refusal comes before the proposal, while the reserve is still free; what was
// proposed by then goes into the reserve. ENOSPC after that poisons the log.
type Space struct {
	fs      fsx.FS
	dir     string
	reserve int64
	tell    func(low bool, free, reserve int64) // nil: nobody

	free atomic.Int64 // at the last look, less what was written since
	low  atomic.Bool

	mu     sync.Mutex
	looked clock.Mono // guarded by mu
	asked  bool       // guarded by mu
}

// NewSpace watches the file system that holds dir. reserve 0 means 2 % of it,
// at least 64 MiB and at most 1 GiB.
func NewSpace(fsys fsx.FS, dir string, reserve int64) (*Space, error) {
	free, total, err := fsys.Space(dir)
	if err != nil {
		return nil, err
	}
	if reserve <= 0 {
		reserve = int64(min(max(total/50, minReserve), maxReserve))
	}
	s := &Space{fs: fsys, dir: dir, reserve: reserve}
	s.set(free)
	return s, nil
}

// OnChange has tell called when the disk becomes nearly full, and when it has room again; at once
// where it is nearly full already. tell must not call s, and is set before s is shared.
func (s *Space) OnChange(tell func(low bool, free, reserve int64)) {
	s.tell = tell
	if s.low.Load() {
		tell(true, s.free.Load(), s.reserve)
	}
}

// Low tells whether nothing new may be proposed. It asks the file system at
// most once a second.
func (s *Space) Low() bool {
	if s == nil {
		return false
	}
	s.look(false)
	return s.low.Load()
}

// wrote takes n bytes off the free ones until the next look.
func (s *Space) wrote(n int64) {
	if s != nil && s.free.Add(-n) < s.reserve && !s.low.Load() {
		s.look(true)
	}
}

// look asks the file system. When it cannot tell, the last answer stands.
func (s *Space) look(now bool) {
	if !s.mu.TryLock() {
		return // somebody else is looking
	}
	free, changed := s.askLocked(now)
	low := s.low.Load()
	s.mu.Unlock()
	if changed && s.tell != nil {
		s.tell(low, free, s.reserve)
	}
}

func (s *Space) askLocked(now bool) (free int64, changed bool) {
	if !now && s.asked && clock.Since(s.looked) < spaceEvery {
		return 0, false
	}
	s.looked, s.asked = clock.Monotonic(), true
	left, _, err := s.fs.Space(s.dir)
	if err != nil {
		return 0, false
	}
	was := s.low.Load()
	s.set(left)
	return s.free.Load(), s.low.Load() != was
}

// set decides. Leaving the low state takes a quarter more than the reserve, so
// that it does not flap around the edge.
func (s *Space) set(free uint64) {
	f := int64(min(free, uint64(1)<<62))
	s.free.Store(f)
	if s.low.Load() {
		s.low.Store(f < s.reserve+s.reserve/4)
		return
	}
	s.low.Store(f < s.reserve)
}
