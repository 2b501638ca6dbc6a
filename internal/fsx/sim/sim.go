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
// shorten it, or cut the power there.
package sim

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
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

// Op is an operation about to happen.
type Op struct {
	Kind Kind
	Name string
	// N counts the mutating operations of the file system, from 1; it
	// stays the same for reads and opens.
	N int
	// Off and Len are the range of a read or write, Len the size of a truncate.
	Off int64
	Len int
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
}

// FS is the file system. It implements fsx.FS.
type FS struct {
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

type inode struct {
	dir bool
	// A directory's names: as seen, and as certain.
	seen, durable map[string]*inode

	// A file's content as seen, as certain, and the writes between.
	data, safe []byte
	pending    []write
}

type write struct {
	off      int64
	data     []byte
	truncate bool // to off
}

// New returns an empty file system.
func New() *FS {
	return &FS{root: newDir(), quota: 1 << 40, locks: map[string]bool{}}
}

func newDir() *inode {
	return &inode{dir: true, seen: map[string]*inode{}, durable: map[string]*inode{}}
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

// Reboot cuts the power, if it is on, and returns what the disk holds. With tear, unsynced
// parts survive at random; without, none does. The old FS answers ErrCrashed from then on.
func (s *FS) Reboot(rng *rand.Rand, tear bool) *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashed = true
	after := New()
	after.quota = s.quota
	after.root = reboot(s.root, rng, tear, map[*inode]*inode{})
	after.used = used(after.root)
	return after
}

// Kill ends the process that uses the file system and leaves the machine on: the result holds
// all that the process saw, and what was not synced may still be lost in a later
// Reboot. The old FS answers ErrCrashed; nobody may use it any more at the time of the call.
func (s *FS) Kill() *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashed = true
	after := New()
	after.root, after.quota, after.used = s.root, s.quota, s.used
	return after
}

func reboot(old *inode, rng *rand.Rand, tear bool, done map[*inode]*inode) *inode {
	if n, ok := done[old]; ok {
		return n
	}
	if !old.dir {
		n := &inode{safe: survive(old, rng, tear)}
		n.data = append([]byte(nil), n.safe...)
		done[old] = n
		return n
	}
	n := newDir()
	done[old] = n
	for _, name := range sortedNames(old.seen, old.durable) {
		child := old.durable[name]
		if seen := old.seen[name]; seen != child && tear && rng.IntN(2) == 0 {
			child = seen // this unsynced change of the directory made it
		}
		if child == nil {
			continue
		}
		c := reboot(child, rng, tear, done)
		n.seen[name], n.durable[name] = c, c
	}
	return n
}

// survive is the content of a file after the cut.
func survive(f *inode, rng *rand.Rand, tear bool) []byte {
	out := append([]byte(nil), f.safe...)
	if !tear {
		return out
	}
	for _, w := range f.pending {
		if w.truncate {
			if rng.IntN(2) == 0 {
				out = resize(out, w.off)
			}
			continue
		}
		for at := int64(0); at < int64(len(w.data)); {
			end := min((w.off+at)/SectorBytes*SectorBytes+SectorBytes-w.off, int64(len(w.data)))
			if rng.IntN(2) == 0 {
				out = apply(out, write{off: w.off + at, data: w.data[at:end]})
			}
			at = end
		}
	}
	return out
}

func apply(data []byte, w write) []byte {
	if w.truncate {
		return resize(data, w.off)
	}
	if end := w.off + int64(len(w.data)); end > int64(len(data)) {
		data = resize(data, end)
	}
	copy(data[w.off:], w.data)
	return data
}

func resize(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		return data[:size]
	}
	return append(data, make([]byte, size-int64(len(data)))...)
}

// Corrupt changes a file behind everybody's back, durably: bit rot, or a
// misdirected write.
func (s *FS) Corrupt(name string, change func(data []byte) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.find(name)
	if err != nil {
		return err
	}
	n.data = change(n.data)
	n.safe = append([]byte(nil), n.data...)
	n.pending = nil
	return nil
}

// Clone copies the file system as a running process sees it, all of it durable.
func (s *FS) Clone() *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	after := New()
	after.root = clone(s.root)
	after.quota, after.used = s.quota, used(after.root)
	return after
}

func clone(old *inode) *inode {
	if !old.dir {
		return &inode{data: append([]byte(nil), old.data...), safe: append([]byte(nil), old.data...)}
	}
	n := newDir()
	for name, c := range old.seen {
		cc := clone(c)
		n.seen[name], n.durable[name] = cc, cc
	}
	return n
}

func used(n *inode) int64 {
	total := int64(len(n.data))
	for _, c := range n.seen {
		total += used(c)
	}
	return total
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

// before asks the hook about an operation.
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
		s.crashed = true
		return Fault{Err: ErrCrashed}
	}
	return f
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
	dir, base, err := s.parent(name)
	if err != nil {
		return nil, err
	}
	n := dir.seen[base]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case n == nil:
		if f := s.before(Op{Kind: OpCreate, Name: name}); f.Err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: f.Err}
		}
		n = &inode{}
		dir.seen[base] = n
	case flag&os.O_EXCL != 0 && flag&os.O_CREATE != 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	default:
		if f := s.before(Op{Kind: OpOpen, Name: name}); f.Err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: f.Err}
		}
	}
	if n.dir {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	file := &file{fs: s, n: n, name: name}
	if flag&os.O_TRUNC != 0 && len(n.data) > 0 {
		if err := file.truncateLocked(0); err != nil {
			return nil, err
		}
	}
	return file, nil
}

// MkdirAll implements fsx.FS.
func (s *FS) MkdirAll(name string, _ fs.FileMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.root
	for _, part := range split(name) {
		child := n.seen[part]
		if child == nil {
			if f := s.before(Op{Kind: OpMkdir, Name: name}); f.Err != nil {
				return &fs.PathError{Op: "mkdir", Path: name, Err: f.Err}
			}
			child = newDir()
			n.seen[part] = child
		}
		if !child.dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		n = child
	}
	return nil
}

// Rename implements fsx.FS.
func (s *FS) Rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
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
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	if f := s.before(Op{Kind: OpRename, Name: to}); f.Err != nil {
		return &fs.PathError{Op: "rename", Path: from, Err: f.Err}
	}
	if old := toDir.seen[toBase]; old != nil && !old.dir && old != n {
		s.used -= int64(len(old.data))
	}
	delete(fromDir.seen, fromBase)
	toDir.seen[toBase] = n
	return nil
}

// Remove implements fsx.FS.
func (s *FS) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, base, err := s.parent(name)
	if err != nil {
		return err
	}
	n := dir.seen[base]
	if n == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if n.dir && len(n.seen) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	if f := s.before(Op{Kind: OpRemove, Name: name}); f.Err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: f.Err}
	}
	delete(dir.seen, base)
	s.used -= int64(len(n.data))
	return nil
}

// RemoveAll implements fsx.FS.
func (s *FS) RemoveAll(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, base, err := s.parent(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	n := dir.seen[base]
	if n == nil {
		return nil
	}
	if f := s.before(Op{Kind: OpRemove, Name: name}); f.Err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: f.Err}
	}
	s.used -= used(n)
	delete(dir.seen, base)
	return nil
}

// ReadDir implements fsx.FS.
func (s *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.before(Op{Kind: OpRead, Name: name}); f.Err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: f.Err}
	}
	n, err := s.find(name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	var out []fs.DirEntry
	for _, base := range sortedNames(n.seen) {
		out = append(out, fs.FileInfoToDirEntry(info{base, n.seen[base].dir, int64(len(n.seen[base].data))}))
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
	return info{path.Base(name), n.dir, int64(len(n.data))}, nil
}

// SyncDir implements fsx.FS.
func (s *FS) SyncDir(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.find(name)
	if err != nil {
		return err
	}
	if f := s.before(Op{Kind: OpSyncDir, Name: name}); f.Err != nil {
		return &fs.PathError{Op: "fsync", Path: name, Err: f.Err}
	}
	n.durable = make(map[string]*inode, len(n.seen))
	for base, c := range n.seen {
		n.durable[base] = c
	}
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
