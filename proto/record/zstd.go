package record

import (
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// zstdWindowBytes bounds the memory of an encoder, and of every reader of what it wrote.
	zstdWindowBytes = 1 << 20
	// zstdMaxWindow is what Java's encoder may ask for at its highest
	// level. Nothing is allocated for it: the output is the window.
	zstdMaxWindow = 128 << 20
	// zstdBlockBytes is the most that one block can decode to.
	zstdBlockBytes = 128 << 10
	// zstdSlackBytes beyond the output let the decoder copy in large steps.
	zstdSlackBytes = 16
)

var (
	zstdEncoders [zstd.SpeedBestCompression + 1]sync.Pool
	zstdDecoders sync.Pool
)

func appendZstd(dst, src []byte, level int) ([]byte, error) {
	speed := zstd.SpeedDefault
	if level != 0 {
		speed = zstd.EncoderLevelFromZstd(level)
	}
	e, _ := zstdEncoders[speed].Get().(*zstd.Encoder)
	if e == nil {
		var err error
		e, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(zstdWindowBytes), zstd.WithZeroFrames(true), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, err
		}
	}
	defer zstdEncoders[speed].Put(e)
	return e.EncodeAll(src, dst), nil
}

func unzstd(src []byte, limit int) ([]byte, error) {
	d, _ := zstdDecoders.Get().(*zstd.Decoder)
	if d == nil {
		var err error
		// Without the cap, the library would allocate what the frame claims.
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdMaxWindow), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, undecodable(CodecZstd, err)
		}
	}
	defer zstdDecoders.Put(d)

	most, known, err := zstdBytes(src)
	switch {
	case err != nil:
		return nil, undecodable(CodecZstd, err)
	case known && most > limit:
		return nil, tooLarge(limit)
	case known:
		return zstdDecode(d, src, make([]byte, 0, most+zstdSlackBytes), limit)
	}
	// Room for one block above the limit: so a block never ends for lack of
	// room before the limit is passed, and the two errors stay apart.
	room := min(most, limit+zstdBlockBytes) + zstdSlackBytes
	return viaScratch(func(scratch []byte) ([]byte, error) {
		return zstdDecode(d, src, slices.Grow(scratch, room), limit)
	})
}

func zstdDecode(d *zstd.Decoder, src, dst []byte, limit int) ([]byte, error) {
	out, err := d.DecodeAll(src, dst)
	switch {
	case len(out) > limit:
		return dst, tooLarge(limit)
	case err != nil:
		return dst, undecodable(CodecZstd, err)
	}
	return out, nil
}

var (
	errFrames     = errors.New("is not exactly one frame")
	errFalseSize  = errors.New("claims to hold more than its blocks can")
	errBlockType  = errors.New("has a block of no known type")
	errDictionary = errors.New("needs a dictionary")
)

// zstdBytes walks the headers of a frame's blocks, without decoding them. It
// returns the size that the frame claims, which is then possible, or the most that
// its blocks can hold.
//
// Only one frame is accepted, which is what all clients write: the library
// copies all earlier output once for each further frame.
func zstdBytes(src []byte) (most int, known bool, err error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return 0, false, err
	}
	if h.Skippable {
		return 0, false, errFrames
	}
	if h.DictionaryID != 0 {
		return 0, false, errDictionary
	}
	rest := src[h.HeaderSize:]
	for last := false; !last; {
		if len(rest) < 3 {
			return 0, false, io.ErrUnexpectedEOF
		}
		header := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
		last = header&1 != 0
		stored, holds := header>>3, header>>3
		switch header >> 1 & 3 {
		case 0: // as it is
		case 1: // one byte, repeated
			stored = 1
		case 2:
			holds = zstdBlockBytes
		default:
			return 0, false, errBlockType
		}
		if stored > len(rest)-3 {
			return 0, false, io.ErrUnexpectedEOF
		}
		rest = rest[3+stored:]
		most += min(holds, zstdBlockBytes)
	}
	if h.HasCheckSum {
		if len(rest) < 4 {
			return 0, false, io.ErrUnexpectedEOF
		}
		rest = rest[4:]
	}
	if len(rest) > 0 {
		return 0, false, errFrames
	}
	if h.HasFCS && h.FrameContentSize > uint64(most) {
		return 0, false, errFalseSize
	}
	if h.HasFCS {
		return int(h.FrameContentSize), true, nil
	}
	return most, false, nil
}
