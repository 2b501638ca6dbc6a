package powercut

import "testing"

// The shares of the suites of TIDEMARK_POWERCUT_SECONDS; the brokers take the rest.
const (
	shareLogFUSE   = 0.25
	shareStateFUSE = 0.10
	shareBlock     = 0.05 // per kind of log and file system
	shareFaults    = 0.02
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
	for _, kind := range onBlock {
		t.Run(kind, func(t *testing.T) {
			s := newSuite(t, "log")
			s.rounds(shareBlock, func() {
				for _, torn := range []bool{true, false} {
					for _, s.pool = range []bool{false, true} {
						s.disk(kind, torn, livesPerDisk()/4+1)
					}
				}
			})
			s.report("powercut-log-"+kind, "roll")
		})
	}
}

func TestStatelogOnBlockDevices(t *testing.T) {
	for _, kind := range onBlock {
		t.Run(kind, func(t *testing.T) {
			s := newSuite(t, "statelog")
			s.rounds(shareBlock, func() {
				for _, torn := range []bool{true, false} {
					s.disk(kind, torn, livesPerDisk()/4+1)
				}
			})
			s.report("powercut-statelog-" + kind)
		})
	}
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
