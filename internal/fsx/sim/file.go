package sim

import (
	"errors"
	"io"
	"io/fs"
	"slices"
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
	fault := f.fs.before(Op{Kind: OpRead, Name: f.n.name, Off: off, Len: len(p), Size: f.n.size()})
	if fault.Err != nil {
		return 0, f.err("read", fault.Err)
	}
	if off >= f.n.size() {
		return 0, io.EOF
	}
	n := copy(p, f.n.data.b[off:])
	if fault.Garble != nil {
		fault.Garble(p[:n])
	}
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
	fault := f.fs.before(Op{Kind: OpWrite, Name: f.n.name, Off: off, Len: len(p), Size: f.n.size()})
	if fault.Err != nil {
		n := min(fault.Short, len(p))
		if errors.Is(fault.Err, ErrCrashed) {
			n = 0
		}
		f.write(p[:n], off)
		return n, f.err("write", fault.Err)
	}
	if grow := off + int64(len(p)) - f.n.size(); grow > 0 && f.fs.used+grow > f.fs.quota {
		n := max(0, int64(len(p))-(f.fs.used+grow-f.fs.quota))
		f.write(p[:n], off)
		return int(n), f.err("write", syscall.ENOSPC)
	}
	if fault.Garble != nil {
		bad := slices.Clone(p)
		fault.Garble(bad)
		f.write(bad, off)
	} else if fault.Stray != nil {
		f.stray(p, off, fault.Stray)
	} else {
		f.write(p, off)
	}
	return len(p), nil
}

func (f *file) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	before := f.n.size()
	f.n.note(write{off: off, data: slices.Clone(p)})
	f.fs.used += f.n.size() - before
}

// stray writes sector by sector, each where the fault wants it. The file gets as long as it should.
func (f *file) stray(p []byte, off int64, to func(int64) *Place) {
	sectors(off, p, func(off int64, data []byte) {
		place := to(off)
		if place == nil {
			f.write(data, off)
			return
		}
		if end := off + int64(len(data)); end > f.n.size() {
			f.fs.used += end - f.n.size()
			f.n.note(write{off: end, truncate: true})
		}
		n, err := f.fs.find(place.Name)
		if place.Name == "" || err != nil || n.dir || place.Off < 0 {
			return
		}
		for _, c := range []*content{&n.data, &n.safe} {
			if room := int64(len(c.b)) - place.Off; room > 0 {
				c.apply(write{off: place.Off, data: data[:min(room, int64(len(data)))]})
			}
		}
	})
}

// Size implements fsx.File.
func (f *file) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.crashed {
		return 0, f.err("stat", ErrCrashed)
	}
	return f.n.size(), nil
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
	if fault := f.fs.before(Op{Kind: OpTruncate, Name: f.n.name, Len: int(size), Size: f.n.size()}); fault.Err != nil {
		return f.err("truncate", fault.Err)
	}
	f.fs.used += size - f.n.size()
	f.n.note(write{off: size, truncate: true})
	return nil
}

// Sync implements fsx.File.
func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return f.err("fsync", fs.ErrClosed)
	}
	upTo := f.n.seq // what is written while a slow sync runs is not covered by it
	fault := f.fs.before(Op{Kind: OpSync, Name: f.n.name, Size: f.n.size()})
	if errors.Is(fault.Err, ErrCrashed) {
		return f.err("fsync", ErrCrashed)
	}
	// After a failure the kernel has marked the pages clean: what they hold is
	// seen until the power goes, and no later sync writes it.
	f.n.settle(upTo, fault.Err == nil)
	if fault.Err != nil {
		return f.err("fsync", fault.Err)
	}
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
