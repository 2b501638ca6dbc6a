// Package powercut cuts the power of real processes on real file systems and checks
// that nothing acknowledged is lost.
//
// A child process writes a log and reports, line by line through a pipe, what it is
// about to write and what is durable. Its disk is a cutfs, or an ext4, xfs or
// btrfs on a loop device whose backing file lies on a cutfs. The power goes at a random change;
// the child is killed, the disk mounted again, and the next child reports what it found. The
// judge compares: everything acknowledged is there, nothing is there that was not
// written, and a log opens after every cut.
//
// It needs Linux, root and /dev/fuse and is skipped elsewhere; with TIDEMARK_NO_SKIP=1 it
// fails there. TIDEMARK_POWERCUT_SECONDS makes each suite run for so long.
package powercut
