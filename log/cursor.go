package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

const (
	coldRead  = 64 << 10  // the first read of a lookup
	coldNext  = 256 << 10 // what is read ahead once reads turn out to be in order
	coldAhead = 1 << 20   // the most that is read at once for small frames
)

// view is what a reader knows of a segment: its state at one moment.
type view struct {
	g       *segment
	end     int64 // of the last frame
	tail    []*chunk
	index   []indexEntry // nil for a sealed segment
	changes uint64       // how often segments had been cut or given up by then
}

// viewLocked snapshots a segment. Callers hold mu.
func (l *Log) viewLocked(g *segment) view {
	return view{g: g, end: g.endPos, tail: g.tail, index: g.index, changes: l.changes.Load()}
}

// cursor walks over a segment's frames: through memory where the tail still has them,
// through the file elsewhere. What it returns stays valid; buffers are not reused.
type cursor struct {
	l *Log
	view
	pos  int64
	want int // how much to read at once
	buf  []byte
	at   int64 // position of buf in the file
	next Index // expected index, 0 for any
}

// errEnd says that the segment has no more frames.
var errEnd = errors.New("end of segment")

// frame returns the frame at the cursor and moves behind it. A frame from the
// disk is checked; one from memory was just written.
func (c *cursor) frame() (frame, error) {
	for c.pos < c.end {
		b, _, err := c.bytes(8)
		if err != nil {
			return frame{}, err
		}
		length := binary.LittleEndian.Uint32(b[4:])
		if length == 0 && c.pos%blockBytes != 0 {
			c.pos = alignBlock(c.pos)
			continue
		}
		if !lengthSane(length) || c.pos+int64(length) > c.end {
			return frame{}, c.corrupt(fmt.Errorf("frame length %d", length))
		}
		b, cold, err := c.bytes(int64(length))
		if err != nil {
			return frame{}, err
		}
		f, err := c.parse(b, cold)
		if err != nil {
			return frame{}, c.corrupt(err)
		}
		c.pos += f.bytes()
		c.next = f.index + 1
		return f, nil
	}
	return frame{}, errEnd
}

func (c *cursor) parse(b []byte, cold bool) (frame, error) {
	f := frame{frameHeader: getFrameHeader(b), body: b[frameHeaderBytes:]}
	if cold && !bug.On(bug.ServeUnchecked) {
		var err error
		if f, err = checkFrame(b, c.g.seed); err != nil {
			return frame{}, err
		}
	}
	f.pos = c.pos
	if c.next != 0 && f.index != c.next || f.index < c.g.header.first {
		return frame{}, fmt.Errorf("frame %d where %d belongs", f.index, c.next)
	}
	return f, nil
}

// bytes returns n bytes at the cursor, and whether they come from the disk.
func (c *cursor) bytes(n int64) (b []byte, cold bool, err error) {
	if b, ok := inTail(c.tail, c.pos, n); ok {
		return b, false, nil
	}
	if at := c.pos - c.at; c.buf != nil && at >= 0 && at+n <= int64(len(c.buf)) {
		return c.buf[at : at+n : at+n], true, nil
	}
	if err := c.fill(n); err != nil {
		return nil, true, err
	}
	return c.buf[:n:n], true, nil
}

// fill reads from the cursor on, at least n bytes.
func (c *cursor) fill(n int64) error {
	size := min(max(n, int64(c.want)), max(n, c.end-c.pos))
	f, err := c.g.ref.acquire()
	if err != nil {
		return errs.Errorf(errs.KafkaStorageError, "open segment %s: %w", c.g.path, err)
	}
	defer c.g.ref.release()
	buf := make([]byte, size)
	got, err := f.ReadAt(buf, c.pos)
	c.l.metrics.readCold(got)
	if int64(got) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("file ends after %d of %d bytes", got, n)
		}
		return c.corrupt(err)
	}
	c.buf, c.at = buf[:got], c.pos
	return nil
}

func (c *cursor) corrupt(err error) error {
	return corruptf("segment %s at %d: %w", segmentName(c.g.header.base, c.g.header.first), c.pos, err)
}

// readFailed decides what a failed read means: a truncation or retention that
// overtook it (try again), or damage.
func (l *Log) readFailed(v view, err error) (again bool, _ error) {
	if l.closed.Load() {
		return false, ErrClosed
	}
	if l.changes.Load() != v.changes {
		return true, nil
	}
	if v.changes%2 == 1 { // wait until the truncation is through, and look again
		l.appendMu.Lock()
		err := l.usable()
		l.appendMu.Unlock()
		return err == nil, err
	}
	if !errors.Is(err, ErrCorrupt) {
		return false, err
	}
	return false, l.damaged(err)
}
