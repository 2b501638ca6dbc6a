//go:build unix

package broker

import "syscall"

// fileLimit is how many descriptors the process may have. The Go runtime has
// raised the soft limit to the hard one.
func fileLimit() (limit int64, known bool) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > 1<<40 {
		return 0, false
	}
	return int64(r.Cur), true
}
