package partition

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log"
)

// A replica's log and checkpoint lie in a generation: a directory that is never changed back into
// what it was before. Generation 0 is the replica's own directory; a reset makes another one in a
// directory below, whole and synced, and only then has CURRENT name it. Whatever CURRENT does not
// name is litter. docs/format/partition.md draws both.
const (
	currentName  = "CURRENT"
	currentTitle = "tidemark replica 1"
	currentBytes = len(currentTitle) + 1 + 16 + 1 + 8 + 1
	genPrefix    = "g-"
	lockName     = "LOCK"
	newSuffix    = ".new" // of a file that is not whole yet
)

// generation is the directory that a replica runs on.
type generation struct {
	n      uint64
	dir    string
	lock   io.Closer // of the replica's directory; nil for generation 0, whose log holds it
	litter []string  // paths of what other generations left
	next   uint64    // the number of the next one: of no litter
}

func generationDir(dir string, n uint64) string {
	if n == 0 {
		return dir
	}
	return filepath.Join(dir, fmt.Sprintf("%s%016x", genPrefix, n))
}

// Generation is the directory below a replica's that holds its log and checkpoint now. It changes
// nothing and takes no lock.
func Generation(fsys fsx.FS, dir string) (string, error) {
	n, err := readCurrent(fsys, dir)
	if err != nil {
		return "", err
	}
	return generationDir(dir, n), nil
}

// HasGeneration tells whether dir is a replica's and was reset before.
func HasGeneration(fsys fsx.FS, dir string) bool {
	b, err := fsx.ReadFile(fsys, filepath.Join(dir, currentName), 4096)
	return err == nil && strings.HasPrefix(string(b), "tidemark replica ")
}

// openGeneration finds the generation in force, and what others left: a crash, or the switch to it. The caller closes
// it after the log.
func openGeneration(fsys fsx.FS, dir string) (g generation, err error) {
	g = generation{dir: dir, next: 1}
	if _, err := fsys.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return g, nil
	}
	if g.lock, err = fsys.Lock(filepath.Join(dir, lockName)); err != nil {
		return g, err
	}
	if g.n, err = readCurrent(fsys, dir); err == nil {
		g.dir = generationDir(dir, g.n)
		err = g.settle(fsys, dir)
	}
	if err == nil && g.n > 0 {
		return g, nil
	}
	err = errors.Join(err, g.lock.Close())
	g.lock = nil
	return g, err
}

// settle makes the generation in force durable, before anything of another one goes.
//
// A process that died between the rename of CURRENT and the sync behind it leaves a switch that a
// power cut may take back. As long as anything of another generation is there, the
// switch is made once more, so that nothing goes, and nothing is acknowledged, before it is durable.
func (g *generation) settle(fsys fsx.FS, dir string) error {
	if err := g.find(fsys, dir); err != nil {
		return err
	}
	switch {
	case g.n > 0 && len(g.litter) > 0:
		return switchTo(fsys, dir, g.n) // takes what a switch left half made along
	case g.n > 0:
		return fsys.SyncDir(dir)
	}
	err := fsys.Remove(filepath.Join(dir, currentName+newSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// find lists what is neither of the generation in force nor of all of them. The directory is
// the replica's alone, so next to a later generation everything else is generation 0's.
func (g *generation) find(fsys fsx.FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	g.next = g.n + 1
	for _, e := range entries {
		name := e.Name()
		n, isGeneration := parseGeneration(name)
		switch {
		case name == currentName || name == currentName+newSuffix || name == lockName || isGeneration && n == g.n:
		case isGeneration, g.n > 0:
			g.litter = append(g.litter, filepath.Join(dir, name))
		}
		if isGeneration {
			g.next = max(g.next, n+1)
		}
	}
	return nil
}

func parseGeneration(name string) (n uint64, ok bool) {
	digits, ok := strings.CutPrefix(name, genPrefix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil && n > 0
}

// close gives the directory's lock back.
func (g generation) close() error {
	if g.lock == nil {
		return nil
	}
	return g.lock.Close()
}

func encodeCurrent(n uint64) []byte {
	b := fmt.Appendf(nil, "%s\n%016x\n", currentTitle, n)
	return fmt.Appendf(b, "%08x\n", crc32.Checksum(b, castagnoli))
}

// readCurrent is the generation in force; 0 without the file. A damaged one is corruption: generation 0 may
// have been removed, or be older than what this replica has acknowledged since.
func readCurrent(fsys fsx.FS, dir string) (uint64, error) {
	path := filepath.Join(dir, currentName)
	b, err := fsx.ReadFile(fsys, path, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(b) != currentBytes {
		return 0, fmt.Errorf("%w: %s has %d bytes, want %d", log.ErrCorrupt, path, len(b), currentBytes)
	}
	n, err := strconv.ParseUint(string(b[len(currentTitle)+1:len(currentTitle)+17]), 16, 64)
	if err != nil || n == 0 || string(b) != string(encodeCurrent(n)) {
		return 0, fmt.Errorf("%w: %s does not read as it was written", log.ErrCorrupt, path)
	}
	info, err := fsys.Stat(generationDir(dir, n))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return 0, fmt.Errorf("%w: %s names generation %d, which is not there", log.ErrCorrupt, path, n)
	}
	return n, err
}

func switchTo(fsys fsx.FS, dir string, n uint64) error {
	return fsx.WriteFile(fsys, filepath.Join(dir, currentName), encodeCurrent(n), 0o600)
}

// The pace at which litter is removed: a segment of the usual size, then a pause of this length.
// Removing large files holds up the file system's journal, and with it everybody's fsync.
const (
	sweepBytes = 64 << 20
	sweepPause = 50 * time.Millisecond
)

// sweep removes litter while the replica runs. Whatever stays, or comes back, the next start finds.
func (r *Replica) sweep(ctx context.Context) {
	defer close(r.swept)
	for _, path := range r.gen.litter {
		failpoint.Hit("partition/reset/remove")
		if err := removeSlowly(ctx, r.deps.FS, path); err != nil {
			if ctx.Err() == nil {
				r.logger.Warn("what an earlier generation left is not removed; the next start tries again", "path", path, "err", err)
			}
			return
		}
	}
}

// removeSlowly removes a file, or a directory with all that is in it.
func removeSlowly(ctx context.Context, fsys fsx.FS, path string) error {
	info, err := fsys.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if err := fsys.Remove(path); err != nil {
			return err
		}
		return pause(ctx, time.Duration(float64(sweepPause)*float64(info.Size())/sweepBytes))
	}
	entries, err := fsys.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeSlowly(ctx, fsys, filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return fsys.Remove(path)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
