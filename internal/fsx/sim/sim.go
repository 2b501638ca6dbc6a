// Package sim is a file system in memory that forgets what was not synced.
//
// It keeps two states: what a running process sees, and what the disk is
// certain to hold. File.Sync moves a file's content from one to the other,
// FS.SyncDir a directory's names. Reboot cuts the power: the result holds the durable
// state and, when asked to tear, any part of the rest: each 512-byte sector
// of an unsynced write, and each unsynced directory entry, is there or not.
// It is stricter than ext4, xfs and btrfs, which keep more.
//
// Faults are input: a hook sees every operation before it happens and may fail it,
// delay it, garble it, lead its sectors astray, or cut the power there. Plan makes a hook of
// rules and a seed. The file system itself has no chance and no clock in it: the same
// operations, faults and random numbers give the same disk.
package sim

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// SectorBytes is what a disk writes whole or not at all.
const SectorBytes = 512

// pageBytes is what the end of a file is filled up to with zeros.
const pageBytes = 4096

// ErrCrashed is the answer of a file system whose power was cut.
var ErrCrashed = errors.New("sim: the power is off")

// Kind names an operation.
type Kind string

// The operations that a hook sees.
const (
	OpCreate   Kind = "create"
	OpOpen     Kind = "open"
	OpWrite    Kind = "write"
	OpTruncate Kind = "truncate"
	OpSync     Kind = "sync"
	OpSyncDir  Kind = "syncdir"
	OpRename   Kind = "rename"
	OpRemove   Kind = "remove"
	OpMkdir    Kind = "mkdir"
	OpRead     Kind = "read"
)

// Mutates tells whether the operation changes what a reboot may find.
func (k Kind) Mutates() bool { return k != OpRead && k != OpOpen }

// FS is the file system. It implements fsx.FS.
type FS struct {
	down chan struct{} // closed when the power goes: nothing waits longer

	mu      sync.Mutex
	root    *inode // guarded by mu, as is all below
	crashed bool
	n       int
	hook    func(Op) Fault
	quota   int64
	used    int64
	locks   map[string]bool
}

var _ fsx.FS = (*FS)(nil)

// New returns an empty file system.
func New() *FS {
	return &FS{down: make(chan struct{}), root: newDir(), quota: 1 << 40, locks: map[string]bool{}}
}

// SetHook makes hook decide about every operation from now on; nil lets all happen.
// The hook must not call the file system.
func (s *FS) SetHook(hook func(Op) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// SetQuota bounds the bytes of all files. Writes beyond fail with ENOSPC
// after what fits.
func (s *FS) SetQuota(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = bytes
}

// Ops is the number of mutating operations so far.
func (s *FS) Ops() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// CrashAt cuts the power before the nth mutating operation from now.
func (s *FS) CrashAt(n int) {
	s.mu.Lock()
	at := s.n + n
	s.mu.Unlock()
	s.SetHook(func(op Op) Fault { return Fault{Crash: op.Kind.Mutates() && op.N >= at} })
}

func sortedNames(maps ...map[string]*inode) []string {
	set := map[string]bool{}
	for _, m := range maps {
		for name := range m {
			set[name] = true
		}
	}
	names := make([]string, 0, len(set))
	for name := range set {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func split(name string) []string {
	name = strings.Trim(path.Clean(filepath.ToSlash(name)), "/")
	if name == "" || name == "." {
		return nil
	}
	return strings.Split(name, "/")
}

func (s *FS) find(name string) (*inode, error) {
	n := s.root
	for _, part := range split(name) {
		if !n.dir || n.seen[part] == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		n = n.seen[part]
	}
	return n, nil
}

func (s *FS) parent(name string) (dir *inode, base string, err error) {
	parts := split(name)
	if len(parts) == 0 {
		return nil, "", &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	dir, err = s.find(strings.Join(parts[:len(parts)-1], "/"))
	return dir, parts[len(parts)-1], err
}

// OpenFile implements fsx.FS.
func (s *FS) OpenFile(name string, flag int, _ fs.FileMode) (fsx.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := OpOpen
	if _, err := s.find(name); err != nil {
		if kind = OpCreate; flag&os.O_CREATE == 0 {
			return nil, s.failed("open", name, err)
		}
	}
	if f := s.before(Op{Kind: kind, Name: name}); f.Err != nil {
		return nil, s.failed("open", name, f.Err)
	}
	dir, base, err := s.parent(name)
	if err != nil {
		return nil, err
	}
	n := dir.seen[base]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, s.failed("open", name, fs.ErrNotExist)
	case n == nil:
		n = &inode{}
		dir.seen[base] = n
	case flag&os.O_EXCL != 0 && flag&os.O_CREATE != 0:
		return nil, s.failed("open", name, fs.ErrExist)
	case n.dir:
		return nil, s.failed("open", name, syscall.EISDIR)
	}
	n.name = name
	file := &file{fs: s, n: n, name: name}
	if flag&os.O_TRUNC != 0 && n.size() > 0 {
		if err := file.truncateLocked(0); err != nil {
			return nil, err
		}
	}
	return file, nil
}

// failed is the error of an operation. One on a machine without power fails for that.
func (s *FS) failed(op, name string, err error) error {
	var known *fs.PathError
	if errors.As(err, &known) {
		err = known.Err
	}
	if s.crashed {
		err = ErrCrashed
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// MkdirAll implements fsx.FS.
func (s *FS) MkdirAll(name string, _ fs.FileMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := split(name)
	for k := range parts {
		part := strings.Join(parts[:k+1], "/")
		n, err := s.find(part)
		if err == nil && !n.dir {
			return s.failed("mkdir", name, syscall.ENOTDIR)
		}
		if err == nil {
			continue
		}
		if f := s.before(Op{Kind: OpMkdir, Name: name}); f.Err != nil {
			return s.failed("mkdir", name, f.Err)
		}
		dir, base, err := s.parent(part)
		if err != nil {
			return err
		}
		if dir.seen[base] == nil {
			dir.seen[base] = newDir()
		}
	}
	return nil
}

// Rename implements fsx.FS.
func (s *FS) Rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.find(from); err != nil {
		return s.failed("rename", from, err)
	}
	if f := s.before(Op{Kind: OpRename, Name: to}); f.Err != nil {
		return s.failed("rename", from, f.Err)
	}
	fromDir, fromBase, err := s.parent(from)
	if err != nil {
		return err
	}
	toDir, toBase, err := s.parent(to)
	if err != nil {
		return err
	}
	n := fromDir.seen[fromBase]
	if n == nil {
		return s.failed("rename", from, fs.ErrNotExist)
	}
	if old := toDir.seen[toBase]; old != nil && !old.dir && old != n {
		s.used -= old.size()
	}
	delete(fromDir.seen, fromBase)
	toDir.seen[toBase] = n
	n.name = to
	return nil
}

// Remove implements fsx.FS.
func (s *FS) Remove(name string) error { return s.remove(name, false) }

// RemoveAll implements fsx.FS.
func (s *FS) RemoveAll(name string) error {
	if err := s.remove(name, true); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *FS) remove(name string, all bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.find(name); err != nil {
		return s.failed("remove", name, err)
	}
	if f := s.before(Op{Kind: OpRemove, Name: name}); f.Err != nil {
		return s.failed("remove", name, f.Err)
	}
	dir, base, err := s.parent(name)
	if err != nil {
		return err
	}
	n := dir.seen[base]
	if n == nil {
		return s.failed("remove", name, fs.ErrNotExist)
	}
	if n.dir && len(n.seen) > 0 && !all {
		return s.failed("remove", name, syscall.ENOTEMPTY)
	}
	delete(dir.seen, base)
	s.used -= n.used()
	return nil
}

// ReadDir implements fsx.FS.
func (s *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.before(Op{Kind: OpRead, Name: name}); f.Err != nil {
		return nil, s.failed("readdir", name, f.Err)
	}
	n, err := s.find(name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, s.failed("readdir", name, syscall.ENOTDIR)
	}
	var out []fs.DirEntry
	for _, base := range sortedNames(n.seen) {
		out = append(out, fs.FileInfoToDirEntry(info{base, n.seen[base].dir, n.seen[base].size()}))
	}
	return out, nil
}

// Stat implements fsx.FS.
func (s *FS) Stat(name string) (fs.FileInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crashed {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: ErrCrashed}
	}
	n, err := s.find(name)
	if err != nil {
		return nil, err
	}
	return info{path.Base(name), n.dir, n.size()}, nil
}

// SyncDir implements fsx.FS.
func (s *FS) SyncDir(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.find(name); err != nil {
		return s.failed("fsync", name, err)
	}
	if f := s.before(Op{Kind: OpSyncDir, Name: name}); f.Err != nil {
		return s.failed("fsync", name, f.Err)
	}
	n, err := s.find(name)
	if err != nil {
		return err
	}
	n.durable = maps.Clone(n.seen)
	return nil
}

// Space implements fsx.FS.
func (s *FS) Space(string) (free, total uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crashed {
		return 0, 0, ErrCrashed
	}
	return uint64(max(0, s.quota-s.used)), uint64(s.quota), nil
}

// Lock implements fsx.FS. Locks do not survive a reboot.
func (s *FS) Lock(name string) (io.Closer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := path.Clean(filepath.ToSlash(name))
	if s.crashed {
		return nil, ErrCrashed
	}
	if s.locks[key] {
		return nil, &fs.PathError{Op: "lock", Path: name, Err: fsx.ErrLocked}
	}
	dir, base, err := s.parent(name)
	if err != nil {
		return nil, err
	}
	if dir.seen[base] == nil {
		dir.seen[base] = &inode{}
	}
	s.locks[key] = true
	return unlocker{s, key}, nil
}

type unlocker struct {
	fs  *FS
	key string
}

func (u unlocker) Close() error {
	u.fs.mu.Lock()
	defer u.fs.mu.Unlock()
	delete(u.fs.locks, u.key)
	return nil
}

type info struct {
	name string
	dir  bool
	size int64
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
