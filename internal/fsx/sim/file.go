package sim

import (
	"io"
	"io/fs"
	"syscall"
)

type file struct {
	fs     *FS
	n      *inode
	name   string
	closed bool // guarded by fs.mu
}

func (f *file) Name() string { return f.name }

func (f *file) err(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, f.err("read", fs.ErrClosed)
	}
	if fault := f.fs.before(Op{Kind: OpRead, Name: f.name, Off: off, Len: len(p)}); fault.Err != nil {
		return 0, f.err("read", fault.Err)
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, f.err("write", fs.ErrClosed)
	}
	fault := f.fs.before(Op{Kind: OpWrite, Name: f.name, Off: off, Len: len(p)})
	if fault.Err != nil {
		n := min(fault.Short, len(p))
		f.write(p[:n], off)
		return n, f.err("write", fault.Err)
	}
	if grow := off + int64(len(p)) - int64(len(f.n.data)); grow > 0 && f.fs.used+grow > f.fs.quota {
		n := max(0, int64(len(p))-(f.fs.used+grow-f.fs.quota))
		f.write(p[:n], off)
		return int(n), f.err("write", syscall.ENOSPC)
	}
	f.write(p, off)
	return len(p), nil
}

func (f *file) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	w := write{off: off, data: append([]byte(nil), p...)}
	before := len(f.n.data)
	f.n.data = apply(f.n.data, w)
	f.fs.used += int64(len(f.n.data) - before)
	f.n.pending = append(f.n.pending, w)
}

// Size implements fsx.File.
func (f *file) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.crashed {
		return 0, f.err("stat", ErrCrashed)
	}
	return int64(len(f.n.data)), nil
}

// Truncate implements fsx.File.
func (f *file) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return f.err("truncate", fs.ErrClosed)
	}
	return f.truncateLocked(size)
}

func (f *file) truncateLocked(size int64) error {
	if fault := f.fs.before(Op{Kind: OpTruncate, Name: f.name, Len: int(size)}); fault.Err != nil {
		return f.err("truncate", fault.Err)
	}
	w := write{off: size, truncate: true}
	f.fs.used += size - int64(len(f.n.data))
	f.n.data = apply(f.n.data, w)
	f.n.pending = append(f.n.pending, w)
	return nil
}

// Sync implements fsx.File.
func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return f.err("fsync", fs.ErrClosed)
	}
	fault := f.fs.before(Op{Kind: OpSync, Name: f.name})
	if fault.Err == ErrCrashed {
		return f.err("fsync", ErrCrashed)
	}
	if fault.Err != nil {
		// The kernel has marked the pages clean: what they hold is seen until
		// the power goes, and no later sync writes it.
		f.n.pending = nil
		return f.err("fsync", fault.Err)
	}
	for _, w := range f.n.pending {
		f.n.safe = apply(f.n.safe, w)
	}
	f.n.pending = nil
	return nil
}

// Close implements io.Closer.
func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return f.err("close", fs.ErrClosed)
	}
	f.closed = true
	if f.fs.crashed {
		return f.err("close", ErrCrashed)
	}
	return nil
}
