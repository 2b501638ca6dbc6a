package record_test

import (
	"bytes"
	"fmt"
	"testing"

	. "github.com/tidemarkhq/tidemark/proto/record"
)

// The broker's hot path: checking and stamping a batch costs no memory.
func TestCheckAndStampsDoNotAllocate(t *testing.T) {
	raw := build(t, CodecZstd, sample()...)
	var sum int64
	if n := testing.AllocsPerRun(100, func() {
		b, err := Check(raw)
		if err != nil {
			t.Fatal(err)
		}
		b, _, err = Next(b)
		if err != nil {
			t.Fatal(err)
		}
		b.SetBaseOffset(5)
		b.SetLeaderEpoch(6)
		b.SetLogAppendTime(7)
		b.SetProducer(8, 9, 10)
		sum += int64(b.EndOffset()) + b.MaxTimestamp() + int64(b.LastSequence()) + int64(b.Codec()) + int64(b.Count()) + int64(b.CRC())
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// One buffer for the batch, however many records it has.
func TestRecordsAllocateByBatchNotByRecord(t *testing.T) {
	for _, c := range codecs {
		if poolsForget && c != CodecNone {
			continue
		}
		records := make([]Record, 500)
		for i := range records {
			records[i] = Record{Key: fmt.Appendf(nil, "key %d", i), Value: bytes.Repeat([]byte("v"), 100)}
		}
		raw := build(t, c, records...)
		if n := testing.AllocsPerRun(20, func() {
			for _, err := range raw.Records(0) {
				if err != nil {
					t.Fatal(err)
				}
			}
		}); n > 12 {
			t.Errorf("%v: %v allocations for %d records", c, n, len(records))
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		raw := build(b, CodecNone, Record{Value: make([]byte, size)})
		b.Run(fmt.Sprintf("size=%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Check(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// words is text that compresses about as well as JSON records do.
func words(i int) []byte {
	return fmt.Appendf(nil, `{"id":%d,"user":"user-%d","path":"/v1/harbours/%d/tides","level_mm":%d,"note":"%x"}`, i, i%977, i%53, i*7919%9000, uint64(i)*0x9e3779b97f4a7c15)
}

func BenchmarkBuild(b *testing.B) {
	for _, c := range codecs {
		b.Run(fmt.Sprintf("codec=%v/batch=500", c), func(b *testing.B) {
			bld := NewBuilder(BuilderConfig{Codec: c, CapacityBytes: 64 << 10})
			var values [500][]byte
			for i := range values {
				values[i] = words(i)
			}
			var plain, built int
			b.ReportAllocs()
			for b.Loop() {
				bld.Reset()
				for i, v := range values {
					bld.Append(Record{Timestamp: int64(i), Key: v[:10], Value: v})
				}
				plain = bld.SizeEstimate()
				raw, err := bld.Build()
				if err != nil {
					b.Fatal(err)
				}
				built = len(raw)
			}
			b.SetBytes(int64(plain))
			b.ReportMetric(float64(plain)/float64(built), "ratio")
		})
	}
}

func BenchmarkRecords(b *testing.B) {
	for _, c := range codecs {
		b.Run(fmt.Sprintf("codec=%v/batch=500", c), func(b *testing.B) {
			records := make([]Record, 500)
			for i := range records {
				records[i] = Record{Timestamp: int64(i), Key: words(i)[:10], Value: words(i)}
			}
			raw := build(b, c, records...)
			b.SetBytes(int64(len(build(b, CodecNone, records...))))
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range raw.Records(0) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
