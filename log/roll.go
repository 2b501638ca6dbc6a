package log

import (
	"fmt"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// Roll seals the active segment (durably) and starts the next one. state is kept in
// the new segment's start sidecar: it belongs to package partition and
// describes everything that a log ending here implies (producers,
// configuration). Without entries in the active segment it does nothing.
//
// A crash after the seal and before the next segment leaves a log whose last
// segment has a footer: Open takes the footer off and goes on there. A crash
// after it leaves an empty active segment.
func (l *Log) Roll(state []byte) error {
	defer l.announce()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	old := l.active()
	if old == nil || old.last < old.header.first {
		return nil
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if err := l.usable(); err != nil {
		return err // a Sync failed in the meantime
	}
	if err := l.writeOp.step(func() error { return l.sealActive(old) }); err != nil {
		return err
	}
	h := segHeader{first: old.last + 1, base: old.end, prevIndex: old.last, prevTerm: old.lastTerm, prevCRC: old.lastCRC}
	var g *segment
	err := l.writeOp.step(func() (err error) {
		g, err = l.createSegment(h, l.epochs, state, old.endPos >= l.segmentBytes()/2)
		return err
	})
	if err != nil {
		return l.fail("roll", err)
	}
	l.turnTo(old, g, append([]byte(nil), state...))
	return nil
}

// sealActive writes the footer and makes the whole segment durable: entries of
// the next segment may be acknowledged only on top of it.
func (l *Log) sealActive(g *segment) error {
	failpoint.Hit("log/roll/before")
	if err := l.writeFooter(g.file, g); err != nil {
		return l.fail("seal", err)
	}
	failpoint.Hit("log/roll/sealed")
	if err := l.acked.raise(g.last); err != nil {
		return l.fail("note the watermark of", err)
	}
	l.durable.Store(max(l.durable.Load(), uint64(g.last)))
	if err := l.saveIndex(g, g.index); err != nil {
		return l.fail("write the index of", err)
	}
	failpoint.Hit("log/roll/indexed")
	return nil
}

// writeFooter ends a segment's file, durably. The file is cut behind the
// footer: that is where Open looks for it.
func (l *Log) writeFooter(f fsx.File, g *segment) error {
	at := alignBlock(g.endPos)
	footer := g.footer()
	if n, err := f.WriteAt(footer.encode(), at); err != nil || n != blockBytes {
		return fmt.Errorf("%d of %d bytes: %w", n, blockBytes, orShort(err))
	}
	failpoint.Hit("log/roll/footer")
	if size, err := f.Size(); err != nil {
		return err
	} else if size != at+blockBytes {
		if err := f.Truncate(at + blockBytes); err != nil {
			return err
		}
	}
	return l.fsync(f)
}

func orShort(err error) error {
	if err == nil {
		return fmt.Errorf("short write")
	}
	return err
}

// turnTo makes g the active segment.
func (l *Log) turnTo(old, g *segment, state []byte) {
	l.mu.Lock()
	old.sealed = true
	old.ref.setIndex(old.index)
	old.index = nil
	l.segments = append(l.segments[:len(l.segments):len(l.segments)], g)
	l.state, l.replayFrom = state, g.header.first
	l.mu.Unlock()
	old.file = nil
	old.ref.unpin()
	l.metrics.rolled()
}
