package powercut

import "testing"

// The shares of the suites of TIDEMARK_POWERCUT_SECONDS.
const (
	shareLogFUSE   = 0.25
	shareStateFUSE = 0.10
	shareBlock     = 0.05 // per kind of log and file system
	shareFaults    = 0.02
	shareBroker    = 0.04 // per file system
)

var onFUSE = []string{"fuse", "fuse-strict"}

var onBlock = []string{"ext4", "xfs", "btrfs"}

func TestLogOnFUSE(t *testing.T) {
	s := newSuite(t, "log")
	s.rounds(shareLogFUSE, func() {
		for _, torn := range []bool{true, false} {
			for _, kind := range onFUSE {
				for _, s.pool = range []bool{false, true} {
					s.disk(kind, torn, livesPerDisk())
				}
			}
		}
	})
	s.report("powercut-log-fuse", "roll", "truncate", "retain", "recycle")
}

func TestStatelogOnFUSE(t *testing.T) {
	s := newSuite(t, "statelog")
	s.rounds(shareStateFUSE, func() {
		for _, torn := range []bool{true, false} {
			for _, kind := range onFUSE {
				s.disk(kind, torn, livesPerDisk())
			}
		}
	})
	s.report("powercut-statelog-fuse", "truncate", "retain")
}

func TestLogOnBlockDevices(t *testing.T) {
	notShort(t)
	for _, kind := range onBlock {
		t.Run(kind, func(t *testing.T) {
			s := newSuite(t, "log")
			s.rounds(shareBlock, func() {
				for _, torn := range s.either() {
					for _, s.pool = range s.either() {
						s.disk(kind, torn, livesPerDisk()/4+1)
					}
				}
			})
			s.report("powercut-log-"+kind, "roll")
		})
	}
}

func TestStatelogOnBlockDevices(t *testing.T) {
	notShort(t)
	for _, kind := range onBlock {
		t.Run(kind, func(t *testing.T) {
			s := newSuite(t, "statelog")
			s.rounds(shareBlock, func() {
				for _, torn := range s.either() {
					s.disk(kind, torn, livesPerDisk()/4+1)
				}
			})
			s.report("powercut-statelog-" + kind)
		})
	}
}

// either is both, or one of them where there is no time.
func (s *suite) either() []bool {
	if seconds() == 0 {
		return []bool{s.rng.IntN(2) == 0}
	}
	return []bool{true, false}
}

// A writer that acknowledges without a sync is caught.
func TestLossIsSeen(t *testing.T) {
	for _, kind := range []string{"fuse", "ext4"} {
		s := newSuite(t, "log")
		s.nosync = true
		for n := 0; n < 10 && s.total.lost == 0; n++ {
			s.disk(kind, false, 4)
		}
		if s.total.lost == 0 {
			t.Errorf("%s: nothing was lost without a sync: %+v", kind, s.total)
		}
	}
}

func notShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short keeps the plain cuts on FUSE; without it, and in 'make powercut', this runs")
	}
}
