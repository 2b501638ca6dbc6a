package world

import (
	"math/rand/v2"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// drive is a node's disk drive: how long its operations take, and what goes wrong with them. It outlives
// the node's processes.
type drive struct {
	node *node

	mu    sync.Mutex
	rng   *rand.Rand             // guarded by mu, as is all below
	slow  time.Duration          // up to so much more for every operation
	hangs []chan struct{}        // operations wait until all of them are closed
	cut   bool                   // the power goes before the next sync, when there is something to lose
	fail  map[sim.Kind]bool      // the next operation of that kind fails with EIO
	spoil func(sim.Op) sim.Fault // nil: none; takes itself back once it has done something
}

func newDrive(n *node, rng *rand.Rand) *drive {
	return &drive{node: n, rng: rng, fail: map[sim.Kind]bool{}}
}

// usualTimes of operations: between the first and, seldom, the second.
var usualTimes = map[sim.Kind][2]time.Duration{
	sim.OpRead:  {5 * time.Microsecond, 100 * time.Microsecond},
	sim.OpWrite: {10 * time.Microsecond, 200 * time.Microsecond},
	sim.OpSync:  {100 * time.Microsecond, 3 * time.Millisecond},
}

// otherTime is that of directories and truncates.
var otherTime = [2]time.Duration{20 * time.Microsecond, 500 * time.Microsecond}

// hook decides about every operation of a life. The file system calls it with its lock held.
func (d *drive) hook(l *life) func(sim.Op) sim.Fault {
	return func(op sim.Op) sim.Fault {
		d.mu.Lock()
		defer d.mu.Unlock()
		if op.Kind.Mutates() {
			if place := l.node.world.dying.Swap(nil); place != nil {
				l.dieHere(*place, op, d.rng.IntN(2) == 0)
				return sim.Fault{Crash: true}
			}
			if d.cut && op.Kind == sim.OpSync {
				d.cut = false
				l.dieHere("a power cut", op, true)
				return sim.Fault{Crash: true}
			}
		}
		f := sim.Fault{}
		if d.spoil != nil {
			f = d.spoil(op)
		}
		if d.fail[op.Kind] {
			delete(d.fail, op.Kind)
			l.node.world.trace.say(l.node.name, "EIO: %s of %s", op.Kind, path.Base(op.Name))
			f.Err = syscall.EIO
		}
		f.Delay = d.timeLocked(op.Kind)
		if len(d.hangs) > 0 {
			f.Until = d.hangs[len(d.hangs)-1]
		}
		return f
	}
}

func (d *drive) timeLocked(k sim.Kind) time.Duration {
	usual, ok := usualTimes[k]
	if !ok {
		usual = otherTime
	}
	x := d.rng.Float64()
	t := usual[0] + time.Duration(x*x*x*float64(usual[1]-usual[0]))
	if d.slow > 0 {
		t += time.Duration(d.rng.Int64N(int64(d.slow)))
	}
	return t
}

// set changes how the drive behaves.
func (d *drive) set(change func(*drive)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

// stop makes all operations wait, until release.
func (d *drive) stop() (hang chan struct{}) {
	hang = make(chan struct{})
	d.set(func(d *drive) { d.hangs = append(d.hangs, hang) })
	return hang
}

func (d *drive) release(hang chan struct{}) {
	d.set(func(d *drive) {
		for i := range d.hangs {
			if d.hangs[i] == hang {
				d.hangs = append(d.hangs[:i:i], d.hangs[i+1:]...)
				break
			}
		}
	})
	close(hang)
}

// failNext has the next operation of some kind fail. Reads are damage.
func (d *drive) failNext(rng *rand.Rand) {
	kinds := []sim.Kind{sim.OpSync, sim.OpSync, sim.OpWrite, sim.OpSyncDir, sim.OpRename, sim.OpCreate, sim.OpTruncate}
	k := kinds[rng.IntN(len(kinds))]
	d.set(func(d *drive) { d.fail[k] = true })
}

// repair makes the drive usual again. What it has damaged stays.
func (d *drive) repair() {
	d.set(func(d *drive) { d.slow, d.cut, d.fail, d.spoil = 0, false, map[sim.Kind]bool{}, nil })
}
