package fsx

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
)

// ErrLocked says that somebody else holds a lock.
var ErrLocked = errors.New("locked by another process")

// OS is the machine's file system.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) MkdirAll(dir string, perm fs.FileMode) error { return os.MkdirAll(dir, perm) }
func (osFS) Rename(from, to string) error                { return os.Rename(from, to) }
func (osFS) Remove(name string) error                    { return os.Remove(name) }
func (osFS) RemoveAll(name string) error                 { return os.RemoveAll(name) }
func (osFS) ReadDir(dir string) ([]fs.DirEntry, error)   { return os.ReadDir(dir) }
func (osFS) Stat(name string) (fs.FileInfo, error)       { return os.Stat(name) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) Space(dir string) (free, total uint64, err error) { return space(dir) }
func (osFS) Lock(name string) (io.Closer, error)              { return lock(name) }

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Sync() error { return datasync(f.File) }

func (f osFile) evict(off, n int64) error { return evict(f.File, off, n) }

// Evict makes the system forget the whole pages in [off, off+n) of a file that was synced, so that
// what is written there next goes to the disk as if nothing had been tried before. After a failed
// sync that is not so: ext4 takes blocks for written that were new in the failed write, and then a
// write and a sync of the same pages succeed, and the next mount reads zeros. Where the
// system cannot, or f is none of its files, it does nothing.
func Evict(f File, off, n int64) error {
	if e, ok := f.(interface{ evict(off, n int64) error }); ok {
		return e.evict(off, n)
	}
	return nil
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("read %s: %d bytes, limit %d", name, size, limit)
	}
	buf := make([]byte, size)
	n, err := f.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return buf[:n], nil
}

// WriteFile replaces a file so that after a power cut either the old or the
// new content is there, whole: write aside, sync, rename, sync the directory.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	aside := name + ".new"
	f, err := fsys.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return errors.Join(err, f.Close())
	}
	failpoint.Hit("fsx/write/written")
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	failpoint.Hit("fsx/write/synced")
	if err := fsys.Rename(aside, name); err != nil {
		return err
	}
	failpoint.Hit("fsx/write/renamed")
	return fsys.SyncDir(filepath.Dir(name))
}
