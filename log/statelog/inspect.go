package statelog

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// Report is what Inspect found in a state log's directory.
type Report struct {
	Generation  uint64
	First, Last uint64 // Last is First-1 when there is no entry
	Bytes       int64
	// TailBytes are bytes behind the last valid entry that were never
	// acknowledged: a write under way, or one that a crash tore. Open cuts them.
	TailBytes int64
}

// inspections is how often damage must be seen to be believed: a running broker
// may switch to another generation while it is read.
const inspections = 3

// Inspect checks every entry of a state log. It changes nothing and takes no lock.
func Inspect(fsys fsx.FS, dir string) (r Report, err error) {
	for range inspections {
		if r, err = inspect(fsys, dir); err == nil {
			return r, nil
		}
	}
	return r, fmt.Errorf("state log %s: %w", dir, err)
}

func inspect(fsys fsx.FS, dir string) (r Report, err error) {
	if r.Generation, err = readCurrent(fsys, dir); err != nil {
		return r, err
	}
	if r.Generation == 0 {
		return r, (&Log{cfg: Config{Dir: dir, FS: fsys}}).expectNoData()
	}
	gen := generationDir(dir, r.Generation)
	name, first, err := segmentOf(fsys, gen)
	if err != nil {
		return r, err
	}
	// The note is read before the entries: whatever it says was written by then.
	acked := readAcked(fsys, gen, r.Generation)
	b, err := fsx.ReadFile(fsys, filepath.Join(gen, name), maxFile)
	if err != nil {
		return r, err
	}
	s := scan(b, first, r.Generation)
	r.First, r.Last, r.Bytes, r.TailBytes = first, s.last, int64(s.good), int64(len(b)-s.good)
	if certain := max(acked, s.proof); s.last < certain {
		return r, errors.Join(ErrCorrupt, fmt.Errorf("entry %d is damaged or missing, and entries up to %d were acknowledged", s.last+1, certain))
	}
	return r, nil
}
