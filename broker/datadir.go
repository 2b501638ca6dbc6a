package broker

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// Names in the data directory. What is in topics/ and trash/ belongs to package replicas.
const (
	lockFile     = "LOCK"
	identityFile = "identity"
	startsFile   = "starts"
	stableFile   = "stable"
	stateDir     = "state"
	topicsDir    = "topics"
	poolDir      = "pool"
)

const smallFile = 4096 // no file that is read whole is larger

// lockDir makes the data directory, and makes it ours until the closer is closed. The
// process id in the file is for people; the lock is the kernel's.
func lockDir(fsys fsx.FS, dir string) (io.Closer, error) {
	if err := makeDir(fsys, dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	name := filepath.Join(dir, lockFile)
	lock, err := fsys.Lock(name)
	if errors.Is(err, fsx.ErrLocked) {
		return nil, fmt.Errorf("data directory %s is in use by %s; stop it, or choose another node.data_dir: %w", dir, holder(fsys, name), fsx.ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := writeHolder(fsys, name); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), lock.Close())
	}
	return lock, nil
}

// makeDir makes a directory and those above it, so that all of their names
// survive a power cut.
func makeDir(fsys fsx.FS, dir string) error {
	there, err := exists(fsys, dir)
	if there || err != nil {
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(fsys, parent); err != nil {
			return err
		}
	}
	return errors.Join(fsys.MkdirAll(dir, 0o700), fsys.SyncDir(parent))
}

func holder(fsys fsx.FS, name string) string {
	b, err := fsx.ReadFile(fsys, name, smallFile)
	pid, numErr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || numErr != nil {
		return "another process"
	}
	return "the process with id " + strconv.Itoa(pid)
}

func writeHolder(fsys fsx.FS, name string) error {
	f, err := fsys.OpenFile(name, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	_, err = f.WriteAt([]byte(pid), 0)
	return errors.Join(err, f.Truncate(int64(len(pid))), f.Close())
}

func exists(fsys fsx.FS, name string) (bool, error) {
	_, err := fsys.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
