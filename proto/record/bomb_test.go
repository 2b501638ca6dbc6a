package record_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/tidemarkhq/tidemark/proto/errs"
	. "github.com/tidemarkhq/tidemark/proto/record"
)

// withBody returns a batch of one record whose compressed records are body.
func withBody(t testing.TB, c Codec, body []byte) Raw {
	b := append(build(t, CodecNone, Record{})[:HeaderBytes:HeaderBytes], body...)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[22] = byte(c)
	return b
}

func bombs(t testing.TB, size int) map[string]Raw {
	zeros := make([]byte, size)
	var gz, lz bytes.Buffer
	g, err := gzip.NewWriterLevel(&gz, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	g.Write(zeros)
	g.Close()
	l := lz4.NewWriter(&lz)
	l.Write(zeros)
	l.Close()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	sized := z.EncodeAll(zeros, nil)
	var stream bytes.Buffer
	z.Reset(&stream)
	z.Write(zeros[:size/2])
	z.Flush()
	z.Write(zeros[size/2:])
	z.Close()

	sn := snappy.Encode(nil, zeros)
	block := binary.BigEndian.AppendUint32(nil, uint32(len(sn)))
	block = append(block, sn...)
	xerial := append([]byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1}, block...)
	return map[string]Raw{
		"gzip":                 withBody(t, CodecGzip, gz.Bytes()),
		"lz4":                  withBody(t, CodecLZ4, lz.Bytes()),
		"zstd with its size":   withBody(t, CodecZstd, sized),
		"zstd, size not known": withBody(t, CodecZstd, stream.Bytes()),
		"snappy":               withBody(t, CodecSnappy, sn),
		"snappy, framed":       withBody(t, CodecSnappy, xerial),
	}
}

// A batch of some kilobytes must not take more memory than its reader allows.
func TestBombsAreStoppedWhileTheyDecode(t *testing.T) {
	const limit = 1 << 20
	for name, raw := range bombs(t, 32<<20) {
		t.Run(name, func(t *testing.T) {
			for range raw.Records(limit) {
			} // fill the pools
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var last error
			for _, last = range raw.Records(limit) {
			}
			runtime.ReadMemStats(&after)
			if code := errs.CodeOf(last); code != errs.MessageTooLarge {
				t.Errorf("got %v: %v", code, last)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 24<<20 {
				t.Errorf("took %d bytes of memory in all, with a limit of %d", took, limit)
			}
		})
	}
}

func TestWhatFitsTheLimitExactlyIsDecoded(t *testing.T) {
	value := bytes.Repeat([]byte("ebb and flow "), 5000)
	plain := build(t, CodecNone, Record{Value: value})
	limit := len(plain) - HeaderBytes
	for _, c := range codecs[1:] {
		raw := build(t, c, Record{Value: value})
		for r, err := range raw.Records(limit) {
			if err != nil || !bytes.Equal(r.Value, value) {
				t.Errorf("%v: %v", c, err)
			}
		}
		var last error
		for _, last = range raw.Records(limit - 1) {
		}
		if errs.CodeOf(last) != errs.MessageTooLarge {
			t.Errorf("%v, one byte less: %v", c, last)
		}
	}
}

// Five bytes can claim four gigabytes.
func TestFalseSizesAreNotBelieved(t *testing.T) {
	claim := binary.AppendUvarint(nil, 1<<32-1)
	zstdClaim := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 3, 0, 0, 0, 0} // 48 MiB in one segment
	for _, tt := range []struct {
		name string
		raw  Raw
	}{
		{"snappy", withBody(t, CodecSnappy, claim)},
		{"snappy within the limit", withBody(t, CodecSnappy, binary.AppendUvarint(nil, 60<<20))},
		{"snappy frame", withBody(t, CodecSnappy, append([]byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff}, claim...))},
		{"zstd", withBody(t, CodecZstd, zstdClaim)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var last error
			for _, last = range tt.raw.Records(0) {
			}
			runtime.ReadMemStats(&after)
			if last == nil {
				t.Error("decoded")
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
				t.Errorf("%v took %d bytes", last, took)
			}
		})
	}
}

func TestManyHeadersAreBoundedByTheLimit(t *testing.T) {
	headers := make([]Header, 100_000)
	raw := build(t, CodecZstd, Record{Headers: headers})
	var last error
	for _, last = range raw.Records(1 << 20) {
	}
	if errs.CodeOf(last) != errs.InvalidRecord {
		t.Error(last)
	}
}
