package partition

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log"
)

// A replica's log and checkpoint lie in a generation: a directory that is never changed back into
// what it was before. Generation 0 is the replica's own directory; a reset makes the next one in a
// directory below, whole and synced, and only then has CURRENT name it. Whatever CURRENT does not
// name is litter. docs/format/partition.md draws both.
const (
	currentName  = "CURRENT"
	currentTitle = "tidemark replica 1"
	currentBytes = len(currentTitle) + 1 + 16 + 1 + 8 + 1
	genPrefix    = "g-"
	lockName     = "LOCK"
)

// generation is the directory that a replica runs on.
type generation struct {
	n    uint64
	dir  string
	lock io.Closer // of the replica's directory; nil for generation 0, whose log holds it
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

// openGeneration finds the generation in force and removes what a crash, or the switch to it, left of
// others. The caller closes the lock after the log.
func openGeneration(fsys fsx.FS, dir string) (g generation, err error) {
	if _, err := fsys.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return generation{dir: dir}, nil
	}
	lock, err := fsys.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return g, err
	}
	n, err := readCurrent(fsys, dir)
	if err == nil {
		err = tidyGenerations(fsys, dir, n)
	}
	if err != nil {
		return g, errors.Join(err, lock.Close())
	}
	g = generation{n: n, dir: generationDir(dir, n), lock: lock}
	if n == 0 {
		g.lock = nil
		return g, lock.Close()
	}
	return g, nil
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

// tidyGenerations removes what belongs to no generation, or to another than n.
//
// A process that died between the rename of CURRENT and the sync behind it leaves a switch that a
// power cut may take back. As long as anything of another generation is there, the
// switch is made once more, so that nothing goes, and nothing is acknowledged, before it is durable.
func tidyGenerations(fsys fsx.FS, dir string, n uint64) error {
	litter, err := litterOf(fsys, dir, n)
	if err != nil || len(litter) == 0 && n == 0 {
		return err
	}
	if n > 0 && len(litter) > 0 {
		if err := switchTo(fsys, dir, n); err != nil {
			return err
		}
	}
	for _, name := range litter {
		failpoint.Hit("partition/reset/remove")
		if err := fsys.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return fsys.SyncDir(dir)
}

// litterOf lists what another generation than n left. The directory is the replica's alone, so
// next to a later generation everything else is generation 0's.
func litterOf(fsys fsx.FS, dir string, n uint64) (litter []string, err error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	current := filepath.Base(generationDir(dir, n))
	for _, e := range entries {
		name := e.Name()
		switch {
		case name == currentName || name == lockName || n > 0 && name == current:
		case n > 0, e.IsDir() && strings.HasPrefix(name, genPrefix), name == currentName+".new":
			litter = append(litter, name)
		}
	}
	return litter, nil
}
