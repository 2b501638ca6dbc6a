//go:build unix

package terminal

import (
	"os"

	"golang.org/x/sys/unix"
)

// Closed tells whether nobody reads the pipe that f writes to any more, which
// a write would tell only when there is something to write.
func Closed(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}
