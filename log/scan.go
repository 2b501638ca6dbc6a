package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// scanEnd is where a segment's valid frames end, and why.
type scanEnd struct {
	pos    int64 // end of the last valid frame
	size   int64 // of the file
	why    error // nil for a clean end
	footer bool  // a valid footer follows
}

// window reads a file forward through one buffer.
type window struct {
	f    fsx.File
	size int64
	buf  []byte
	at   int64
	n    int

	damaged func(pos int64) // see scanPast; may be nil
}

const windowBytes = 256 << 10

func newWindow(f fsx.File) (*window, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	return &window{f: f, size: size, buf: make([]byte, min(windowBytes, max(size, blockBytes)))}, nil
}

// bytes returns n bytes at pos, fewer where the file ends. They are valid until
// the next call.
func (w *window) bytes(pos, n int64) ([]byte, error) {
	n = min(n, w.size-pos)
	if n <= 0 {
		return nil, nil
	}
	if at := pos - w.at; at < 0 || at+n > int64(w.n) {
		if n > int64(len(w.buf)) {
			w.buf = make([]byte, n) // n is at most one frame: bounded by lengthSane and by the file
		}
		got, err := w.f.ReadAt(w.buf[:min(int64(len(w.buf)), w.size-pos)], pos)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		w.at, w.n = pos, got
	}
	at := pos - w.at
	return w.buf[at:min(at+n, int64(w.n))], nil
}

// scan reads a segment's frames from its header on, checks each of them and its
// place in the chain, and takes them into g. visit may be nil; the frame is valid during the call.
//
// It ends at the first thing that is not the next frame. That is clean where a
// Write would begin and nothing was written: zeros, the end of the file, a footer, or, in a
// recycled file, bytes of an earlier use. Only read errors are errors.
func scan(f fsx.File, g *segment, interval int, visit func(*frame)) (scanEnd, error) {
	return scanPast(f, g, interval, visit, nil)
}

// scanPast is scan that goes on behind padding that should be zero and is not, after a word to damaged:
// no frame is touched there, and whether those that follow are whole is worth knowing. nil ends the scan.
func scanPast(f fsx.File, g *segment, interval int, visit func(*frame), damaged func(pos int64)) (scanEnd, error) {
	w, err := newWindow(f)
	if err != nil {
		return scanEnd{}, err
	}
	w.damaged = damaged
	end := scanEnd{pos: blockBytes, size: w.size}
	for pos := int64(blockBytes); ; {
		b, err := w.bytes(pos, frameHeaderBytes)
		if err != nil {
			return end, err
		}
		if len(b) == 0 {
			return end, nil
		}
		if pos%blockBytes == 0 {
			if done := atBlock(w, g, &end, pos, b); done {
				return end, nil
			}
		} else if len(b) >= 8 && binary.LittleEndian.Uint32(b[4:]) == 0 {
			pad, err := w.bytes(pos, alignBlock(pos)-pos)
			if err != nil {
				return end, err
			}
			if !allZero(pad) && damaged != nil {
				damaged(pos + firstSet(pad))
			} else if !allZero(pad) {
				end.why = fmt.Errorf("padding at %d is not zero", pos)
				return end, nil
			}
			pos += int64(len(pad))
			continue
		}
		next, err := nextFrame(w, g, pos, interval, visit)
		if err != nil {
			if !errors.Is(err, errFrame) {
				return end, err
			}
			if pad, padErr := w.bytes(pos, alignBlock(pos)-pos); damaged != nil && padErr == nil && oneBit(pad) {
				damaged(pos + firstSet(pad)) // a flip where a frame's length would stand
				pos = alignBlock(pos)
				continue
			}
			end.why = err
			return end, nil
		}
		end.pos, pos = g.endPos, next
	}
}

// oneBit tells whether b would be zero but for one bit.
func oneBit(b []byte) bool {
	n := 0
	for _, c := range b {
		n += bits.OnesCount8(c)
	}
	return n == 1
}

// firstSet is the place of the first byte that is not zero.
func firstSet(b []byte) int64 {
	return int64(slices.IndexFunc(b, func(c byte) bool { return c != 0 }))
}

// atBlock looks at a place where a Write may begin, and tells whether the log ends there.
func atBlock(w *window, g *segment, end *scanEnd, pos int64, b []byte) bool {
	if len(b) >= 8 && string(b[:8]) == footerMagic {
		end.footer, end.why = footerAt(w, g, pos)
		return true
	}
	if len(b) < frameHeaderBytes {
		end.why = fmt.Errorf("%d bytes at the end", len(b))
		if allZero(b) {
			end.why = nil
		}
		return true
	}
	h := getFrameHeader(b)
	if h.length == 0 {
		if !allZero(b) && !g.header.recycled {
			end.why = fmt.Errorf("bytes at %d, and no frame", pos)
		}
		return true
	}
	if h.use != uint32(g.header.salt) {
		if !g.header.recycled {
			end.why = fmt.Errorf("frame of another segment at %d", pos)
		}
		return true
	}
	return false
}

// footerAt checks a footer against the frames before it.
func footerAt(w *window, g *segment, pos int64) (bool, error) {
	b, err := w.bytes(pos, blockBytes)
	if err != nil {
		return false, err
	}
	f, err := decodeFooter(b)
	if err != nil {
		return false, err
	}
	if f.salt != g.header.salt && g.header.recycled {
		return false, nil // of an earlier use
	}
	if f != g.footer() {
		return false, fmt.Errorf("footer at %d does not match the frames", pos)
	}
	return true, nil
}

// errFrame marks what is wrong with a frame, as opposed to a failed read.
var errFrame = errors.New("bad frame")

func nextFrame(w *window, g *segment, pos int64, interval int, visit func(*frame)) (next int64, err error) {
	b, err := w.bytes(pos, frameHeaderBytes)
	if err != nil {
		return 0, err
	}
	if len(b) < frameHeaderBytes {
		return 0, fmt.Errorf("%w at %d: %d bytes of a header", errFrame, pos, len(b))
	}
	length := getFrameHeader(b).length
	if !lengthSane(length) {
		return 0, fmt.Errorf("%w at %d: length %d", errFrame, pos, length)
	}
	if b, err = w.bytes(pos, alignFrame(int64(length))); err != nil {
		return 0, err
	}
	f, err := checkFrame(b, g.seed)
	if err == nil && !allZero(b[length:]) {
		if w.damaged == nil {
			err = errors.New("alignment is not zero")
		} else {
			w.damaged(pos + int64(length) + firstSet(b[length:]))
		}
	}
	if err == nil {
		err = g.follows(&f)
	}
	if err != nil {
		return 0, fmt.Errorf("%w at %d: %w", errFrame, pos, err)
	}
	f.pos = pos
	if visit != nil {
		visit(&f)
	}
	g.note(&f, interval)
	return pos + f.bytes(), nil
}

// remains is what lies behind the valid frames of a segment.
type remains struct {
	ours   bool  // frames of this use of the file, or (in a fresh file) anything at all
	end    int64 // behind the last of it
	synced Index // the highest that a valid frame there knew to be durable
	valid  Index // the highest index of a valid frame there
}

// lookBehind searches what follows the valid frames, at every place where a
// Write may have begun. A valid frame there says how far the log was durable
// when it was written: whatever is missing up to there was acknowledged.
func lookBehind(f fsx.File, g *segment, from int64) (remains, error) {
	w, err := newWindow(f)
	if err != nil {
		return remains{}, err
	}
	r := remains{end: from}
	if b, err := w.bytes(from, alignBlock(from)-from); err != nil {
		return r, err
	} else if !allZero(b) {
		r.ours, r.end = true, from+int64(len(b))
	}
	for pos := alignBlock(from); pos < w.size; {
		b, err := w.bytes(pos, blockBytes)
		if err != nil {
			return r, err
		}
		step := int64(blockBytes)
		if !g.header.recycled && !allZero(b) {
			r.ours, r.end = true, pos+int64(len(b))
		}
		if h := peek(b); h.use == uint32(g.header.salt) && lengthSane(h.length) {
			r.ours = true
			whole, err := w.bytes(pos, int64(h.length))
			if err != nil {
				return r, err
			}
			r.end = max(r.end, pos+int64(len(whole)))
			if fr, err := checkFrame(whole, g.seed); err == nil && fr.index > g.last {
				r.synced, r.valid = max(r.synced, fr.synced), max(r.valid, fr.index)
				step = alignBlock(fr.bytes())
			}
		}
		pos += step
	}
	return r, nil
}

func peek(b []byte) frameHeader {
	if len(b) < frameHeaderBytes {
		return frameHeader{}
	}
	return getFrameHeader(b)
}
