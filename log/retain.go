package log

import (
	"errors"
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// SetStart advances the log start offset, durably. Whole segments below it
// go at the next Retain. An offset at or below the log start changes nothing.
func (l *Log) SetStart(o record.Offset) error {
	defer l.announce()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if o <= l.StartOffset() {
		return nil
	}
	if end := l.EndOffset(); o > end {
		return fmt.Errorf("set log start to %d, the log ends at %d: %w", o, end, ErrOutOfRange)
	}
	// The log start is on disk at once. Were the records below it lost after that, the log would
	// go on below its own start, where nothing can be read.
	if err := l.syncAll(); err != nil {
		return err
	}
	return l.setStart(o, l.FirstIndex())
}

// setStart writes the file first: what was out of range once must stay so.
func (l *Log) setStart(o record.Offset, kept Index) error {
	failpoint.Hit("log/start/before")
	if err := l.writeOp.step(func() error { return writeLogStart(l.fs, l.dir, l.cfg.owner(), logStart{o, kept}) }); err != nil {
		return l.fail("write the log start of", err)
	}
	failpoint.Hit("log/start/after")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start = max(l.start, o)
	return nil
}

// Retain gives up whole sealed segments that are too old, too many, or below
// the log start, never beyond the index barrier (the least of high watermark,
// checkpoint and leases). It returns how many. It also gives back the memory of
// the read-ahead, and of the tail when nothing was written since the last call,
// so it is called regularly.
func (l *Log) Retain(barrier Index) (int, error) {
	defer l.announce()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.writable(); err != nil {
		return 0, err
	}
	l.ahead.drop()
	l.dropIdleTail()
	n := l.expired(barrier)
	if n == 0 {
		return 0, nil
	}
	return n, l.giveUp(n)
}

// expired counts the segments at the front that may go. Callers hold appendMu.
func (l *Log) expired(barrier Index) int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	now := l.age.now(l.cfg.Clock.Now(), clock.Since(l.opened), l.cfg.ClockGrace)
	var total int64
	for _, g := range l.segments {
		total += alignBlock(g.endPos)
	}
	n := 0
	for k := 0; k+1 < len(l.segments); k++ {
		g := l.segments[k]
		size := alignBlock(g.endPos)
		tooOld := l.retention.Age >= 0 && now.Sub(g.youngest()) > l.retention.Age
		tooMuch := l.retention.Bytes >= 0 && total-size >= l.retention.Bytes
		if g.last > barrier || !(tooOld || tooMuch || g.end <= l.start) {
			break
		}
		total -= size
		n++
	}
	return n
}

// youngest is when a segment's newest record was made: its largest timestamp,
// but not later than it was appended, so that a timestamp from the far future
// does not keep a segment for ever.
func (g *segment) youngest() time.Time {
	ms := g.appendedAt
	if g.maxTime >= 0 && (g.maxTime < ms || ms == 0) {
		ms = g.maxTime
	}
	return time.UnixMilli(ms)
}

// giveUp removes the n oldest segments:
//
//  1. The log start and the first kept index are written, durably. From now on
//     whatever is left of the segments is litter: a crash may bring any of
//     their names back, and Open removes them again.
//  2. Readers stop finding the segments; those that read already keep the file.
//  3. The names go, and the directory is synced.
func (l *Log) giveUp(n int) error {
	gone, kept := l.segments[:n], l.segments[n]
	if err := l.setStart(max(l.StartOffset(), kept.header.base), kept.header.first); err != nil {
		return err
	}
	l.mu.Lock()
	l.changes.Add(2)
	l.segments = append([]*segment(nil), l.segments[n:]...)
	l.epochs.trim(l.start)
	l.mu.Unlock()
	err := l.writeOp.step(func() (failed error) {
		for _, g := range gone {
			failpoint.Hit("log/retain/remove")
			l.cfg.Budget.drop(g.tail)
			failed = errors.Join(failed, l.retire(g))
			l.metrics.retired()
		}
		return errors.Join(failed, l.fs.SyncDir(l.dir))
	})
	if err != nil {
		return l.fail("remove segments from", err)
	}
	failpoint.Hit("log/retain/done")
	return nil
}
