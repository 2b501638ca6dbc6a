package cutfs

import (
	"strings"
	"syscall"
	"time"
)

// Op is a kind of operation.
type Op int

// The operations that faults can hit.
const (
	OpRead Op = iota
	OpWrite
	OpSync
	OpSyncDir
)

// Fault says which operations go wrong, and how.
type Fault struct {
	Op Op
	// Path is a part of the file's path; "" hits every file.
	Path string
	// Skip lets so many operations pass first. Times is how many are hit, 0 means one,
	// negative all.
	Skip, Times int

	// Err fails the operation. A failed write happens for its first Short bytes all the same.
	// A failed sync makes nothing durable and, as Linux does (fsyncgate), forgets that the
	// file was dirty: a later sync succeeds and makes only later writes durable.
	Err   syscall.Errno
	Short int
	// Flip changes one random bit of what is read or written.
	Flip bool
	// Shift makes a write land so many bytes away from where it was meant to.
	Shift int64
	// Delay makes the operation wait first; Hang until Heal or Cut.
	Delay time.Duration
	Hang  bool
}

// Armed is a fault at work.
type Armed struct {
	Fault
	fs   *FS
	seen int           // guarded by fs.mu
	hits int           // guarded by fs.mu
	heal chan struct{} // closed by Heal
}

// Inject arms a fault. The first that matches an operation hits it.
func (f *FS) Inject(fault Fault) *Armed {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fault.Times == 0 {
		fault.Times = 1
	}
	a := &Armed{Fault: fault, fs: f, heal: make(chan struct{})}
	f.faults = append(f.faults, a)
	return a
}

// Hits is how many operations the fault has hit.
func (a *Armed) Hits() int {
	a.fs.mu.Lock()
	defer a.fs.mu.Unlock()
	return a.hits
}

// Heal takes away all faults and lets hanging operations go on.
func (f *FS) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.healLocked()
}

func (f *FS) healLocked() {
	for _, a := range f.faults {
		close(a.heal)
	}
	f.faults = nil
}

// hit returns the fault that meets an operation, or nil.
func (f *FS) hit(op Op, n *inode) *Armed {
	for _, a := range f.faults {
		if a.Op != op || !strings.Contains(n.path(), a.Path) {
			continue
		}
		a.seen++
		if a.seen <= a.Skip || (a.Times > 0 && a.hits >= a.Times) {
			continue
		}
		a.hits++
		return a
	}
	return nil
}

// failSync is a sync that fails: dirty pages are called clean and stay where they are.
func (f *FS) failSync(n *inode) {
	f.stats.Syncs++
	n.pending, n.grown = nil, false
}

// flip changes one bit of data.
func (f *FS) flip(data []byte) {
	if len(data) > 0 {
		data[f.rng.IntN(len(data))] ^= 1 << f.rng.IntN(8)
	}
}
