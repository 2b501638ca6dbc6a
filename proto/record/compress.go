package record

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"
)

// The encoders are pooled by level, since each keeps tables between uses.
// Levels that a codec does not know mean its default.
var (
	gzipWriters [gzip.BestCompression + 1]sync.Pool
	lz4Writers  [len(lz4Levels)]sync.Pool
)

var lz4Levels = [...]lz4.CompressionLevel{
	lz4.Fast, lz4.Level1, lz4.Level2, lz4.Level3, lz4.Level4, lz4.Level5, lz4.Level6, lz4.Level7, lz4.Level8, lz4.Level9,
}

// appendCompressed appends src to dst, compressed.
func appendCompressed(dst, src []byte, c Codec, level int) ([]byte, error) {
	switch c {
	case CodecNone:
		return append(dst, src...), nil
	case CodecGzip:
		return appendGzip(dst, src, level)
	case CodecSnappy:
		return appendXerial(dst, src), nil
	case CodecLZ4:
		return appendLZ4(dst, src, level)
	case CodecZstd:
		return appendZstd(dst, src, level)
	}
	return nil, fmt.Errorf("compress: %v does not exist", c)
}

func appendGzip(dst, src []byte, level int) ([]byte, error) {
	if level < gzip.BestSpeed || level > gzip.BestCompression {
		level = 0 // the slot of the default, since Kafka has no level 0
	}
	out := bytes.NewBuffer(dst)
	w, _ := gzipWriters[level].Get().(*gzip.Writer)
	if w == nil {
		l := level
		if l == 0 {
			l = gzip.DefaultCompression
		}
		w, _ = gzip.NewWriterLevel(nil, l)
	}
	defer gzipWriters[level].Put(w)
	w.Reset(out)
	return finish(w, src, out)
}

func appendLZ4(dst, src []byte, level int) ([]byte, error) {
	if level < 0 || level >= len(lz4Levels) {
		level = 0
	}
	out := bytes.NewBuffer(dst)
	w, _ := lz4Writers[level].Get().(*lz4.Writer)
	if w == nil {
		w = lz4.NewWriter(nil)
		// As Kafka writes it: small independent blocks, no checksums of its
		// own, since the batch has one.
		if err := w.Apply(lz4.CompressionLevelOption(lz4Levels[level]), lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false)); err != nil {
			return nil, err
		}
	}
	defer lz4Writers[level].Put(w)
	w.Reset(out)
	return finish(w, src, out)
}

func finish(w io.WriteCloser, src []byte, out *bytes.Buffer) ([]byte, error) {
	if _, err := w.Write(src); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
