package log

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// The frame, little endian; docs/format/log.md draws it.
const (
	frameHeaderBytes = 72
	frameAlign       = 8    // frames start at multiples of it, so a length never straddles a block
	blockBytes       = 4096 // a Write starts at a block and is zero-padded to one
	// maxFrameBytes bounds every length that is read from a disk.
	maxFrameBytes = 128 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameHeader is what stands before a frame's body.
type frameHeader struct {
	crc        uint32
	length     uint32 // of header and body
	use        uint32 // low half of the segment's salt: a cheap first look at stale frames
	prev       uint32 // crc of the frame before, also across segments
	index      Index
	term       Term
	base       record.Offset
	commit     Index // known when the frame was written
	synced     Index // durable when the frame was written
	appendedAt int64
	metaBytes  uint32
	kind       EntryType
	verdict    Verdict
}

// seedOf starts the CRC of every frame of a segment: frames of another use of
// the file, or of another file, never match.
func seedOf(salt uint64) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], salt)
	return crc32.Checksum(b[:], castagnoli)
}

// put writes the header into b, whose body is there already, and returns the CRC.
func (h *frameHeader) put(b []byte, seed uint32) uint32 {
	le := binary.LittleEndian
	_ = b[frameHeaderBytes-1]
	le.PutUint32(b[4:], h.length)
	le.PutUint32(b[8:], h.use)
	le.PutUint32(b[12:], h.prev)
	le.PutUint64(b[16:], uint64(h.index))
	le.PutUint64(b[24:], uint64(h.term))
	le.PutUint64(b[32:], uint64(h.base))
	le.PutUint64(b[40:], uint64(h.commit))
	le.PutUint64(b[48:], uint64(h.synced))
	le.PutUint64(b[56:], uint64(h.appendedAt))
	le.PutUint32(b[64:], h.metaBytes)
	b[68], b[69], b[70], b[71] = byte(h.kind), byte(h.verdict), 0, 0
	h.crc = crc32.Update(seed, castagnoli, b[4:h.length])
	le.PutUint32(b, h.crc)
	return h.crc
}

// getFrameHeader reads a header; nothing of it may be believed before check.
func getFrameHeader(b []byte) frameHeader {
	le := binary.LittleEndian
	_ = b[frameHeaderBytes-1]
	return frameHeader{
		crc: le.Uint32(b), length: le.Uint32(b[4:]), use: le.Uint32(b[8:]), prev: le.Uint32(b[12:]),
		index: Index(le.Uint64(b[16:])), term: Term(le.Uint64(b[24:])), base: record.Offset(le.Uint64(b[32:])),
		commit: Index(le.Uint64(b[40:])), synced: Index(le.Uint64(b[48:])), appendedAt: int64(le.Uint64(b[56:])),
		metaBytes: le.Uint32(b[64:]), kind: EntryType(b[68]), verdict: Verdict(b[69]),
	}
}

// lengthSane bounds a length before anything is read or allocated by it.
func lengthSane(length uint32) bool {
	return length >= frameHeaderBytes && length <= maxFrameBytes
}

// frame is one whole frame.
type frame struct {
	frameHeader
	pos  int64
	body []byte
}

// checkFrame verifies the whole frame b (header and body).
func checkFrame(b []byte, seed uint32) (frame, error) {
	h := getFrameHeader(b)
	if !lengthSane(h.length) || int(h.length) > len(b) {
		return frame{}, fmt.Errorf("frame length %d", h.length)
	}
	b = b[:h.length]
	if got := crc32.Update(seed, castagnoli, b[4:]); got != h.crc {
		return frame{}, fmt.Errorf("frame checksum %08x, want %08x", got, h.crc)
	}
	f := frame{frameHeader: h, body: b[frameHeaderBytes:len(b):len(b)]}
	return f, f.sane()
}

// sane refuses what Write would never have written, although its CRC holds.
func (f *frame) sane() error {
	switch {
	case int64(f.metaBytes) > int64(len(f.body)):
		return fmt.Errorf("frame %d: %d meta bytes in a body of %d", f.index, f.metaBytes, len(f.body))
	case f.index == 0 || f.base < 0:
		return fmt.Errorf("frame %d: base offset %d", f.index, f.base)
	case f.verdict == Accepted:
		return batchSane(f.body[f.metaBytes:])
	}
	return nil
}

// batchSane looks at the little of a batch that the log relies on.
func batchSane(b []byte) error {
	if len(b) < record.HeaderBytes {
		return fmt.Errorf("record batch of %d bytes", len(b))
	}
	if raw := record.Raw(b); raw.Size() != len(b) || raw.LastOffsetDelta() < 0 {
		return fmt.Errorf("record batch says %d bytes and last offset delta %d, has %d bytes", raw.Size(), raw.LastOffsetDelta(), len(b))
	}
	return nil
}

// batch is the record batch of an accepted frame.
func (f *frame) batch() record.Raw { return record.Raw(f.body[f.metaBytes:]) }

// end is the log end offset after this frame.
func (f *frame) end() record.Offset {
	if f.verdict != Accepted {
		return f.base
	}
	return f.base + record.Offset(f.batch().LastOffsetDelta()) + 1
}

// bytes is what the frame takes in the file, alignment included.
func (f *frame) bytes() int64 { return alignFrame(int64(f.length)) }

func (f *frame) entry() Entry {
	return Entry{
		Index: f.index, Term: f.term, Type: f.kind, Verdict: f.verdict, BaseOffset: f.base,
		Body: f.body, MetaBytes: int(f.metaBytes), AppendedAt: f.appendedAt,
	}
}

func alignFrame(n int64) int64 { return (n + frameAlign - 1) &^ (frameAlign - 1) }
func alignBlock(n int64) int64 { return (n + blockBytes - 1) &^ (blockBytes - 1) }

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
