package cutfs

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// begin finds the fault that meets an operation and waits as long as it says. It returns
// with the file system locked, whatever the outcome.
func (r *raw) begin(op Op, h *fuse.InHeader) (*inode, *Armed, fuse.Status) {
	find := r.change
	if op == OpRead {
		find = r.enter
	}
	n, code := find(h.NodeId)
	if !code.Ok() {
		return nil, nil, code
	}
	a := r.fs.hit(op, n)
	if a == nil {
		return n, nil, fuse.OK
	}
	if a.Delay > 0 || a.Hang {
		r.fs.mu.Unlock()
		going := a.wait(h.Pid)
		if n, code = r.enter(h.NodeId); !code.Ok() {
			return nil, nil, code
		}
		if !going {
			return nil, nil, fuse.EINTR
		}
	}
	return n, a, fuse.OK
}

func (r *raw) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, a, code := r.begin(OpRead, &in.InHeader)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return nil, code
	}
	if a != nil && a.Err != 0 {
		return nil, fuse.Status(a.Err)
	}
	buf = buf[:n.seen.read(int64(in.Offset), buf)]
	if a != nil && a.Flip {
		r.fs.flip(buf)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

func (r *raw) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, a, code := r.begin(OpWrite, &in.InHeader)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return 0, code
	}
	off := int64(in.Offset)
	if a != nil {
		if a.Err != 0 {
			_, _ = r.fs.write(n, off, data[:min(a.Short, len(data))]) // fails all the same
			return 0, fuse.Status(a.Err)
		}
		off = max(0, off+a.Shift)
		if a.Flip {
			data = slices.Clone(data)
			r.fs.flip(data)
		}
	}
	done, errno := r.fs.write(n, off, data)
	return uint32(done), fuse.Status(errno)
}

func (r *raw) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, a, code := r.begin(OpSync, &in.InHeader)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	if a != nil && a.Err != 0 {
		r.fs.failSync(n)
		return fuse.Status(a.Err)
	}
	r.fs.syncFile(n)
	return fuse.OK
}

func (r *raw) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, a, code := r.begin(OpSyncDir, &in.InHeader)
	defer r.fs.mu.Unlock()
	if !code.Ok() {
		return code
	}
	if a != nil && a.Err != 0 {
		return fuse.Status(a.Err)
	}
	r.fs.syncDir(n)
	return fuse.OK
}
