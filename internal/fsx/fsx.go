// Package fsx is the file system as Tidemark uses it, so that tests can put
// one in its place that loses unsynced writes, tears them, or fails.
//
// Names are slash-separated paths of the operating system. Everything that
// must survive a power cut is synced by the caller: data with File.Sync, names
// with FS.SyncDir. Nothing here retries: a failed write or sync is final.
package fsx

import (
	"io"
	"io/fs"
)

// FS is a file system. It is safe for concurrent use.
type FS interface {
	// OpenFile opens a file with the flags of package os. New files get perm.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	MkdirAll(dir string, perm fs.FileMode) error
	Rename(from, to string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	RemoveAll(name string) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(dir string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes creations, renames and removals in dir survive a power cut.
	SyncDir(dir string) error
	// Space reports the bytes that are free for us and the size of the file
	// system that holds dir.
	Space(dir string) (free, total uint64, err error)
	// Lock takes an exclusive lock on a file, creating it, until Close. It
	// fails with ErrLocked where another process or another Lock holds it.
	Lock(name string) (io.Closer, error)
}

// File is an open file. ReadAt may be called concurrently with all else.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Name() string
	Size() (int64, error)
	Truncate(size int64) error
	// Sync makes the content and size survive a power cut (fdatasync).
	Sync() error
}
