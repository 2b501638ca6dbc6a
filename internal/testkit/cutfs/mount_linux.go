package cutfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/tidemarkhq/tidemark/internal/run"
)

// Mount is a file system in front of the kernel.
type Mount struct{ dir string }

// Available tells whether this process may mount a cutfs; the error says what is missing.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w; this process is not root", ErrNoMount)
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoMount, err)
	}
	return dev.Close()
}

// Mount mounts the file system as it is after the last cut.
func (f *FS) Mount(dir string) (*Mount, error) {
	f.mu.Lock()
	r := &raw{RawFileSystem: fuse.NewDefaultRawFileSystem(), fs: f, life: f.life}
	f.mu.Unlock()
	// The descriptor of /dev/fuse must not leak into processes that the caller starts: a mount whose
	// descriptor is open somewhere outlives its server, and everybody who touches it hangs.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	srv, err := fuse.NewServer(r, dir, &fuse.MountOptions{
		FsName: fmt.Sprint(Source, os.Getpid()), Name: "cutfs", DirectMountStrict: true,
		MaxWrite: 1 << 20, DisableXAttrs: true, DisableReadDirPlus: true, DisableSplice: true,
	})
	if err != nil {
		return nil, fmt.Errorf("mount a cutfs at %s: %w", dir, err)
	}
	m := &Mount{dir: dir}
	if err := closeOnExec(); err != nil {
		return nil, errors.Join(err, m.Unmount())
	}
	run.Owned("cutfs").Go("serve", func(context.Context) { srv.Serve() }) // ends with the mount
	if err := srv.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount a cutfs at %s: %w", dir, err), m.Unmount())
	}
	return m, nil
}

func closeOnExec() error {
	const fds = "/proc/self/fd"
	entries, err := os.ReadDir(fds)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(fds, e.Name())); err != nil || to != "/dev/fuse" {
			continue
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// Dir is where it is mounted.
func (m *Mount) Dir() string { return m.dir }

// Unmount takes the mount away at once; who still has files open there gets errors from
// the next cut on.
func (m *Mount) Unmount() error { return Detach(m.dir) }

// Detach unmounts whatever is mounted at dir, even when it is in use.
func Detach(dir string) error {
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// Sweep takes away what processes left that are no more: mounts of a cutfs, and mounts at directories
// whose name begins with Source and the process.
func Sweep() error {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !orphan(fields[0]) && !orphan(filepath.Base(fields[1])) {
			continue
		}
		errs = append(errs, Detach(fields[1]))
	}
	return errors.Join(errs...)
}

// orphan tells whether a name begins with Source and a process that has ended.
func orphan(name string) bool {
	rest, ours := strings.CutPrefix(name, Source)
	var pid int
	if _, err := fmt.Sscanf(rest, "%d", &pid); !ours || err != nil {
		return false
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// dying tells whether a thread was told to end by SIGKILL, as all threads of a process
// are that exits. Until its system call returns it cannot.
func dying(tid uint32) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(text)) {
		var mask uint64
		for _, field := range []string{"SigPnd:", "ShdPnd:"} {
			if rest, ok := strings.CutPrefix(line, field); ok {
				if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%x", &mask); err == nil && mask&(1<<(syscall.SIGKILL-1)) != 0 {
					return true
				}
			}
		}
	}
	return false
}

// wait holds an operation of a thread up, as the fault says. It returns false when the
// thread is dying meanwhile.
func (a *Armed) wait(tid uint32) bool {
	if a.Delay > 0 {
		select {
		case <-time.After(a.Delay):
		case <-a.heal:
		}
	}
	for tick := time.NewTicker(10 * time.Millisecond); a.Hang; {
		select {
		case <-tick.C:
			if dying(tid) {
				tick.Stop()
				return false
			}
		case <-a.heal:
			tick.Stop()
			return true
		}
	}
	return true
}
