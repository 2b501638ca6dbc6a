package sim

import (
	"math/rand/v2"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// Op is an operation about to happen.
type Op struct {
	Kind Kind
	// Name is what the file or directory is called now; an open file may have been renamed.
	Name string
	// N counts the mutating operations of the file system, from 1; it
	// stays the same for reads and opens.
	N int
	// Off and Len are the range of a read or write, Len the size of a truncate.
	Off int64
	Len int
	// Size is how long the file is before it, for reads, writes, truncates and syncs.
	Size int64
}

// Fault is what a hook does to an operation. The zero Fault lets it happen.
type Fault struct {
	// Err fails the operation. A write happens for its first Short bytes
	// all the same; a failed sync makes nothing durable and, as Linux does
	// (fsyncgate), forgets that the file was dirty: a later sync succeeds
	// and makes only later writes durable.
	Err   error
	Short int
	// Crash cuts the power before the operation. It and all later
	// operations fail with ErrCrashed.
	Crash bool
	// Delay passes first; then the operation waits until Until is closed. Others go on
	// meanwhile. When the power goes or the process is killed, one that waits
	// fails with ErrCrashed and never happens. Time is that of package time.
	Delay time.Duration
	Until <-chan struct{}
	// Garble changes what a read returns or what a write stores.
	Garble func([]byte)
	// Stray leads the sectors of a write astray, which succeeds all the same: it is asked
	// with the offset of each and says where that goes, nil for where it belongs. At
	// the place left out the old content stays, or zeros where there was none.
	Stray func(off int64) *Place
}

// Place is where a stray sector lands, durably and at once. Beyond the end of that file, or in a
// file that does not exist, it is lost; so it is at the zero Place.
type Place struct {
	Name string
	Off  int64
}

// before asks the hook about an operation, and lets it wait as long as the hook wants.
// Callers hold mu, which is free meanwhile: what they looked up before may be gone.
func (s *FS) before(op Op) Fault {
	if s.crashed {
		return Fault{Err: ErrCrashed}
	}
	if op.Kind.Mutates() {
		s.n++
	}
	op.N = s.n
	if s.hook == nil {
		return Fault{}
	}
	f := s.hook(op)
	if f.Crash {
		s.crashLocked()
	} else if f.Delay > 0 || f.Until != nil {
		s.mu.Unlock()
		s.wait(f)
		s.mu.Lock()
	}
	if s.crashed {
		return Fault{Err: ErrCrashed}
	}
	return f
}

func (s *FS) wait(f Fault) {
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.down:
		}
	}
	if f.Until != nil {
		select {
		case <-f.Until:
		case <-s.down:
		}
	}
}

// Rule makes operations go wrong, by chance or by count.
type Rule struct {
	// Path is a pattern of path.Match, for the base name unless it has a slash. Empty: every file.
	Path string
	// Kinds of operation; none: all of them.
	Kinds []Kind
	// P is the chance of each operation, 0 for certainty.
	P float64
	// Skip spares the first so many that would have been hit; no more than Max are hit, unless it is 0.
	Skip, Max int
	// Do says what becomes of the operation.
	Do func(Op, *rand.Rand) Fault
}

func (r *Rule) matches(op Op) bool {
	if len(r.Kinds) > 0 && !slices.Contains(r.Kinds, op.Kind) {
		return false
	}
	name := path.Clean(filepath.ToSlash(op.Name))
	if path.Base(r.Path) == r.Path {
		name = path.Base(name)
	}
	ok, err := path.Match(r.Path, name)
	return r.Path == "" || ok && err == nil
}

// Plan is a hook for SetHook: the first rule that hits decides. All chance comes from rng, which
// is used by nobody else while the hook is set.
func Plan(rng *rand.Rand, rules ...Rule) func(Op) Fault {
	rules = slices.Clone(rules)
	hits := make([]int, len(rules))
	return func(op Op) Fault {
		for k := range rules {
			r := &rules[k]
			if !r.matches(op) || r.P > 0 && rng.Float64() >= r.P {
				continue
			}
			hits[k]++
			if hits[k] <= r.Skip || r.Max > 0 && hits[k] > r.Skip+r.Max {
				continue
			}
			return r.Do(op, rng)
		}
		return Fault{}
	}
}

// Fail fails operations. Of a write, a part may have happened.
func Fail(err error) func(Op, *rand.Rand) Fault {
	return func(op Op, rng *rand.Rand) Fault { return Fault{Err: err, Short: rng.IntN(op.Len + 1)} }
}

// FlipBit inverts one bit of what is read (in this one read) or written (for good).
func FlipBit(_ Op, rng *rand.Rand) Fault {
	return Fault{Garble: func(p []byte) {
		if len(p) > 0 {
			p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
		}
	}}
}

// LoseSectors acknowledges a write and drops some of its sectors, or all: the old content is back.
func LoseSectors(op Op, rng *rand.Rand) Fault {
	return stray(op, rng, func(int64) *Place { return &Place{} })
}

// MisdirectSectors writes some of the sectors, or all, elsewhere: to the same offset of another file or,
// when name is "", somewhere else in the file itself.
func MisdirectSectors(name string) func(Op, *rand.Rand) Fault {
	return func(op Op, rng *rand.Rand) Fault {
		to, shift := name, int64(0)
		if name == "" {
			to = op.Name
			shift = int64(rng.IntN(int(op.Size/SectorBytes)+1))*SectorBytes - op.Off
		}
		return stray(op, rng, func(off int64) *Place { return &Place{to, off + shift} })
	}
}

// stray leads a run of the write's sectors astray, at least one of them.
func stray(op Op, rng *rand.Rand, to func(off int64) *Place) Fault {
	first := op.Off / SectorBytes
	n := int((op.Off+int64(op.Len)+SectorBytes-1)/SectorBytes - first)
	from := rng.IntN(max(n, 1))
	until := from + 1 + rng.IntN(max(n-from, 1))
	return Fault{Stray: func(off int64) *Place {
		if at := int(off/SectorBytes - first); at >= from && at < until {
			return to(off)
		}
		return nil
	}}
}

// Slow delays operations by a time between least and most, mostly near least.
func Slow(least, most time.Duration) func(Op, *rand.Rand) Fault {
	return func(_ Op, rng *rand.Rand) Fault {
		x := rng.Float64()
		return Fault{Delay: least + time.Duration(x*x*x*float64(most-least))}
	}
}

// Hang blocks operations until the channel is closed or the machine crashes.
func Hang(until <-chan struct{}) func(Op, *rand.Rand) Fault {
	return func(Op, *rand.Rand) Fault { return Fault{Until: until} }
}

// Corrupt changes a file behind everybody's back, durably: bit rot, or an old sector that comes back.
func (s *FS) Corrupt(name string, change func(data []byte) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.find(name)
	if err != nil {
		return err
	}
	n.data.resize(n.size()) // its own
	before := n.size()
	n.data = content{b: change(n.data.b)}
	n.safe = n.data.share()
	n.pending = nil
	s.used += n.size() - before
	return nil
}

// Rot flips so many bits at rest in files whose base name matches the pattern, and returns those
// it hit, sorted. Which ones, the order of their names and rng decide.
func (s *FS) Rot(rng *rand.Rand, pattern string, bits int) []string {
	s.mu.Lock()
	files := matching(s.root, "/", &Rule{Path: pattern}, nil)
	s.mu.Unlock()
	var hit []string
	for range bits {
		if len(files) == 0 {
			break
		}
		name := files[rng.IntN(len(files))]
		if err := s.Corrupt(name, func(b []byte) []byte {
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			return b
		}); err == nil {
			hit = append(hit, name)
		}
	}
	slices.Sort(hit)
	return slices.Compact(hit)
}

// matching lists the files that hold anything.
func matching(n *inode, name string, r *Rule, all []string) []string {
	for _, base := range sortedNames(n.seen) {
		child, full := n.seen[base], path.Join(name, base)
		if child.dir {
			all = matching(child, full, r, all)
		} else if child.size() > 0 && r.matches(Op{Name: full}) {
			all = append(all, full)
		}
	}
	return all
}
