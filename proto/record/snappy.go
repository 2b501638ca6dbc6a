package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/snappy"
)

// Java's snappy library puts blocks into a frame of its own, named after its
// author. Clients accept that and a bare block; the frame is what Kafka's own
// clients write.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const (
	xerialHeaderBytes = 16 // the magic, version 1, compatible with version 1
	xerialBlockBytes  = 32 << 10
	// snappyMaxRatio is above what the format can reach: 64 bytes from a copy of three.
	snappyMaxRatio = 64
)

func appendXerial(dst, src []byte) []byte {
	dst = append(dst, xerialMagic...)
	dst = append(dst, 0, 0, 0, 1, 0, 0, 0, 1)
	for len(src) > 0 {
		n := min(len(src), xerialBlockBytes)
		at := len(dst)
		dst = slices.Grow(dst, 4+snappy.MaxEncodedLen(n))
		block := snappy.Encode(dst[at+4:cap(dst)], src[:n])
		binary.BigEndian.PutUint32(dst[at:at+4], uint32(len(block)))
		dst = dst[:at+4+len(block)]
		src = src[n:]
	}
	return dst
}

func unsnappy(src []byte, limit int) ([]byte, error) {
	blocks, err := snappyBlocks(src)
	if err != nil {
		return nil, undecodable(CodecSnappy, err)
	}
	total, err := snappyBytes(blocks, limit)
	if err != nil {
		return nil, err
	}
	out := make([]byte, total)
	at := 0
	for _, b := range blocks {
		n, _ := snappy.DecodedLen(b)
		if _, err := snappy.Decode(out[at:at+n], b); err != nil {
			return nil, undecodable(CodecSnappy, err)
		}
		at += n
	}
	return out, nil
}

// snappyBytes is what the blocks decode to, by their headers, which are
// believed only as far as the format can reach.
func snappyBytes(blocks [][]byte, limit int) (int, error) {
	total := 0
	for _, b := range blocks {
		n, err := snappy.DecodedLen(b)
		switch {
		case err != nil:
			return 0, undecodable(CodecSnappy, err)
		case n > snappyMaxRatio*len(b):
			return 0, undecodable(CodecSnappy, fmt.Errorf("block of %d bytes claims to hold %d", len(b), n))
		case n > limit-total:
			return 0, tooLarge(limit)
		}
		total += n
	}
	return total, nil
}

// snappyBlocks splits a frame into its blocks; what is no frame is one block.
func snappyBlocks(src []byte) ([][]byte, error) {
	if !bytes.HasPrefix(src, xerialMagic) {
		return [][]byte{src}, nil
	}
	if len(src) < xerialHeaderBytes {
		return nil, io.ErrUnexpectedEOF
	}
	var blocks [][]byte
	for src = src[xerialHeaderBytes:]; len(src) > 0; {
		if len(src) < 4 {
			return nil, io.ErrUnexpectedEOF
		}
		n := binary.BigEndian.Uint32(src)
		if src = src[4:]; uint64(n) > uint64(len(src)) {
			return nil, fmt.Errorf("block of %d bytes in a frame that has %d left", n, len(src))
		}
		blocks = append(blocks, src[:n])
		src = src[n:]
	}
	return blocks, nil
}
