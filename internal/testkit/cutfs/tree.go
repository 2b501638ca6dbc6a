package cutfs

import (
	"maps"
	"slices"
	"sort"
	"syscall"
	"time"
)

// inode is a file or a directory. FS.mu guards all of it.
type inode struct {
	id      uint64
	mode    uint32 // type and permission bits
	changed time.Time
	parent  *inode // of its newest name
	name    string
	nlink   int
	lookups uint64 // references that the kernel holds

	// A directory's names: as seen, and as certain.
	kids, sure map[string]*inode

	// A file's content: as seen, as certain, and the changes between.
	seen, safe content
	pending    []change
	grown      bool // pending changes the size or takes new pages
	lastOp     int  // which change of names, counted from 1, was its last
}

// nameOp is a change of names: child gets a name in to, loses one in from, or both.
type nameOp struct {
	from, to         *inode // nil: none
	fromName, toName string
	child            *inode
}

func (n *inode) isDir() bool { return n.mode&syscall.S_IFMT == syscall.S_IFDIR }

func (n *inode) path() string {
	if n.parent == nil {
		return n.name
	}
	return n.parent.path() + "/" + n.name
}

func sortedNames(m map[string]*inode) []string { return slices.Sorted(maps.Keys(m)) }

func (f *FS) newInode(mode uint32) *inode {
	f.next++
	n := &inode{id: f.next, mode: mode, changed: now(), nlink: 1}
	if n.isDir() {
		n.kids, n.sure = map[string]*inode{}, map[string]*inode{}
	} else {
		n.seen, n.safe = newContent(), newContent()
	}
	f.inodes[n.id] = n
	return n
}

// create makes a file or a directory, as mode says.
func (f *FS) create(dir *inode, name string, mode uint32) (*inode, syscall.Errno) {
	if !dir.isDir() {
		return nil, syscall.ENOTDIR
	}
	if len(name) > 255 {
		return nil, syscall.ENAMETOOLONG
	}
	if dir.kids[name] != nil {
		return nil, syscall.EEXIST
	}
	n := f.newInode(mode)
	f.link(dir, name, n)
	f.log(nameOp{to: dir, toName: name, child: n})
	return n, 0
}

func (f *FS) link(dir *inode, name string, n *inode) {
	dir.kids[name], dir.changed = n, now()
	n.parent, n.name = dir, name
}

// remove takes a name away; directories must be empty.
func (f *FS) remove(dir *inode, name string, wantDir bool) syscall.Errno {
	n := dir.kids[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case wantDir && !n.isDir():
		return syscall.ENOTDIR
	case !wantDir && n.isDir():
		return syscall.EISDIR
	case len(n.kids) > 0:
		return syscall.ENOTEMPTY
	}
	delete(dir.kids, name)
	dir.changed = now()
	f.log(nameOp{from: dir, fromName: name, child: n})
	f.unlinked(n)
	return 0
}

// unlinked takes one name from a file, and its space with the last one. Its bytes stay
// readable for who has it open.
func (f *FS) unlinked(n *inode) {
	if n.nlink--; n.nlink > 0 {
		return
	}
	f.used -= int64(len(n.seen.pages))
	f.forget(n, 0)
}

// forget drops references of the kernel.
func (f *FS) forget(n *inode, lookups uint64) {
	n.lookups -= min(lookups, n.lookups)
	if n.nlink == 0 && n.lookups == 0 {
		delete(f.inodes, n.id)
	}
}

func (f *FS) rename(from *inode, fromName string, to *inode, toName string, noReplace bool) syscall.Errno {
	n, old := from.kids[fromName], to.kids[toName]
	switch {
	case n == nil:
		return syscall.ENOENT
	case n == old:
		return 0
	case old != nil && noReplace:
		return syscall.EEXIST
	case old != nil && old.isDir() && !n.isDir():
		return syscall.EISDIR
	case old != nil && !old.isDir() && n.isDir():
		return syscall.ENOTDIR
	case old != nil && len(old.kids) > 0:
		return syscall.ENOTEMPTY
	}
	delete(from.kids, fromName)
	from.changed = now()
	f.link(to, toName, n)
	f.log(nameOp{from: from, fromName: fromName, to: to, toName: toName, child: n})
	if old != nil {
		f.unlinked(old)
	}
	return 0
}

// log remembers a change of names until it is durable.
func (f *FS) log(op nameOp) {
	if f.mode == Strict {
		return // directories are compared name by name
	}
	f.ops = append(f.ops, op)
	op.child.lastOp = f.committed + len(f.ops)
}

// syncDir makes the names of one directory durable, or, Journaled, all names.
func (f *FS) syncDir(dir *inode) {
	f.stats.DirSyncs++
	if f.mode == Strict {
		dir.sure = maps.Clone(dir.kids)
		return
	}
	f.commit(f.committed + len(f.ops))
}

// syncFile makes a file's content durable.
func (f *FS) syncFile(n *inode) {
	f.stats.Syncs++
	upTo := n.lastOp
	if n.grown {
		upTo = f.committed + len(f.ops) // its size is in the journal, behind all names
	}
	n.sync()
	if f.mode == Journaled {
		f.commit(upTo)
	}
}

// commit makes the changes of names durable up to the upTo-th ever.
func (f *FS) commit(upTo int) {
	n := max(0, upTo-f.committed)
	for _, op := range f.ops[:n] {
		if op.from != nil && op.from.sure[op.fromName] == op.child {
			delete(op.from.sure, op.fromName)
		}
		if op.to != nil {
			op.to.sure[op.toName] = op.child
		}
	}
	f.ops, f.committed = slices.Clone(f.ops[n:]), f.committed+n
}

// cutNames decides which names survive.
func (f *FS) cutNames(torn bool, lost *Lost) {
	if f.mode == Journaled {
		keep := 0
		if torn {
			keep = f.rng.IntN(len(f.ops) + 1)
		}
		lost.NamesKept, lost.NamesLost = keep, len(f.ops)-keep
		f.commit(f.committed + keep)
		f.committed, f.ops = f.committed+len(f.ops), nil
		return
	}
	ids := make([]uint64, 0, len(f.inodes))
	for id, n := range f.inodes {
		if n.isDir() {
			ids = append(ids, id)
		}
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	for _, id := range ids {
		f.tearNames(f.inodes[id], torn, lost)
	}
}

// tearNames keeps some of one directory's changed names.
func (f *FS) tearNames(dir *inode, torn bool, lost *Lost) {
	both := maps.Clone(dir.sure)
	maps.Copy(both, dir.kids)
	for _, name := range sortedNames(both) {
		seen := dir.kids[name]
		if seen == dir.sure[name] {
			continue
		}
		if !torn || f.rng.IntN(2) == 0 {
			lost.NamesLost++
			continue
		}
		lost.NamesKept++
		if seen == nil {
			delete(dir.sure, name)
		} else {
			dir.sure[name] = seen
		}
	}
}
