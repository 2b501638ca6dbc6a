package log

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sort"
	"strings"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// repairTail cuts what follows the valid frames when it was never
// acknowledged, and refuses to when it was or when nobody can tell.
func (l *Log) repairTail(g *segment, end scanEnd, known bool, found *Recovery) error {
	if end.footer {
		// A crash in Roll, after the seal and before the next segment: go on here.
		if err := g.file.Truncate(g.endPos); err != nil {
			return err
		}
		return l.fsync(g.file)
	}
	// Also behind a clean end, and also when all that the watermark knows is
	// there: the watermark is not synced, and a write that got lost leaves zeros.
	rest, err := lookBehind(g.file, g, g.endPos)
	if err != nil {
		return err
	}
	if end.why == nil && !rest.ours {
		if !known || !l.acked.cut {
			return nil
		}
		if err := g.file.Truncate(g.endPos); err != nil {
			return err
		}
		return l.fsync(g.file)
	}
	where := fmt.Errorf("segment %s at %d: %w", filepath.Base(g.path), g.endPos, orClean(end.why))
	switch {
	case bug.On(bug.TruncateCorrupt):
	case rest.synced > g.last:
		return corruptf("%w: entries from %d on are damaged, a later frame knew %d to be durable", where, g.last+1, rest.synced)
	case !known:
		return corruptf("%w: and the watermark is missing or damaged, so nobody can tell whether this was acknowledged", where)
	}
	return l.cutTail(g, rest.end, where, found)
}

// cutTail keeps the cut bytes aside first, then cuts, durably: later frames must not
// come to stand before old ones.
func (l *Log) cutTail(g *segment, until int64, why error, found *Recovery) error {
	found.Repaired, found.CutBytes = true, max(until-g.endPos, 0)
	l.keepAside(g, until)
	if err := l.acked.lower(g.last); err != nil {
		return err
	}
	failpoint.Hit("log/recover/cut")
	if err := g.file.Truncate(g.endPos); err != nil {
		return err
	}
	if err := l.fsync(g.file); err != nil {
		return err
	}
	l.metrics.repairedTail(found.CutBytes)
	l.logger.Warn("torn tail was cut; nothing in it was acknowledged", "dir", l.dir, "last_index", g.last,
		"cut_bytes", found.CutBytes, "why", why)
	return nil
}

const (
	asideSuffix = ".cut"
	asideFiles  = 3
	asideBytes  = 4 << 20
)

// keepAside copies the bytes that are about to be cut to a file for people to
// look at. At most three files of at most 4 MiB are kept; a failure is only logged.
func (l *Log) keepAside(g *segment, until int64) {
	b := make([]byte, max(min(until-g.endPos, asideBytes), 0))
	n, err := g.file.ReadAt(b, g.endPos)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil {
		name := fmt.Sprintf("%s-%012d%s", g.path, g.endPos, asideSuffix)
		err = writeDurably(l.fs, name, b[:n])
	}
	if err == nil {
		err = l.thinAside()
	}
	if err != nil {
		l.logger.Warn("cut bytes were not kept aside", "dir", l.dir, "err", err)
	}
}

func (l *Log) thinAside() error {
	entries, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), asideSuffix) {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	for len(names) > asideFiles {
		if err := l.fs.Remove(filepath.Join(l.dir, names[0])); err != nil {
			return err
		}
		names = names[1:]
	}
	return nil
}

// settle makes the frames durable that no fsync is known to have covered. They
// are written once more first: after a failed fsync the kernel may hold them as
// clean pages that never reached the disk, and a mere fsync would say nothing. And
// the kernel must forget these pages before: see fsx.Evict.
func (l *Log) settle(g *segment, from int64) error {
	if from == 0 || from >= g.endPos {
		return nil
	}
	if err := l.fsync(g.file); err != nil {
		return err // only clean pages can be forgotten
	}
	from -= from % blockBytes
	b := make([]byte, min(coldAhead, alignBlock(g.endPos)-from))
	for pos := from; pos < g.endPos; {
		n := min(int64(len(b)), g.endPos-pos)
		if _, err := g.file.ReadAt(b[:n], pos); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := fsx.Evict(g.file, pos, alignBlock(n)); err != nil {
			return err
		}
		if _, err := g.file.WriteAt(b[:n], pos); err != nil {
			return err
		}
		pos += n
	}
	return l.fsync(g.file)
}
