package record_test

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"

	. "github.com/tidemarkhq/tidemark/proto/record"
)

const fuzzLimit = 1 << 20

func seeds(f *testing.F) {
	for _, c := range codecs {
		f.Add([]byte(golden(f, c)))
		f.Add([]byte(build(f, c, Record{Value: bytes.Repeat([]byte{1}, 3000)})))
	}
	for _, raw := range bombs(f, 0) {
		if len(raw) < 64<<10 {
			f.Add([]byte(raw))
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, HeaderBytes))
}

// Whatever Check accepts is one whole batch by Next too, and its header can be read.
func FuzzCheck(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAndNext(t, b)
		checkAndNext(t, repaired(b))
	})
}

// repaired makes length, magic and CRC right, so that what lies behind them is reached.
func repaired(b []byte) []byte {
	if len(b) < HeaderBytes {
		return b
	}
	b = bytes.Clone(b)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	binary.BigEndian.PutUint32(b[17:], Raw(b).ComputeCRC())
	return b
}

func checkAndNext(t *testing.T, b []byte) {
	raw, err := Check(b)
	batch, rest, nextErr := Next(b)
	if (err == nil) && (nextErr != nil || len(rest) > 0 || !bytes.Equal(batch, raw)) {
		t.Fatalf("Check accepts, Next says %v, %v, %v", batch, rest, nextErr)
	}
	if nextErr != nil {
		if batch != nil || !bytes.Equal(rest, b) {
			t.Fatalf("Next fails with %v and returns %v, %d of %d bytes", nextErr, batch, len(rest), len(b))
		}
		return
	}
	if len(batch)+len(rest) != len(b) || batch.Size() != len(batch) {
		t.Fatalf("Next made %d and %d bytes of %d", len(batch), len(rest), len(b))
	}
	_ = batch.String()
	_, _, _ = batch.LastSequence(), batch.EndOffset(), batch.TimestampType()
	if err == nil && (raw.Count() < 1 || raw.EndOffset()-raw.BaseOffset() != Offset(raw.Count())) {
		t.Fatalf("accepted %v", raw)
	}
}

// No batch makes Records panic, take much more memory than its limit, or yield
// records out of order.
func FuzzRecords(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderBytes {
			return
		}
		raw := Raw(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		last, n := raw.BaseOffset()-1, 0
		for r, err := range raw.Records(fuzzLimit) {
			if err != nil {
				break
			}
			if r.Offset <= last && raw.BaseOffset() < 1<<62 && raw.BaseOffset() > -1<<62 {
				t.Fatalf("record %d follows %d", r.Offset, last)
			}
			last = r.Offset
			n++
		}
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 64*fuzzLimit+64*uint64(len(b)) {
			t.Fatalf("%d records of %d bytes took %d bytes of memory", n, len(b), took)
		}
	})
}

// What decodes is built again to the same records.
func FuzzRebuild(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := Check(repaired(b))
		if err != nil {
			return
		}
		var records []Record
		for r, err := range raw.Records(fuzzLimit) {
			if err != nil {
				return
			}
			records = append(records, r)
		}
		again := build(t, raw.Codec(), records...)
		if _, err := Check(again); err != nil && records[0].Timestamp >= None {
			t.Fatal(err)
		}
		for i, r := range collect(t, again) {
			if want := records[i]; r.Timestamp != want.Timestamp || !bytes.Equal(r.Key, want.Key) || !bytes.Equal(r.Value, want.Value) || (r.Value == nil) != (want.Value == nil) {
				t.Fatalf("record %d: %+v became %+v", i, want, r)
			}
		}
	})
}
