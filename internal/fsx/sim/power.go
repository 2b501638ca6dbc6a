package sim

import (
	"maps"
	"math/rand/v2"
)

// Reboot cuts the power, if it is on, and returns what the disk holds. With tear, unsynced
// parts survive at random; without, none does. The old FS answers ErrCrashed from then on, to
// operations that wait too, and they never happen.
func (s *FS) Reboot(rng *rand.Rand, tear bool) *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashLocked()
	after := New()
	after.quota = s.quota
	after.root = reboot(s.root, rng, tear, map[*inode]*inode{})
	after.used = after.root.used()
	return after
}

// Kill ends the process that uses the file system and leaves the machine on: the result holds
// all that the process saw, and what was not synced may still be lost in a later
// Reboot. The old FS answers ErrCrashed; nobody may use it any more at the time of the call,
// except for operations that wait: they never happen.
func (s *FS) Kill() *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashLocked()
	after := New()
	after.root, after.quota, after.used = s.root, s.quota, s.used
	return after
}

// Clone copies the file system: what is seen, what is durable, and what lies between. So one
// moment can be rebooted in many ways.
func (s *FS) Clone() *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	after := New()
	after.root = clone(s.root, map[*inode]*inode{})
	after.quota, after.used = s.quota, s.used
	return after
}

func (s *FS) crashLocked() {
	if !s.crashed {
		s.crashed = true
		close(s.down)
	}
}

func reboot(old *inode, rng *rand.Rand, tear bool, done map[*inode]*inode) *inode {
	if n, ok := done[old]; ok {
		return n
	}
	if !old.dir {
		n := &inode{safe: survive(old, rng, tear)}
		n.data = n.safe.share()
		done[old] = n
		return n
	}
	n := newDir()
	done[old] = n
	for _, name := range sortedNames(old.seen, old.durable) {
		child := old.durable[name]
		if seen := old.seen[name]; seen != child && tear && rng.IntN(2) == 0 {
			child = seen // this unsynced change of the directory made it
		}
		if child == nil {
			continue
		}
		c := reboot(child, rng, tear, done)
		n.seen[name], n.durable[name] = c, c
	}
	return n
}

// survive is the content of a file after the cut.
func survive(f *inode, rng *rand.Rand, tear bool) content {
	out := f.safe.share()
	if !tear {
		return out
	}
	for _, w := range f.pending {
		if w.truncate {
			// Zeros to the end of the page, and the size: two changes, as XFS makes them.
			if page := min(alignPage(w.off), int64(len(out.b))); page > w.off && rng.IntN(2) == 0 {
				out.apply(write{off: w.off, data: make([]byte, page-w.off)})
			}
			if rng.IntN(2) == 0 {
				out.apply(w)
			}
			continue
		}
		sectors(w.off, w.data, func(off int64, data []byte) {
			if rng.IntN(2) == 0 {
				out.apply(write{off: off, data: data})
			}
		})
	}
	return out
}

func alignPage(n int64) int64 { return (n + pageBytes - 1) / pageBytes * pageBytes }

// sectors cuts what is written at off where sectors begin.
func sectors(off int64, data []byte, visit func(off int64, data []byte)) {
	for len(data) > 0 {
		n := min(off/SectorBytes*SectorBytes+SectorBytes-off, int64(len(data)))
		visit(off, data[:n])
		off, data = off+n, data[n:]
	}
}

func clone(old *inode, done map[*inode]*inode) *inode {
	if n, ok := done[old]; ok {
		return n
	}
	n := &inode{dir: old.dir, name: old.name, data: old.data.share(), safe: old.safe.share(), seq: old.seq, thin: old.thin}
	n.pending = append(n.pending, old.pending...)
	done[old] = n
	if old.dir {
		n.seen, n.durable = maps.Clone(old.seen), maps.Clone(old.durable)
		for _, names := range []map[string]*inode{n.seen, n.durable} {
			for name, c := range names {
				names[name] = clone(c, done)
			}
		}
	}
	return n
}
