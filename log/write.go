package log

import (
	"fmt"
	"math"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// maxSegmentFile bounds a segment that nobody rolls.
const maxSegmentFile = math.MaxUint32

// Write appends entries to the active segment without making them durable.
// Indexes must follow LastIndex without a gap (any first index when the log is empty).
// commit is the commit index known now, to be carried by the frames.
// Afterwards the entries are readable by Entry; Read is bounded by its caller.
// The batches are copied once; the entries' memory is not kept.
//
// ErrInvalid means that nothing was written. Any other error poisons the log.
func (l *Log) Write(entries []Entry, commit Index) error {
	if len(entries) == 0 {
		return nil
	}
	defer l.announce()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	size, err := l.checkEntries(entries)
	if err != nil {
		return err
	}
	if l.active() == nil {
		// Only the first Write of a log creates a segment; later ones come from Roll.
		if err := l.writeOp.step(func() error { return l.createFirst(entries[0]) }); err != nil {
			return l.fail("create the first segment in", err)
		}
	}
	return l.writeFrames(entries, commit, size)
}

// writable says why a change is refused. Callers hold appendMu.
func (l *Log) writable() error {
	if err := l.usable(); err != nil {
		return err
	}
	if l.closed.Load() {
		return ErrClosed
	}
	return nil
}

// checkEntries refuses what must never reach the disk and adds up the bytes.
func (l *Log) checkEntries(entries []Entry) (size int64, err error) {
	next, end, term := l.LastIndex()+1, l.EndOffset(), Term(0)
	if a := l.active(); a != nil {
		term = a.lastTerm
	} else {
		next, end = entries[0].Index, entries[0].BaseOffset
	}
	for k := range entries {
		e := &entries[k]
		if e.Index != next || e.Index == 0 || e.Term < term || e.BaseOffset != end || e.BaseOffset < 0 {
			return 0, fmt.Errorf("%w: index %d, term %d, base offset %d; the log wants index %d, a term from %d on, base offset %d",
				ErrInvalid, e.Index, e.Term, e.BaseOffset, next, term, end)
		}
		if e.MetaBytes < 0 || e.MetaBytes > len(e.Body) || len(e.Body) > maxFrameBytes-frameHeaderBytes {
			return 0, fmt.Errorf("%w: index %d: body of %d bytes with %d meta bytes", ErrInvalid, e.Index, len(e.Body), e.MetaBytes)
		}
		if e.Verdict == Accepted {
			if err := batchSane(e.Body[e.MetaBytes:]); err != nil {
				return 0, fmt.Errorf("%w: index %d: %w", ErrInvalid, e.Index, err)
			}
			end += record.Offset(record.Raw(e.Body[e.MetaBytes:]).LastOffsetDelta()) + 1
		}
		next, term = next+1, e.Term
		size += alignFrame(frameHeaderBytes + int64(len(e.Body)))
	}
	if end < 0 || size > math.MaxInt32 {
		return 0, fmt.Errorf("%w: %d bytes in one write, end offset %d", ErrInvalid, size, end)
	}
	if a := l.active(); a != nil && alignBlock(a.endPos)+size > maxSegmentFile {
		return 0, fmt.Errorf("%w: the segment must be rolled first", ErrInvalid)
	}
	return size, nil
}

// writeFrames encodes the entries where they will stand in the file, writes
// them with one call and then lets readers see them.
func (l *Log) writeFrames(entries []Entry, commit Index, size int64) error {
	g := l.active()
	pos := alignBlock(g.endPos)
	buf := l.room(g, pos, int(alignBlock(size)))
	frames := l.encode(buf, g, pos, entries, commit)

	failpoint.Hit("log/write/before")
	begin := clock.Monotonic()
	l.writeOp.Begin()
	n, err := g.file.WriteAt(buf, pos)
	l.writeOp.End()
	if err == nil && n != len(buf) {
		err = fmt.Errorf("short write: %d of %d bytes", n, len(buf))
	}
	if err != nil {
		return l.fail("write to", err)
	}
	failpoint.Hit("log/write/after")
	l.metrics.wrote(len(entries), len(buf), clock.Since(begin))
	l.cfg.Space.wrote(int64(len(buf)))
	l.publish(g, frames, commit)
	return nil
}

// encode stamps the batches and copies the entries into buf, the only copy on
// their way to the disk. The zeros that end the last block are there already.
func (l *Log) encode(buf []byte, g *segment, pos int64, entries []Entry, commit Index) []frame {
	frames := l.frames[:0]
	if cap(frames) < len(entries) {
		frames = make([]frame, 0, len(entries))
	}
	prev, synced, at := g.lastCRC, l.Durable(), int64(0)
	for k := range entries {
		e := &entries[k]
		if e.Verdict == Accepted {
			batch := record.Raw(e.Body[e.MetaBytes:])
			batch.SetBaseOffset(e.BaseOffset)
			batch.SetLeaderEpoch(record.Epoch(e.Term))
		}
		h := frameHeader{
			length: uint32(frameHeaderBytes + len(e.Body)), use: uint32(g.header.salt), prev: prev,
			index: e.Index, term: e.Term, base: e.BaseOffset, commit: commit, synced: synced,
			appendedAt: e.AppendedAt, metaBytes: uint32(e.MetaBytes), kind: e.Type, verdict: e.Verdict,
		}
		b := buf[at:]
		copy(b[frameHeaderBytes:h.length], e.Body)
		prev = h.put(b, g.seed)
		frames = append(frames, frame{frameHeader: h, pos: pos + at, body: b[frameHeaderBytes:h.length:h.length]})
		at += alignFrame(int64(h.length))
	}
	l.frames = frames[:0]
	return frames
}

// publish makes frames that are in the file visible to readers.
func (l *Log) publish(g *segment, frames []frame, commit Index) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range frames {
		l.epochs.note(frames[k].term, frames[k].base)
		g.note(&frames[k], l.cfg.IndexIntervalBytes)
	}
	l.commit = max(l.commit, min(commit, g.last))
	l.last.Store(uint64(g.last))
	l.end.Store(int64(g.end))
	clear(frames) // they point into a chunk
}

// Sync makes all that was written durable and advances Durable. Any error of
// Write or Sync poisons the log: every later change fails with it. There is
// never a second fsync: the kernel may report the first failure and forget it.
func (l *Log) Sync() error {
	defer l.announce()
	return l.syncAll()
}

func (l *Log) syncAll() error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	l.mu.RLock()
	g := l.active()
	last := l.LastIndex()
	l.mu.RUnlock()
	if g == nil || last <= l.Durable() {
		return nil
	}
	return l.syncSegment(g, last)
}

// syncSegment makes g durable up to the entry last. Callers hold syncMu; last was written
// before the call, so the fsync covers it.
func (l *Log) syncSegment(g *segment, last Index) error {
	if g.file == nil {
		return ErrClosed
	}
	failpoint.Hit("log/sync/before")
	if err := l.fsync(g.file); err != nil {
		return l.fail("sync", err)
	}
	failpoint.Hit("log/sync/after")
	// A crash between fsync and watermark leaves the watermark low. That errs
	// to the side of "torn", and nobody was told about these entries yet.
	if err := l.syncOp.step(func() error { return l.acked.raise(last) }); err != nil {
		return l.fail("note the watermark of", err)
	}
	failpoint.Hit("log/watermark/after")
	l.durable.Store(max(l.durable.Load(), uint64(last)))
	return nil
}

// fsync is the one place that syncs segments.
func (l *Log) fsync(f interface{ Sync() error }) error {
	l.cfg.Syncs.acquire()
	defer l.cfg.Syncs.release()
	begin := clock.Monotonic()
	l.syncOp.Begin()
	var err error
	if !bug.On(bug.NoSync) {
		err = f.Sync()
	}
	if err != nil && bug.On(bug.RetryFsync) {
		err = f.Sync()
	}
	l.syncOp.End()
	l.metrics.synced(clock.Since(begin))
	return err
}
