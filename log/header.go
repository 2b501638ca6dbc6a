package log

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// formatVersion is the version of segment, sidecars and small files together.
const formatVersion = 1

const (
	headerMagic = "TMSEGMNT"
	footerMagic = "TMSEGEND"

	headerBytes = 112 // of the header block that mean something, CRC included
	footerBytes = 112
)

// segHeader is the first block of a segment.
type segHeader struct {
	topic     UUID
	partition int32
	recycled  bool // the file was used before: stale bytes behind the end are normal
	first     Index
	base      record.Offset
	prevIndex Index // of the last frame before this segment; 0 at the beginning of the log
	prevTerm  Term
	prevCRC   uint32
	salt      uint64
}

// encode returns the header block. Only the first 112 bytes carry anything,
// so a sector either holds the whole header or none of it.
func (h *segHeader) encode() []byte {
	b := make([]byte, blockBytes)
	le := binary.LittleEndian
	copy(b, headerMagic)
	le.PutUint32(b[8:], formatVersion)
	if h.recycled {
		b[12] = 1
	}
	copy(b[16:32], h.topic[:])
	le.PutUint32(b[32:], uint32(h.partition))
	le.PutUint32(b[36:], h.prevCRC)
	le.PutUint64(b[40:], uint64(h.first))
	le.PutUint64(b[48:], uint64(h.base))
	le.PutUint64(b[56:], uint64(h.prevIndex))
	le.PutUint64(b[64:], uint64(h.prevTerm))
	le.PutUint64(b[72:], h.salt)
	le.PutUint32(b[headerBytes-4:], crc32.Checksum(b[:headerBytes-4], castagnoli))
	return b
}

func decodeHeader(b []byte) (segHeader, error) {
	le := binary.LittleEndian
	if len(b) < blockBytes || string(b[:8]) != headerMagic {
		return segHeader{}, fmt.Errorf("no segment header")
	}
	if crc32.Checksum(b[:headerBytes-4], castagnoli) != le.Uint32(b[headerBytes-4:]) || !allZero(b[headerBytes:blockBytes]) {
		return segHeader{}, fmt.Errorf("segment header checksum")
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return segHeader{}, fmt.Errorf("%w: segment format %d, this program reads %d", ErrFormat, v, formatVersion)
	}
	h := segHeader{
		partition: int32(le.Uint32(b[32:])), recycled: b[12] == 1, prevCRC: le.Uint32(b[36:]),
		first: Index(le.Uint64(b[40:])), base: record.Offset(le.Uint64(b[48:])),
		prevIndex: Index(le.Uint64(b[56:])), prevTerm: Term(le.Uint64(b[64:])), salt: le.Uint64(b[72:]),
	}
	copy(h.topic[:], b[16:32])
	if h.first == 0 || h.base < 0 || (h.prevIndex != 0 && h.prevIndex != h.first-1) {
		return segHeader{}, fmt.Errorf("segment header: first index %d after %d, base offset %d", h.first, h.prevIndex, h.base)
	}
	return h, nil
}

// segFooter is the last block of a sealed segment: what a restart needs to know
// without reading the frames.
type segFooter struct {
	salt       uint64
	last       Index
	lastTerm   Term
	lastCRC    uint32
	end        record.Offset
	endPos     int64 // where the last frame ends
	maxTime    int64 // largest record timestamp, -1 without records
	appendedAt int64 // largest of the frames
	commit     Index // highest that a frame carried
}

func (f *segFooter) encode() []byte {
	b := make([]byte, blockBytes)
	le := binary.LittleEndian
	copy(b, footerMagic)
	le.PutUint32(b[8:], formatVersion)
	le.PutUint32(b[12:], f.lastCRC)
	le.PutUint64(b[16:], f.salt)
	le.PutUint64(b[24:], uint64(f.last))
	le.PutUint64(b[32:], uint64(f.lastTerm))
	le.PutUint64(b[40:], uint64(f.end))
	le.PutUint64(b[48:], uint64(f.endPos))
	le.PutUint64(b[56:], uint64(f.maxTime))
	le.PutUint64(b[64:], uint64(f.appendedAt))
	le.PutUint64(b[72:], uint64(f.commit))
	le.PutUint32(b[footerBytes-4:], crc32.Checksum(b[:footerBytes-4], castagnoli))
	return b
}

func decodeFooter(b []byte) (segFooter, error) {
	le := binary.LittleEndian
	if len(b) < blockBytes || string(b[:8]) != footerMagic || le.Uint32(b[8:]) != formatVersion {
		return segFooter{}, fmt.Errorf("no segment footer")
	}
	if crc32.Checksum(b[:footerBytes-4], castagnoli) != le.Uint32(b[footerBytes-4:]) || !allZero(b[footerBytes:blockBytes]) {
		return segFooter{}, fmt.Errorf("segment footer checksum")
	}
	return segFooter{
		lastCRC: le.Uint32(b[12:]), salt: le.Uint64(b[16:]), last: Index(le.Uint64(b[24:])), lastTerm: Term(le.Uint64(b[32:])),
		end: record.Offset(le.Uint64(b[40:])), endPos: int64(le.Uint64(b[48:])), maxTime: int64(le.Uint64(b[56:])),
		appendedAt: int64(le.Uint64(b[64:])), commit: Index(le.Uint64(b[72:])),
	}, nil
}
