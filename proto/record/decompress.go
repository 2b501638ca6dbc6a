package record

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// DefaultDecompressLimit bounds what the records of one batch may decompress to.
const DefaultDecompressLimit = 64 << 20

// scratchKeepBytes is the largest buffer that is kept for the next batch.
const scratchKeepBytes = 4 << 20

var (
	gzipReaders sync.Pool
	lz4Readers  sync.Pool
	scratches   = sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}
)

func tooLarge(limit int) error {
	return errs.Errorf(errs.MessageTooLarge, "records decompress to more than %d bytes, which is the limit; raise it, or send smaller batches", limit)
}

func undecodable(c Codec, err error) error {
	return errs.Errorf(errs.InvalidRecord, "%v: %w", c, err)
}

// decompress returns src decompressed, in memory of its own, or src itself
// when it is not compressed. A few hundred bytes can claim to be, or truly be,
// gigabytes: memory is taken only for what was decoded, and never for much
// more than limit.
func decompress(src []byte, c Codec, limit int) ([]byte, error) {
	switch c {
	case CodecNone:
		return src, nil
	case CodecGzip:
		return gunzip(src, limit)
	case CodecSnappy:
		return unsnappy(src, limit)
	case CodecLZ4:
		return unLZ4(src, limit)
	case CodecZstd:
		return unzstd(src, limit)
	}
	return nil, errs.Errorf(errs.UnsupportedCompressionType, "batch is compressed by codec %d, which does not exist", int8(c))
}

func gunzip(src []byte, limit int) ([]byte, error) {
	r, _ := gzipReaders.Get().(*gzip.Reader)
	if r == nil {
		r = new(gzip.Reader)
	}
	defer gzipReaders.Put(r)
	if err := r.Reset(bytes.NewReader(src)); err != nil {
		return nil, undecodable(CodecGzip, err)
	}
	return readBounded(r, CodecGzip, limit)
}

func unLZ4(src []byte, limit int) ([]byte, error) {
	r, _ := lz4Readers.Get().(*lz4.Reader)
	if r == nil {
		r = lz4.NewReader(nil)
	}
	defer lz4Readers.Put(r)
	r.Reset(bytes.NewReader(src))
	return readBounded(r, CodecLZ4, limit)
}

// readBounded reads r to its end, which must come within limit.
func readBounded(r io.Reader, c Codec, limit int) ([]byte, error) {
	return viaScratch(func(out []byte) ([]byte, error) {
		for {
			if len(out) == cap(out) {
				out = slices.Grow(out, len(out)+1)
			}
			// One byte above the limit tells an end from an overrun.
			n, err := r.Read(out[len(out):min(cap(out), limit+1)])
			out = out[:len(out)+n]
			switch {
			case len(out) > limit:
				return out, tooLarge(limit)
			case err == io.EOF:
				return out, nil
			case err != nil:
				return out, undecodable(c, fmt.Errorf("after %d bytes: %w", len(out), err))
			}
		}
	})
}

// viaScratch lets decode fill a pooled buffer and returns a copy of the result
// in memory of just the right size: readers keep it for as long as they keep a record.
func viaScratch(decode func(scratch []byte) ([]byte, error)) ([]byte, error) {
	s := scratches.Get().(*[]byte)
	out, err := decode((*s)[:0])
	if cap(out) > cap(*s) {
		*s = out
	}
	var result []byte
	if err == nil {
		result = bytes.Clone(out)
	}
	if cap(*s) <= scratchKeepBytes {
		scratches.Put(s)
	}
	return result, err
}
