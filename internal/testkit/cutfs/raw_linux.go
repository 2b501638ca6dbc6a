package cutfs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// raw translates between the kernel and the model. It belongs to one life of the file
// system: after a cut, everything fails.
type raw struct {
	fuse.RawFileSystem // answers ENOSYS to the rest
	fs                 *FS
	life               int
}

func (r *raw) String() string { return "cutfs" }

// enter locks the file system and finds an inode; the caller unlocks.
func (r *raw) enter(id uint64) (*inode, fuse.Status) {
	r.fs.mu.Lock()
	if r.life != r.fs.life {
		return nil, fuse.EIO
	}
	n := r.fs.inodes[id]
	if n == nil {
		return nil, fuse.Status(syscall.ESTALE)
	}
	return n, fuse.OK
}

// change is enter for what changes the file system.
func (r *raw) change(id uint64) (*inode, fuse.Status) {
	n, code := r.enter(id)
	if code.Ok() && !r.fs.changing() {
		return nil, fuse.EIO
	}
	return n, code
}

func (n *inode) attr(a *fuse.Attr) {
	size, blocks := n.seen.size, len(n.seen.pages)*(pageBytes/512)
	if n.isDir() {
		size = pageBytes
	}
	*a = fuse.Attr{Ino: n.id, Size: uint64(size), Blocks: uint64(blocks), Mode: n.mode, Nlink: uint32(n.nlink), Blksize: pageBytes}
	a.SetTimes(&n.changed, &n.changed, &n.changed)
}

func (n *inode) entry(out *fuse.EntryOut) {
	n.lookups++
	out.NodeId, out.Generation = n.id, 1
	n.attr(&out.Attr)
}

func (r *raw) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, code := r.enter(h.NodeId)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	n := dir.kids[name]
	if n == nil {
		return fuse.ENOENT
	}
	n.entry(out)
	return fuse.OK
}

func (r *raw) Forget(id, lookups uint64) {
	n, code := r.enter(id)
	defer r.fs.mu.Unlock()
	if code.Ok() {
		r.fs.forget(n, lookups)
	}
}

func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, code := r.enter(in.NodeId)
	defer r.fs.mu.Unlock()
	if code.Ok() {
		n.attr(&out.Attr)
	}
	return code
}

func (r *raw) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, code := r.change(in.NodeId)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	if mode, ok := in.GetMode(); ok {
		n.mode = n.mode&syscall.S_IFMT | mode&^syscall.S_IFMT
	}
	if size, ok := in.GetSize(); ok {
		if errno := r.fs.truncate(n, int64(size)); errno != 0 {
			return fuse.Status(errno)
		}
	}
	if at, ok := in.GetMTime(); ok {
		n.changed = at
	}
	n.attr(&out.Attr)
	return fuse.OK
}

func (r *raw) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.make(in.NodeId, name, syscall.S_IFDIR|in.Mode&0o7777, out)
}

func (r *raw) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return r.make(in.NodeId, name, syscall.S_IFREG|in.Mode&0o7777, &out.EntryOut)
}

func (r *raw) make(dirID uint64, name string, mode uint32, out *fuse.EntryOut) fuse.Status {
	dir, code := r.change(dirID)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	n, errno := r.fs.create(dir, name, mode)
	if errno != 0 {
		return fuse.Status(errno)
	}
	n.entry(out)
	return fuse.OK
}

func (r *raw) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return r.remove(h.NodeId, name, false)
}

func (r *raw) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return r.remove(h.NodeId, name, true)
}

func (r *raw) remove(dirID uint64, name string, wantDir bool) fuse.Status {
	dir, code := r.change(dirID)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	return fuse.Status(r.fs.remove(dir, name, wantDir))
}

func (r *raw) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	const noReplace = 1
	dir, code := r.change(in.NodeId)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	into := r.fs.inodes[in.Newdir]
	if into == nil || in.Flags&^noReplace != 0 {
		return fuse.EINVAL
	}
	return fuse.Status(r.fs.rename(dir, from, into, to, in.Flags&noReplace != 0))
}

// Open makes every read come to us: the kernel would keep what was there before a fault.
func (r *raw) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, code := r.enter(in.NodeId)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	if in.Flags&syscall.O_TRUNC != 0 {
		if !r.fs.changing() {
			return fuse.EIO
		}
		return fuse.Status(r.fs.truncate(n, 0))
	}
	return fuse.OK
}

func (r *raw) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	_, code := r.enter(in.NodeId)
	r.fs.mu.Unlock()
	return code
}

func (r *raw) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	_, code := r.enter(in.NodeId)
	r.fs.mu.Unlock()
	return code
}

func (r *raw) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir, code := r.enter(in.NodeId)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	names := sortedNames(dir.kids)
	for i := in.Offset; i < uint64(len(names)); i++ {
		kid := dir.kids[names[i]]
		if !out.AddDirEntry(fuse.DirEntry{Name: names[i], Mode: kid.mode, Ino: kid.id, Off: i + 1}) {
			break
		}
	}
	return fuse.OK
}

func (r *raw) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	_, code := r.enter(h.NodeId)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	// Without a quota, a disk that is large enough for everybody.
	total := min(r.fs.quota, 1<<28)
	free := uint64(max(0, total-r.fs.used))
	*out = fuse.StatfsOut{Blocks: uint64(total), Bfree: free, Bavail: free, Files: 1 << 20, Ffree: 1 << 20, Bsize: pageBytes, Frsize: pageBytes, NameLen: 255}
	return fuse.OK
}
