//go:build !linux

package fsx

import (
	"io"
	"math"
	"os"
)

// Where the system is not Linux, Sync is a full sync, free space is not known
// and the lock only keeps this process from opening a directory twice.

func datasync(f *os.File) error { return f.Sync() }

func evict(*os.File, int64, int64) error { return nil }

func space(string) (free, total uint64, err error) { return math.MaxInt64, math.MaxInt64, nil }

func lock(name string) (io.Closer, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
}
