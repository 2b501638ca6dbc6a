package powercut

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/testkit/cutfs"
)

// faults are what a disk may do to a log, and a log must end by.
var faults = []cutfs.Fault{
	{Op: cutfs.OpSync, Err: syscall.EIO},
	{Op: cutfs.OpWrite, Err: syscall.EIO},
	{Op: cutfs.OpWrite, Err: syscall.EIO, Short: 700},
	{Op: cutfs.OpSyncDir, Err: syscall.EIO},
	{Op: cutfs.OpWrite, Err: syscall.ENOSPC, Short: 100},
}

// sick lets one child meet a fault, by which it ends. The next goes on beside what the kernel still
// has in memory, and then the power goes. On a loop device a fault may hit what the child does not
// wait for; then the power ends it.
func (s *suite) sick(kind string, fault cutfs.Fault) {
	s.t.Helper()
	d, j := newDisk(s.t, kind, s.rng.Uint64()), newJudge()
	defer s.close(d, j)
	block := sizes[kind] > 0
	if !block && fault.Op != cutfs.OpSyncDir {
		fault.Path = map[string]string{"log": ".log", "statelog": "/state/"}[s.kind]
	}
	s.life(d, j, 200, true)
	for range 2 {
		dir := d.mount()
		fault.Skip = s.rng.IntN(60)
		var armed *cutfs.Armed
		var cut <-chan cutfs.Lost
		failure := s.run(j, dir, func(kill func()) {
			armed = d.fs.Inject(fault)
			if block {
				cut = d.fs.CutAfter(1000, false, kill)
			}
		})
		d.fs.Heal()
		select {
		case <-cut:
			d.unmount()
			continue
		default:
		}
		if armed.Hits() == 0 || failure == "" {
			j.problem("%+v hit %d times; the child ended with %q", fault, armed.Hits(), failure)
		}
		if failure, ok := s.cut(d, j, dir, s.changes(kind), false); !ok && block {
			j.verdict.noted["fs_gave_up"]++ // until it is mounted again
		} else if !ok {
			j.problem("after %+v: %s", fault, failure)
		}
		d.unmount()
	}
	s.life(d, j, 100, false)
}

// A log that meets a disk error ends. What the kernel forgot to write and shows all the
// same (fsyncgate) is not taken for durable by the next process either.
func TestDiskErrors(t *testing.T) {
	notShort(t)
	for _, child := range []string{"log", "statelog"} {
		for _, kinds := range [][]string{onFUSE, onBlock} {
			s := newSuite(t, child)
			s.rounds(shareFaults, func() {
				for _, kind := range kinds {
					some := s.rng.Perm(len(faults))
					for n, k := range some {
						f := faults[k]
						if n > 0 && seconds() == 0 {
							break
						}
						if sizes[kind] > 0 && f.Op == cutfs.OpSyncDir {
							f = faults[0] // a loop device has no directories
						}
						s.pool = s.rng.IntN(2) == 0
						s.sick(kind, f)
					}
				}
			})
			s.report("diskerrors-" + child + "-" + kinds[0])
		}
	}
}

// What this machine's file systems do when the disk fails a write: the first fsync says so,
// the second is content, and the data is gone. This is why a log never syncs again.
func TestFsyncgate(t *testing.T) {
	for _, kind := range onBlock {
		t.Run(kind, func(t *testing.T) {
			d := newDisk(t, kind, 1)
			dir := d.mount()
			f, err := os.Create(filepath.Join(dir, "x"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			write := func(c byte) {
				b := make([]byte, 8192)
				for i := range b {
					b[i] = c
				}
				if _, err := f.WriteAt(b, 0); err != nil {
					t.Fatal(err)
				}
			}
			write('A')
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			write('B')
			d.fs.Inject(cutfs.Fault{Op: cutfs.OpWrite, Err: syscall.EIO})
			first, second := f.Sync(), f.Sync()
			if !errors.Is(first, syscall.EIO) {
				t.Errorf("the first fsync said %v", first)
			}
			t.Logf("first fsync: %v; second: %v", first, second)
		})
	}
}
