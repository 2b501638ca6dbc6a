package log

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/bug"
)

// recoverSegments checks the chain of segments, takes the last one apart, and
// finds the state from which the caller goes on.
func (l *Log) recoverSegments(files map[string]bool, begin logStart, known bool, found *Recovery) error {
	if err := l.dropUnborn(files); err != nil || len(l.segments) == 0 {
		return err
	}
	if h := l.segments[0].header; h.prevIndex != 0 && h.first != begin.kept {
		return corruptf("the log begins with index %d, and nothing says that the entries before it were given up", h.first)
	}
	sealed := l.segments[:len(l.segments)-1]
	for k, g := range sealed {
		if err := l.checkSealed(g, l.segments[k+1], files, found); err != nil {
			return err
		}
	}
	for k, g := range l.segments[1:] {
		if err := g.linked(l.segments[k]); err != nil {
			return corruptf("%w: a segment is missing or was replaced", err)
		}
	}
	if err := l.recoverActive(known, found); err != nil {
		return err
	}
	for _, g := range l.segments {
		found.Commit = max(found.Commit, g.commit)
	}
	found.Commit = min(found.Commit, l.LastIndex())
	l.commit = found.Commit
	l.start = max(l.start, l.segments[0].header.base)
	l.epochs.trim(l.start)
	return nil
}

// dropUnborn removes a last segment whose creation a crash cut short: its
// sidecar's name did not survive, so it never got entries. The segment before it is active again.
func (l *Log) dropUnborn(files map[string]bool) error {
	g := l.active()
	if files[filepath.Base(g.path)+startSuffix] {
		return nil
	}
	if len(l.segments) == 1 && g.header.prevIndex != 0 {
		return nil // retention took what came before: it was finished then, and the sidecar is missing since
	}
	f, err := l.fs.OpenFile(g.path+logSuffix, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	b := make([]byte, frameHeaderBytes)
	n, err := f.ReadAt(b, blockBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	used := peek(b[:n]).use == uint32(g.header.salt)
	if used || l.acked != nil && l.acked.index >= g.header.first {
		return nil // it had entries: the sidecar went missing later
	}
	if err := l.removeSegment(g); err != nil {
		return err
	}
	l.segments = l.segments[:len(l.segments)-1]
	return l.fs.SyncDir(l.dir)
}

// checkSealed believes a footer that fits the next segment's header; the frames are
// checked when they are read. Without one, it reads all of them.
func (l *Log) checkSealed(g, next *segment, files map[string]bool, found *Recovery) error {
	g.ref = l.cfg.Files.newRef(l.fs, g.path+logSuffix)
	footer, err := readFooter(l, g)
	if err == nil && footer.salt == g.header.salt {
		g.setFooter(footer)
		if files[filepath.Base(g.path)+indexSuffix] {
			return nil
		}
		found.IndexesRebuilt++
		_, err := l.indexOf(view{g: g})
		return err
	}
	found.IndexesRebuilt++
	return l.reseal(g, next, err)
}

func readFooter(l *Log, g *segment) (segFooter, error) {
	f, err := g.ref.acquire()
	if err != nil {
		return segFooter{}, err
	}
	defer g.ref.release()
	size, err := f.Size()
	if err != nil {
		return segFooter{}, err
	}
	b := make([]byte, blockBytes)
	if size < 2*blockBytes || size%blockBytes != 0 {
		return segFooter{}, fmt.Errorf("%d bytes", size)
	}
	if _, err := f.ReadAt(b, size-blockBytes); err != nil && !errors.Is(err, io.EOF) {
		return segFooter{}, err
	}
	footer, err := decodeFooter(b)
	if err == nil && alignBlock(footer.endPos) != size-blockBytes {
		err = fmt.Errorf("footer for a segment that ends at %d", footer.endPos)
	}
	return footer, err
}

// reseal writes the footer of a sealed segment anew when its frames are whole:
// all of them were durable before the next segment was made.
func (l *Log) reseal(g, next *segment, why error) error {
	f, err := l.fs.OpenFile(g.path+logSuffix, os.O_RDWR, filePerm)
	if err != nil {
		return err
	}
	end, err := scan(f, g, l.cfg.IndexIntervalBytes, nil)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if err := next.linked(g); err != nil {
		return errors.Join(corruptf("segment %s at %d: %w: %w", filepath.Base(g.path), end.pos, errors.Join(why, end.why), err), f.Close())
	}
	l.metrics.indexRebuilt()
	l.logger.Warn("segment footer was written anew", "segment", g.path, "why", why)
	index := g.index
	g.index, g.sealed = nil, true
	if err := errors.Join(l.writeFooter(f, g), f.Close()); err != nil {
		return err
	}
	return l.saveIndex(g, index)
}

// recoverActive scans the last segment, decides about its tail, and makes
// everything that is kept durable.
func (l *Log) recoverActive(known bool, found *Recovery) error {
	g := l.active()
	f, err := l.fs.OpenFile(g.path+logSuffix, os.O_RDWR, filePerm)
	if err != nil {
		return err
	}
	l.adopt(g, f)
	p, err := l.replayPoint(l.segments)
	if err != nil {
		return err
	}
	l.state, l.replayFrom, l.epochs = p.state, p.from, p.epochs
	var acked Index
	if l.acked != nil {
		acked = l.acked.index
	}
	unsure := int64(0) // where the frames begin that no fsync is known to have covered
	end, err := scan(f, g, l.cfg.IndexIntervalBytes, func(fr *frame) {
		l.epochs.note(fr.term, fr.base)
		if fr.index > acked && unsure == 0 {
			unsure = fr.pos
		}
	})
	if err != nil {
		return err
	}
	l.last.Store(uint64(g.last))
	l.end.Store(int64(g.end))
	if g.last < acked && !bug.On(bug.TruncateCorrupt) {
		return corruptf("segment %s at %d: the log ends with index %d, entries up to %d were acknowledged: %w",
			filepath.Base(g.path), end.pos, g.last, acked, orClean(end.why))
	}
	if err := l.repairTail(g, end, known, found); err != nil {
		return err
	}
	if err := l.settle(g, unsure); err != nil {
		return err
	}
	l.durable.Store(uint64(g.last))
	if l.acked != nil {
		return l.acked.raise(g.last)
	}
	return nil
}

func orClean(err error) error {
	if err == nil {
		return errors.New("nothing follows")
	}
	return err
}

// replayPoint is where a caller begins to rebuild its state.
type replayPoint struct {
	state  []byte
	from   Index
	epochs epochTable // at the end of the segments before the last one
}

// replayPoint reads the start sidecar of the last of segments, or, when it is
// missing or damaged, the newest one before it: the caller replays from there.
func (l *Log) replayPoint(segments []*segment) (replayPoint, error) {
	var all []error
	for k := len(segments) - 1; k >= 0; k-- {
		from := segments[k]
		s, err := readStart(l, from)
		if unread(err) {
			return replayPoint{}, err
		}
		if err != nil {
			all = append(all, err)
			if k > 0 || from.header.prevIndex != 0 {
				continue
			}
			s = startState{} // the beginning of the log implies nothing
		}
		if len(all) > 0 {
			l.logger.Warn("start sidecar is missing or damaged; replaying from an older one", "dir", l.dir,
				"first_index", from.header.first, "err", errors.Join(all...))
		}
		p := replayPoint{s.state, from.header.first, s.epochs}
		return p, l.noteEpochs(segments[k:len(segments)-1], &p.epochs)
	}
	return replayPoint{}, corruptf("segment %s: %w", filepath.Base(segments[len(segments)-1].path), errors.Join(all...))
}

func readStart(l *Log, g *segment) (startState, error) {
	b, err := readSmall(l.fs, g.path+startSuffix, startMagic, l.cfg.owner())
	if err == nil && b == nil {
		err = os.ErrNotExist
	}
	var s startState
	if err == nil {
		s, err = decodeStart(b)
	}
	if err == nil && s.first != g.header.first {
		err = fmt.Errorf("start sidecar is of a segment from %d on", s.first)
	}
	return s, err
}

// noteEpochs reads sealed segments for the terms that begin in them.
func (l *Log) noteEpochs(segments []*segment, epochs *epochTable) error {
	for _, g := range segments {
		f, err := g.ref.acquire()
		if err != nil {
			return err
		}
		end, err := scan(f, newSegment(l.dir, g.header), l.cfg.IndexIntervalBytes, func(fr *frame) { epochs.note(fr.term, fr.base) })
		g.ref.release()
		if err != nil {
			return err
		}
		if end.why != nil {
			return corruptf("segment %s at %d: %w", filepath.Base(g.path), end.pos, end.why)
		}
	}
	return nil
}

// ActiveState returns the start sidecar's state of the active segment and the
// index from which the caller replays to rebuild its state after Open. (After
// damage to the sidecar it is that of an older segment.)
func (l *Log) ActiveState() (state []byte, replayFrom Index) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.state, l.replayFrom
}
