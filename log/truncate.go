package log

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
)

// TruncateSuffix removes the entries from i on, durably: the acknowledged
// watermark is lowered first. It returns the start state of the segment that is active now and
// the index of that segment's first entry: the caller rebuilds its state from there.
//
// At or below the commit index it poisons the log: such entries were
// acknowledged, and a leader that asks for it must not be obeyed.
func (l *Log) TruncateSuffix(i Index) (state []byte, replayFrom Index, err error) {
	defer l.announce()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if err := l.writable(); err != nil {
		return nil, 0, err
	}
	a := l.active()
	if a == nil || i > a.last || i < l.segments[0].header.first {
		return nil, 0, fmt.Errorf("%w: truncate from %d on, the log holds [%d,%d]", ErrInvalid, i, l.FirstIndex(), l.LastIndex())
	}
	if i <= l.commit {
		return nil, 0, l.fail("truncate", fmt.Errorf("from index %d on, but %d is committed", i, l.commit))
	}
	if err := l.writeOp.step(func() error { return l.truncate(i) }); err != nil {
		return nil, 0, l.fail("truncate", err)
	}
	return l.state, l.replayFrom, nil
}

// truncate works from the end backwards, and each step is durable before the
// next, so that a crash leaves a log that is whole, only longer:
//
//  1. The watermark goes down first. Otherwise a crash in the middle looks like
//     the loss of acknowledged entries.
//  2. Segments that begin above i go, the newest first; if an older name went
//     first and a newer one survived, there would be a hole.
//  3. The segment that holds i is cut and synced before anything is appended: new
//     frames that reached the disk without the cut would stand before old ones.
func (l *Log) truncate(i Index) error {
	failpoint.Hit("log/truncate/before")
	if !bug.On(bug.WatermarkNotLowered) {
		if err := l.acked.lower(i - 1); err != nil {
			return err
		}
	}
	l.durable.Store(min(l.durable.Load(), uint64(i-1)))
	failpoint.Hit("log/truncate/lowered")
	l.changes.Add(1)
	segments := l.segments
	for len(segments) > 1 && segments[len(segments)-1].header.first > i {
		g := segments[len(segments)-1]
		if err := l.removeSegment(g); err != nil {
			return err
		}
		if err := l.fs.SyncDir(l.dir); err != nil {
			return err
		}
		failpoint.Hit("log/truncate/removed")
		segments = segments[:len(segments)-1]
	}
	p, err := l.replayPoint(segments)
	if err != nil {
		return err
	}
	g, err := l.cutSegment(segments[len(segments)-1], i, &p.epochs)
	if err != nil {
		return err
	}
	l.install(segments[:len(segments)-1:len(segments)-1], g, p)
	return nil
}

// cutSegment builds the segment that ends before i. It reads the segment again, from its
// start: truncations are rare, and this is the one way to be sure of the chain.
func (l *Log) cutSegment(old *segment, i Index, epochs *epochTable) (*segment, error) {
	f := old.file
	if f == nil {
		var err error
		if f, err = l.fs.OpenFile(old.path+logSuffix, os.O_RDWR, filePerm); err != nil {
			return nil, err
		}
	}
	g := newSegment(l.dir, old.header)
	g.file = f
	if err := l.scanBefore(g, i, epochs); err != nil {
		return nil, err
	}
	// Whole blocks go first. A cut inside a block is two changes on the disk, and XFS makes them in
	// this order: zeros to the block's end, then the size. A power cut between them would leave
	// entries from i on missing, and behind them some that knew them to be durable.
	for _, size := range []int64{alignBlock(g.endPos), g.endPos} {
		if err := f.Truncate(size); err != nil {
			return nil, err
		}
		failpoint.Hit("log/truncate/cut")
		if err := l.fsync(f); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// scanBefore takes the frames before i into g.
func (l *Log) scanBefore(g *segment, i Index, epochs *epochTable) error {
	w, err := newWindow(g.file)
	if err != nil {
		return err
	}
	for pos := int64(blockBytes); g.last+1 < i; {
		b, err := w.bytes(pos, frameHeaderBytes)
		if err != nil {
			return err
		}
		if h := peek(b); h.length == 0 && pos%blockBytes != 0 {
			pos = alignBlock(pos)
			continue
		}
		note := func(f *frame) { epochs.note(f.term, f.base) }
		if pos, err = nextFrame(w, g, pos, l.cfg.IndexIntervalBytes, note); err != nil {
			return corruptf("segment %s: %w", g.path, err)
		}
	}
	return nil
}

// install makes g, which replaces what was cut, the active segment. Readers of
// the old one find out by the count of changes.
func (l *Log) install(sealed []*segment, g *segment, p replayPoint) {
	gone := l.segments[len(sealed):]
	if gone[0].file == g.file {
		g.ref = gone[0].ref
	} else {
		l.adopt(g, g.file)
	}
	l.mu.Lock()
	l.changes.Add(1)
	l.segments = append(sealed, g)
	l.epochs, l.state, l.replayFrom = p.epochs, p.state, p.from
	l.last.Store(uint64(g.last))
	l.end.Store(int64(g.end))
	l.mu.Unlock()
	l.ahead.drop()
	for _, old := range gone {
		l.cfg.Budget.drop(old.tail)
		if old.ref != g.ref {
			old.ref.abandon(nil) // closes the file after its last reader
		}
	}
}

// removeSegment unlinks a segment's files; the caller syncs the directory. The data goes
// first: a sidecar alone is litter, a segment without its sidecar is not.
func (l *Log) removeSegment(g *segment) error {
	for _, suffix := range []string{logSuffix, indexSuffix, startSuffix} {
		if err := l.fs.Remove(g.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
