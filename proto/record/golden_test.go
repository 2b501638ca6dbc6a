package record_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/tidemarkhq/tidemark/proto/record"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden is a batch as a broker stores it, with every header field set.
func golden(t testing.TB, c Codec) Raw {
	raw := build(t, c, sample()...)
	raw.SetBaseOffset(0x0102030405)
	raw.SetLeaderEpoch(7)
	raw.SetProducer(4000, 2, 11)
	return raw
}

// What was written once is read for ever. Encoders of later releases may
// compress otherwise, so only the uncompressed batch must come out the same.
func TestGoldenBatches(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			name := filepath.Join("testdata", "batch-v2-"+c.String()+".bin")
			if *update {
				if err := os.WriteFile(name, golden(t, c), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := Check(b)
			if err != nil {
				t.Fatal(err)
			}
			if raw.Codec() != c || raw.BaseOffset() != 0x0102030405 || raw.LeaderEpoch() != 7 || raw.ProducerID() != 4000 || raw.ProducerEpoch() != 2 || raw.BaseSequence() != 11 {
				t.Errorf("header: %v", raw)
			}
			want := sample()
			for i := range want {
				want[i].Offset += 0x0102030405
			}
			if diff := cmp.Diff(want, collect(t, raw)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(want, asTheyRead(t, raw)); diff != "" {
				t.Errorf("as franz-go reads it: %s", diff)
			}
			if c == CodecNone && !bytes.Equal(raw, golden(t, c)) {
				t.Error("an uncompressed batch is written otherwise now")
			}
		})
	}
}
