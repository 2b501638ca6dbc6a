package world

import (
	"math/rand/v2"
	"path"
	"syscall"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// What a disk may do to data that was acknowledged is bounded, or the promise could not be kept: all damage
// hits one node of a run, so that it touches at most one replica of a partition. That node does not lose
// power afterwards: a drive that drops the end of a log and the watermark that tells of it has forgotten
// without a trace, and no replica of its own could notice.

// victim is the node whose data may be destroyed.
func (w *World) victim() *node { return w.nodes[w.options.Seed%uint64(len(w.nodes))] }

// spoilers change what is read or written, one time.
var spoilers = []struct {
	what string
	kind sim.Kind
	do   func(sim.Op, *rand.Rand) sim.Fault
}{
	{"flips a bit of a read", sim.OpRead, sim.FlipBit},
	{"fails a read", sim.OpRead, sim.Fail(syscall.EIO)},
	{"flips a bit of a write", sim.OpWrite, sim.FlipBit},
	{"loses sectors of a write", sim.OpWrite, sim.LoseSectors},
	{"misdirects sectors of a write", sim.OpWrite, sim.MisdirectSectors("")},
}

// damage destroys something on the node's disk.
func (n *node) damage(rng *rand.Rand) {
	n.mu.Lock()
	n.damaged = true
	disk := n.disk
	n.mu.Unlock()
	n.world.history.Saw("damages", 1)
	if rng.IntN(2) == 0 {
		hit := disk.Rot(rng, "*.log", 1+rng.IntN(3))
		n.world.trace.say(n.name, "has bits flipped at rest in %v", hit)
		return
	}
	s := spoilers[rng.IntN(len(spoilers))]
	n.drive.set(func(d *drive) {
		d.spoil = func(op sim.Op) sim.Fault {
			if op.Kind != s.kind || path.Ext(op.Name) != ".log" {
				return sim.Fault{}
			}
			d.spoil = nil
			n.world.trace.say(n.name, "drive %s: %s at %d", s.what, path.Base(op.Name), op.Off)
			return s.do(op, d.rng)
		}
	})
}

// space leaves so many bytes on the node's disk; below zero: plenty.
func (n *node) space(left int64) {
	n.mu.Lock()
	disk := n.disk
	n.mu.Unlock()
	if left < 0 {
		disk.SetQuota(1 << 40)
		return
	}
	if free, total, err := disk.Space(dataDir); err == nil {
		disk.SetQuota(int64(total-free) + left)
	}
}
