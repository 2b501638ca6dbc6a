package statelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tidwall/wal"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

const (
	currentName  = "CURRENT"
	ackedName    = "acked"
	tornPrefix   = "torn-"
	keepTorn     = 8
	currentTitle = "tidemark statelog 1"
	// maxFile bounds what is read into memory at open. Owners take snapshots long before.
	maxFile = 2 << 30
)

// generation is one directory with one segment file of tidwall/wal and its watermark.
type generation struct {
	n     uint64
	first uint64 // index of the first entry that the file may hold
	dir   string
	wal   *wal.Log
	file  fsx.File // the same segment, for our own syncs
	acked fsx.File
	size  int64
}

func generationDir(dir string, n uint64) string {
	return filepath.Join(dir, fmt.Sprintf("g-%016x", n))
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d", first) }

// create makes an empty generation whose first entry will be first, and leaves
// it durable. tidwall/wal starts at an index other than 1 only where an empty file of that
// name is there already.
func create(fsys fsx.FS, parent string, n, first uint64) (*generation, error) {
	dir := generationDir(parent, n)
	// A crash may have left a half-written generation of this number.
	if err := fsys.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range []string{segmentName(first), ackedName} {
		f, err := fsys.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return nil, err
		}
	}
	failpoint.Hit("statelog/create/files")
	if err := fsys.SyncDir(dir); err != nil {
		return nil, err
	}
	if err := fsys.SyncDir(parent); err != nil {
		return nil, err
	}
	failpoint.Hit("statelog/create/durable")
	return attach(fsys, parent, n, first)
}

// attach opens a generation whose bytes were found sound.
func attach(fsys fsx.FS, parent string, n, first uint64) (*generation, error) {
	g := &generation{n: n, first: first, dir: generationDir(parent, n)}
	var err error
	// One file for ever: tidwall/wal does not sync what it does between files.
	g.wal, err = wal.Open(g.dir, &wal.Options{
		NoSync: true, SegmentSize: math.MaxInt, SegmentCacheSize: 1, NoCopy: true, AllowEmpty: true,
		DirPerms: 0o700, FilePerms: 0o600,
	})
	if err != nil {
		return nil, err
	}
	if g.file, err = fsys.OpenFile(filepath.Join(g.dir, segmentName(first)), os.O_RDWR, 0o600); err != nil {
		return nil, errors.Join(err, g.wal.Close())
	}
	if g.acked, err = fsys.OpenFile(filepath.Join(g.dir, ackedName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, errors.Join(err, g.wal.Close(), g.file.Close())
	}
	if g.size, err = g.file.Size(); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

// append writes frames that follow the last index, and syncs them.
func (g *generation) append(next uint64, frames [][]byte) error {
	var batch wal.Batch
	for i, f := range frames {
		batch.Write(next+uint64(i), f)
		g.size += int64(len(binary.AppendUvarint(nil, uint64(len(f)))) + len(f))
	}
	failpoint.Hit("statelog/append/before")
	if err := g.wal.WriteBatch(&batch); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	failpoint.Hit("statelog/append/written")
	if bug.On(bug.StatelogNoSync) {
		return g.acknowledge(next + uint64(len(frames)) - 1)
	}
	if err := g.file.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	failpoint.Hit("statelog/append/synced")
	return g.acknowledge(next + uint64(len(frames)) - 1)
}

// acknowledge notes what was made durable. The note itself is not synced: when it is
// older than the truth, only a little damage more counts as torn.
func (g *generation) acknowledge(last uint64) error {
	var b [20]byte
	binary.LittleEndian.PutUint64(b[0:], g.n)
	binary.LittleEndian.PutUint64(b[8:], last)
	binary.LittleEndian.PutUint32(b[16:], crc32.Checksum(b[:16], castagnoli))
	if _, err := g.acked.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("note what is durable: %w", err)
	}
	failpoint.Hit("statelog/append/acked")
	return nil
}

// readAcked returns 0 where the note is missing or damaged: it was never synced.
func readAcked(fsys fsx.FS, dir string, n uint64) uint64 {
	b, err := fsx.ReadFile(fsys, filepath.Join(dir, ackedName), 64)
	if err != nil || len(b) != 20 || binary.LittleEndian.Uint32(b[16:]) != crc32.Checksum(b[:16], castagnoli) ||
		binary.LittleEndian.Uint64(b) != n {
		return 0
	}
	return binary.LittleEndian.Uint64(b[8:])
}

func (g *generation) close() error {
	return errors.Join(g.wal.Close(), g.file.Close(), g.acked.Close())
}

// abandon closes what can be closed after a failure. tidwall/wal's Close would
// sync a second time, so its file is left to the end of the process.
func (g *generation) abandon() error { return errors.Join(g.file.Close(), g.acked.Close()) }

// segmentOf finds the one segment file of a generation.
func segmentOf(fsys fsx.FS, dir string) (name string, first uint64, err error) {
	names, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, fmt.Errorf("%s is missing: %w", dir, ErrCorrupt)
	}
	if err != nil {
		return "", 0, err
	}
	for _, d := range names {
		if d.Name() == ackedName {
			continue
		}
		index, err := strconv.ParseUint(d.Name(), 10, 64)
		if err != nil || d.Name() != segmentName(index) || index == 0 || name != "" {
			return "", 0, fmt.Errorf("%s holds %s, which does not belong there: %w", dir, d.Name(), ErrCorrupt)
		}
		name, first = d.Name(), index
	}
	if name == "" {
		return "", 0, fmt.Errorf("%s holds no segment: %w", dir, ErrCorrupt)
	}
	return name, first, nil
}

func writeCurrent(fsys fsx.FS, dir string, n uint64) error {
	line := fmt.Sprintf("%s\n%016x\n", currentTitle, n)
	sum := crc32.Checksum([]byte(line), castagnoli)
	return fsx.WriteFile(fsys, filepath.Join(dir, currentName), fmt.Appendf(nil, "%s%08x\n", line, sum), 0o600)
}

// readCurrent returns 0 where there is no CURRENT.
func readCurrent(fsys fsx.FS, dir string) (uint64, error) {
	b, err := fsx.ReadFile(fsys, filepath.Join(dir, currentName), 256)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) != 4 || lines[3] != "" {
		return 0, fmt.Errorf("%s: %w", currentName, ErrCorrupt)
	}
	if want := fmt.Sprintf("%08x", crc32.Checksum([]byte(lines[0]+"\n"+lines[1]+"\n"), castagnoli)); lines[2] != want {
		return 0, fmt.Errorf("%s: %w", currentName, ErrCorrupt)
	}
	if lines[0] != currentTitle {
		return 0, fmt.Errorf("%s says %q, this program knows %q: %w", currentName, lines[0], currentTitle, errs.New(errs.UnsupportedVersion, ""))
	}
	n, err := strconv.ParseUint(lines[1], 16, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s: %w", currentName, ErrCorrupt)
	}
	return n, nil
}
