// Package cutfs is a file system in memory that real processes mount, and that
// loses what was not synced when a test cuts its power.
//
// It keeps two states of every file and directory: what running processes see, and
// what the disk is certain to hold. A sync moves content from one to the other.
// Cut throws away the rest, or, when asked to tear, keeps a random part of it: each
// 512-byte sector of an unsynced write and each unsynced name is there or not.
//
// About names a file system is either Strict, where a name is durable once its
// own directory was synced (all that POSIX promises), or Journaled, where names
// become durable in the order in which they were changed and the sync of a file takes
// along all names up to its own (ext4, xfs, btrfs).
//
// Faults are input: Inject makes chosen operations fail, wait, or do something else
// than what they were asked for.
//
// The model is plain Go and is tested as such. Mount, which needs Linux, root and
// /dev/fuse, puts it in front of the kernel. After a Cut the file system is mounted again:
// the old mount is dead, and every operation on it fails.
package cutfs

import (
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// SectorBytes is what a disk writes whole or not at all, unless SetSector says otherwise.
const SectorBytes = 512

// Source begins the name of every mount; the process that made it follows. Directories that
// are named so are swept too.
const Source = "tidemark-cutfs-"

// Mode says when names become durable.
type Mode int

// The modes.
const (
	Strict Mode = iota
	Journaled
)

func (m Mode) String() string {
	if m == Strict {
		return "strict"
	}
	return "journaled"
}

// ErrNoMount says that this machine cannot mount a cutfs.
var ErrNoMount = errors.New("cutfs: power cuts need Linux, root and /dev/fuse")

// FS is the file system. It is safe for concurrent use.
type FS struct {
	mode Mode

	mu     sync.Mutex
	rng    *rand.Rand        // guarded by mu, as is all below
	inodes map[uint64]*inode // by number
	next   uint64
	life   int // counts the cuts: a mount of an earlier life is dead
	root   *inode
	sector int      // bytes that are written whole or not at all
	ops    []nameOp // changes of names that are not durable; Journaled only
	// committed counts the changes of names that are.
	committed int
	faults    []*Armed
	quota     int64 // pages
	used      int64 // pages
	stats     Stats
	timer     *timer
}

// timer cuts the power in so many changes.
type timer struct {
	left int
	torn bool
	then func()
	cut  chan Lost
}

// Stats counts operations since New.
type Stats struct {
	Writes, WrittenBytes, Syncs, DirSyncs int64
}

// Lost says what a cut took away and what it left of what was not synced.
type Lost struct {
	// Sectors and names that were not durable.
	SectorsKept, SectorsLost int
	NamesKept, NamesLost     int
}

// New returns an empty file system. All that is random follows the seed.
func New(mode Mode, seed uint64) *FS {
	f := &FS{mode: mode, rng: rand.New(rand.NewPCG(seed, 0xc07)), inodes: map[uint64]*inode{}, quota: 1 << 40, sector: SectorBytes}
	f.root = f.newInode(syscall.S_IFDIR | 0o700)
	return f
}

// SetQuota bounds the bytes of all files, in whole pages of 4 KiB. A write beyond is
// short, and fails with ENOSPC when nothing of it fits.
func (f *FS) SetQuota(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quota = bytes / pageBytes
}

// SetSector changes what is written whole or not at all: a disk with sectors of 4 KiB, say.
func (f *FS) SetSector(bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sector = bytes
}

// Used is how many bytes the files take.
func (f *FS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used * pageBytes
}

// Stats returns the counts so far.
func (f *FS) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Cut cuts the power. Mounts made before are dead; the next Mount finds what survived.
// With torn set, a random part of what was not durable survives too.
func (f *FS) Cut(torn bool) Lost {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cutLocked(torn)
}

// CutAfter cuts the power in place of the n-th change or sync from now, of a file or of names,
// and then sends what was lost. Before the operation is answered, with an error, then is called
// (it may be nil, and must not use f): that is where a process is killed so that it notices
// nothing. A Cut before that disarms it.
func (f *FS) CutAfter(n int, torn bool, then func()) <-chan Lost {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timer = &timer{left: n, torn: torn, then: then, cut: make(chan Lost, 1)}
	return f.timer.cut
}

// changing counts a change that is about to happen. It returns false when the power goes instead.
func (f *FS) changing() bool {
	t := f.timer
	if t == nil {
		return true
	}
	if t.left--; t.left > 0 {
		return true
	}
	t.cut <- f.cutLocked(t.torn)
	if t.then != nil {
		t.then()
	}
	return false
}

func (f *FS) cutLocked(torn bool) Lost {
	f.life++
	f.timer = nil
	f.healLocked()
	var lost Lost
	f.cutNames(torn, &lost)
	live := map[uint64]*inode{f.root.id: f.root}
	f.used = 0
	f.reboot(f.root, live, torn, &lost)
	f.inodes = live
	return lost
}

// SyncAll makes everything durable.
func (f *FS) SyncAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit(f.committed + len(f.ops))
	for _, n := range f.inodes {
		if n.isDir() {
			n.sure = maps.Clone(n.kids)
		} else {
			n.sync()
		}
	}
}

// reboot makes what survived below a directory the state that is seen.
func (f *FS) reboot(dir *inode, live map[uint64]*inode, torn bool, lost *Lost) {
	dir.nlink, dir.lookups = 1, 0
	dir.kids = map[string]*inode{}
	for _, name := range sortedNames(dir.sure) {
		n := dir.sure[name]
		if live[n.id] != nil {
			if n.isDir() { // repaired: a directory has one name
				delete(dir.sure, name)
				continue
			}
			n.nlink++ // a rename whose other half was lost
			dir.kids[name] = n
			continue
		}
		live[n.id], dir.kids[name] = n, n
		n.parent, n.name = dir, name
		if n.isDir() {
			f.reboot(n, live, torn, lost)
			continue
		}
		n.nlink, n.lookups = 1, 0
		n.cut(f.rng, f.sector, torn, lost)
		f.used += int64(len(n.seen.pages))
	}
}

// chance is a probability for one file's sectors in one cut: disks that had written
// nothing, half, or nearly all when the power went.
func chance(rng *rand.Rand) float64 { return [...]float64{0.05, 0.5, 0.5, 0.95}[rng.IntN(4)] }

func now() time.Time { return clock.System().Now() }
