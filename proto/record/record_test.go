package record_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/proto/errs"
	. "github.com/tidemarkhq/tidemark/proto/record"
)

var codecs = []Codec{CodecNone, CodecGzip, CodecSnappy, CodecLZ4, CodecZstd}

// sample holds every shape that a record can have.
func sample() []Record {
	return []Record{
		{Offset: 0, Timestamp: 1_700_000_000_000, Key: []byte("key"), Value: []byte("value")},
		{Offset: 1, Timestamp: 1_699_999_999_000, Key: nil, Value: []byte("no key, and earlier")},
		{Offset: 2, Timestamp: 1_700_000_000_500, Key: []byte("tombstone"), Value: nil},
		{Offset: 3, Timestamp: 1_700_000_000_500, Key: []byte{}, Value: []byte{}},
		{Offset: 4, Timestamp: 1_700_000_000_501, Key: []byte("headers"), Value: bytes.Repeat([]byte("tide"), 200),
			Headers: []Header{{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}, {Key: "", Value: nil}, {Key: "empty", Value: []byte{}}}},
	}
}

func build(t testing.TB, c Codec, records ...Record) Raw {
	t.Helper()
	b := NewBuilder(BuilderConfig{Codec: c})
	for _, r := range records {
		b.Append(r)
	}
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func collect(t testing.TB, b Raw) []Record {
	t.Helper()
	var got []Record
	for r, err := range b.Records(0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	return got
}

func TestWhatIsBuiltIsReadBack(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			raw, err := Check(build(t, c, sample()...))
			if err != nil {
				t.Fatal(err)
			}
			if raw.Codec() != c || raw.Count() != 5 || raw.LastOffsetDelta() != 4 || raw.Size() != len(raw) || raw.ProducerID() != None {
				t.Errorf("header: %v", raw)
			}
			if raw.FirstTimestamp() != 1_700_000_000_000 || raw.MaxTimestamp() != 1_700_000_000_501 {
				t.Errorf("timestamps %d, %d", raw.FirstTimestamp(), raw.MaxTimestamp())
			}
			if diff := cmp.Diff(sample(), collect(t, raw)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStampsOutsideTheCRC(t *testing.T) {
	raw := build(t, CodecLZ4, sample()...)
	crc := raw.CRC()
	raw.SetBaseOffset(1 << 40)
	raw.SetLeaderEpoch(77)
	if _, err := Check(raw); err != nil {
		t.Fatal(err)
	}
	if raw.CRC() != crc || raw.BaseOffset() != 1<<40 || raw.LeaderEpoch() != 77 || raw.LastOffset() != 1<<40+4 || raw.EndOffset() != 1<<40+5 {
		t.Errorf("%v, CRC %x was %x", raw, raw.CRC(), crc)
	}
	if got := collect(t, raw); got[4].Offset != 1<<40+4 {
		t.Errorf("last record has offset %d", got[4].Offset)
	}
}

func TestLogAppendTimeReplacesAllTimestamps(t *testing.T) {
	raw := build(t, CodecZstd, sample()...)
	raw.SetLogAppendTime(1_800_000_000_000)
	if _, err := Check(raw); err != nil {
		t.Fatal(err)
	}
	if raw.TimestampType() != LogAppendTime || raw.Codec() != CodecZstd {
		t.Errorf("attributes %b", raw.Attributes())
	}
	for _, r := range collect(t, raw) {
		if r.Timestamp != 1_800_000_000_000 {
			t.Errorf("record %d has timestamp %d", r.Offset, r.Timestamp)
		}
	}
}

func TestSequencesWrapAsInKafka(t *testing.T) {
	for _, tt := range []struct{ seq, by, want int32 }{
		{0, 0, 0}, {5, 4, 9}, {math.MaxInt32, 0, math.MaxInt32}, {math.MaxInt32, 1, 0}, {math.MaxInt32 - 1, 4, 2},
	} {
		if got := AddSequence(tt.seq, tt.by); got != tt.want {
			t.Errorf("AddSequence(%d, %d) = %d, want %d", tt.seq, tt.by, got, tt.want)
		}
	}
	raw := build(t, CodecNone, sample()...)
	if raw.LastSequence() != None {
		t.Errorf("batch without producer has last sequence %d", raw.LastSequence())
	}
	raw.SetProducer(9, 3, math.MaxInt32-1)
	if _, err := Check(raw); err != nil {
		t.Fatal(err)
	}
	if raw.ProducerID() != 9 || raw.ProducerEpoch() != 3 || raw.BaseSequence() != math.MaxInt32-1 || raw.LastSequence() != 2 {
		t.Errorf("producer %d/%d, sequences %d to %d", raw.ProducerID(), raw.ProducerEpoch(), raw.BaseSequence(), raw.LastSequence())
	}
}

// edit changes a field below the CRC and makes the CRC right again.
func edit(b Raw, at int, v ...byte) Raw {
	b = bytes.Clone(b)
	copy(b[at:], v)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestCheckRefuses(t *testing.T) {
	good := build(t, CodecNone, sample()...)
	minus := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe}
	longer := append(bytes.Clone(good), 0)
	for _, tt := range []struct {
		name string
		b    []byte
		want errs.Code
	}{
		{"nothing", nil, errs.CorruptMessage},
		{"half a header", good[:30], errs.CorruptMessage},
		{"a header alone", good[:HeaderBytes], errs.CorruptMessage},
		{"a cut batch", good[:len(good)-1], errs.CorruptMessage},
		{"a batch and more", longer, errs.CorruptMessage},
		{"two batches", append(bytes.Clone(good), good...), errs.CorruptMessage},
		{"magic 1", func() []byte { b := bytes.Clone(good); b[16] = 1; return b }(), errs.UnsupportedForMessageFormat},
		{"magic 0 and short", func() []byte { b := bytes.Clone(good[:34]); b[16] = 0; return b }(), errs.UnsupportedForMessageFormat},
		{"a flipped bit", func() []byte { b := bytes.Clone(good); b[len(b)-1] ^= 1; return b }(), errs.CorruptMessage},
		{"codec 5", edit(good, 22, 5), errs.UnsupportedCompressionType},
		{"no records", edit(good, 57, 0, 0, 0, 0), errs.InvalidRecord},
		{"a negative count", edit(good, 57, minus[:4]...), errs.InvalidRecord},
		{"a count that differs from the deltas", edit(good, 57, 0, 0, 0, 4), errs.InvalidRecord},
		{"more records than bytes", edit(edit(good, 57, 0, 0xff, 0, 1), 23, 0, 0xff, 0, 0), errs.InvalidRecord},
		{"first timestamp -2", edit(good, 27, minus...), errs.InvalidTimestamp},
		{"max timestamp -2", edit(good, 35, minus...), errs.InvalidTimestamp},
		{"producer id -2", edit(good, 43, minus...), errs.InvalidRecord},
		{"producer id without sequence", edit(good, 43, 0, 0, 0, 0, 0, 0, 0, 9), errs.InvalidRecord},
		{"a transaction without producer", edit(good, 22, 1<<4), errs.InvalidRecord},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw, err := Check(tt.b)
			if raw != nil || errs.CodeOf(err) != tt.want {
				t.Errorf("got %v, %v (%v), want %v", raw, err, errs.CodeOf(err), tt.want)
			}
		})
	}
}

func TestEveryFlippedBitBelowTheCRCIsFound(t *testing.T) {
	good := build(t, CodecNone, sample()[:2]...)
	for i := 16; i < len(good); i++ {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			if _, err := Check(b); err == nil {
				t.Fatalf("bit %d of byte %d", bit, i)
			}
		}
	}
}

func TestNextSplitsBatches(t *testing.T) {
	one, two := build(t, CodecNone, sample()[:1]...), build(t, CodecGzip, sample()...)
	all := append(bytes.Clone(one), two...)
	a, rest, err := Next(all)
	if err != nil || !bytes.Equal(a, one) || cap(a) != len(a) {
		t.Fatal(a, err)
	}
	b, rest, err := Next(rest)
	if err != nil || !bytes.Equal(b, two) {
		t.Fatal(b, err)
	}
	if _, _, err := Next(rest); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for n := 1; n < len(one); n++ {
		if _, rest, err := Next(all[:n]); err != io.ErrUnexpectedEOF || len(rest) != n {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	for _, length := range []uint32{0, HeaderBytes - 13, 1 << 31, math.MaxUint32} {
		bad := bytes.Clone(all)
		binary.BigEndian.PutUint32(bad[8:], length)
		if _, _, err := Next(bad); errs.CodeOf(err) != errs.CorruptMessage {
			t.Errorf("length %d: %v", length, err)
		}
	}
	bad := bytes.Clone(all)
	binary.BigEndian.PutUint32(bad[8:], math.MaxInt32)
	if _, _, err := Next(bad); err != io.ErrUnexpectedEOF {
		t.Errorf("length beyond the end: %v", err)
	}
	bad[16] = 1
	if _, _, err := Next(bad); errs.CodeOf(err) != errs.UnsupportedForMessageFormat {
		t.Errorf("magic 1: %v", err)
	}
}

func TestRecordsRefusesWrongBodies(t *testing.T) {
	body := func(count byte, records ...byte) Raw {
		b := append(build(t, CodecNone, Record{})[:HeaderBytes:HeaderBytes], records...)
		binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
		b[60], b[26] = count, count-1
		return b
	}
	ok := []byte{12, 0, 0, 0, 1, 1, 0} // six bytes: attributes, deltas, null key, null value, no headers
	for _, tt := range []struct {
		name string
		b    Raw
	}{
		{"no bytes", body(1)},
		{"too few records", body(2, ok...)},
		{"bytes after the last record", body(1, append(bytes.Clone(ok), 9)...)},
		{"a negative length", body(1, 1, 0, 0, 0, 1, 1, 0)},
		{"length null", body(1, 1)},
		{"length 0", body(1, 0)},
		{"a length beyond the end", body(1, 14, 0, 0, 0, 1, 1, 0)},
		{"a record shorter than its length", body(1, 14, 0, 0, 0, 1, 1, 0, 0)},
		{"a record longer than its length", body(1, 10, 0, 0, 0, 1, 1, 0)},
		{"an endless varint", body(1, 26, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255)},
		{"key length -2", body(1, 12, 0, 0, 0, 3, 1, 0)},
		{"a key beyond the end", body(1, 12, 0, 0, 0, 100, 1, 0)},
		{"-1 headers", body(1, 12, 0, 0, 0, 1, 1, 1)},
		{"more headers than bytes", body(1, 12, 0, 0, 0, 1, 1, 2)},
		{"a null header key", body(1, 16, 0, 0, 0, 1, 1, 2, 1, 1)},
		{"offset delta beyond the last", body(1, 12, 0, 0, 2, 1, 1, 0)},
		{"a negative offset delta", body(1, 12, 0, 0, 1, 1, 1, 0)},
		{"the same offset twice", body(2, append(bytes.Clone(ok), ok...)...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var last error
			for _, last = range tt.b.Records(0) {
			}
			if errs.CodeOf(last) != errs.InvalidRecord {
				t.Errorf("got %v", last)
			}
		})
	}
	if got := collect(t, body(1, ok...)); len(got) != 1 || got[0].Key != nil || got[0].Value != nil || got[0].Headers != nil {
		t.Errorf("the good one: %+v", got)
	}
}

func TestRecordsStopsWhenAsked(t *testing.T) {
	n := 0
	for range build(t, CodecGzip, sample()...).Records(0) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d records", n)
	}
}

func TestCodecNames(t *testing.T) {
	for _, c := range codecs {
		if got, err := ParseCodec(strings.ToUpper(c.String())); got != c || err != nil {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	if _, err := ParseCodec("brotli"); errs.CodeOf(err) != errs.UnsupportedCompressionType {
		t.Error(err)
	}
	if s := Codec(7).String(); s != "codec(7)" {
		t.Error(s)
	}
}

func TestBuilder(t *testing.T) {
	t.Run("refuses an empty batch", func(t *testing.T) {
		if _, err := NewBuilder(BuilderConfig{}).Build(); err == nil {
			t.Error("built")
		}
	})
	t.Run("is used again after Reset", func(t *testing.T) {
		for _, c := range codecs {
			b := NewBuilder(BuilderConfig{Codec: c})
			var built []Raw
			for i := range 3 {
				b.Reset()
				for _, r := range sample() {
					r.Value = fmt.Appendf(nil, "%s of %d", r.Value, i)
					b.Append(r)
				}
				raw, err := b.Build()
				if err != nil {
					t.Fatal(err)
				}
				built = append(built, raw)
			}
			for i, raw := range built {
				if _, err := Check(raw); err != nil {
					t.Fatal(err)
				}
				if got := collect(t, raw)[0].Value; string(got) != fmt.Sprintf("value of %d", i) {
					t.Errorf("%v: batch %d holds %q", c, i, got)
				}
			}
		}
	})
	t.Run("keeps records that do not compress as they are", func(t *testing.T) {
		raw := build(t, CodecGzip, Record{Value: []byte("x")})
		if raw.Codec() != CodecNone {
			t.Error(raw)
		}
	})
	t.Run("every level of every codec works", func(t *testing.T) {
		for _, c := range codecs {
			for level := -10; level < 30; level++ {
				b := NewBuilder(BuilderConfig{Codec: c, Level: level})
				b.Append(Record{Value: bytes.Repeat([]byte("high water "), 100)})
				raw, err := b.Build()
				if err != nil || raw.Codec() != c {
					t.Fatalf("%v %d: %v %v", c, level, raw, err)
				}
				collect(t, raw)
			}
		}
	})
}

func drawBytes(t *rapid.T, label string) []byte {
	if rapid.Bool().Draw(t, label+" is null") {
		return nil
	}
	return rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, label)
}

func drawRecords(t *rapid.T) []Record {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Record {
		r := Record{Timestamp: rapid.Int64Range(-1, 1<<42).Draw(t, "timestamp"), Key: drawBytes(t, "key"), Value: drawBytes(t, "value")}
		for range rapid.IntRange(0, 3).Draw(t, "headers") {
			r.Headers = append(r.Headers, Header{Key: rapid.String().Draw(t, "header"), Value: drawBytes(t, "header value")})
		}
		return r
	}), 1, 50).Draw(t, "records")
}

func TestAnyRecordsComeBackAndSizesAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawRecords(t)
		b := NewBuilder(BuilderConfig{Codec: rapid.SampledFrom(codecs).Draw(t, "codec"), Level: rapid.IntRange(0, 9).Draw(t, "level")})
		for i := range want {
			size := b.SizeWith(want[i])
			b.Append(want[i])
			if b.SizeEstimate() != size {
				t.Fatalf("record %d made the batch %d bytes long, not %d", i, b.SizeEstimate(), size)
			}
			want[i].Offset = Offset(1000 + i)
		}
		estimate := b.SizeEstimate()
		raw, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = Check(raw); err != nil {
			t.Fatal(err)
		}
		if len(raw) > estimate {
			t.Fatalf("estimated %d bytes, built %d", estimate, len(raw))
		}
		raw.SetBaseOffset(1000)
		var got []Record
		for r, err := range raw.Records(0) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}
