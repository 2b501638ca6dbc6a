package record_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	. "github.com/tidemarkhq/tidemark/proto/record"
)

// theirs encodes records with franz-go's parts.
func theirs(t testing.TB, c kgo.CompressionCodec, records []Record) []byte {
	var body []byte
	base := records[0].Timestamp
	newest := base
	for i, r := range records {
		newest = max(newest, r.Timestamp)
		k := kmsg.Record{TimestampDelta64: r.Timestamp - base, OffsetDelta: int32(i), Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			k.Headers = append(k.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		with := k.AppendTo(nil)
		k.Length = int32(len(with) - 1) // its length was written as 0, in one byte
		body = k.AppendTo(body)
	}
	var attributes int16
	if comp, err := kgo.DefaultCompressor(c); err != nil {
		t.Fatal(err)
	} else if comp != nil {
		compressed, codec := comp.Compress(new(bytes.Buffer), body)
		attributes, body = int16(codec), bytes.Clone(compressed)
	}
	batch := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: attributes, LastOffsetDelta: int32(len(records) - 1),
		FirstTimestamp: base, MaxTimestamp: newest, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1,
		NumRecords: int32(len(records)), Records: body,
	}
	b := Raw(batch.AppendTo(nil))
	b[8], b[9], b[10], b[11] = byte((len(b)-12)>>24), byte((len(b)-12)>>16), byte((len(b)-12)>>8), byte(len(b)-12)
	crc := b.ComputeCRC()
	b[17], b[18], b[19], b[20] = byte(crc>>24), byte(crc>>16), byte(crc>>8), byte(crc)
	return b
}

// asTheyRead decodes a batch as a franz-go consumer does.
func asTheyRead(t testing.TB, raw Raw) []Record {
	p := kmsg.NewFetchResponseTopicPartition()
	p.RecordBatches = raw
	p.HighWatermark = int64(raw.EndOffset())
	fp, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t"}, &p, kgo.DefaultDecompressor(), nil)
	if fp.Err != nil {
		t.Fatal(fp.Err)
	}
	var got []Record
	for _, k := range fp.Records {
		r := Record{Offset: Offset(k.Offset), Timestamp: k.Timestamp.UnixMilli(), Key: k.Key, Value: k.Value}
		for _, h := range k.Headers {
			r.Headers = append(r.Headers, Header{Key: h.Key, Value: h.Value})
		}
		got = append(got, r)
	}
	return got
}

var theirCodecs = []kgo.CompressionCodec{
	kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
}

func TestFranzGoAndWeReadEachOther(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		want := drawRecords(r)
		c := rapid.IntRange(0, 4).Draw(r, "codec")
		for i := range want {
			want[i].Offset = Offset(i)
		}
		raw, err := Check(theirs(t, theirCodecs[c], want))
		if err != nil {
			r.Fatal(err)
		}
		if diff := cmp.Diff(want, collect(t, raw)); diff != "" {
			r.Fatalf("we read theirs: %s", diff)
		}
		if diff := cmp.Diff(want, asTheyRead(t, build(t, Codec(c), want...))); diff != "" {
			r.Fatalf("they read ours: %s", diff)
		}
	})
}

func TestUncompressedBatchesEqualFranzGosByteForByte(t *testing.T) {
	if ours, want := build(t, CodecNone, sample()...), theirs(t, theirCodecs[0], sample()); !bytes.Equal(ours, want) {
		t.Errorf("ours\n%x\ntheirs\n%x", []byte(ours), want)
	}
}

func TestOurHeaderFieldsAreKmsgs(t *testing.T) {
	raw := build(t, CodecLZ4, sample()...)
	raw.SetBaseOffset(1<<33 + 5)
	raw.SetLeaderEpoch(1<<20 + 3)
	raw.SetProducer(1<<35+7, 1<<9+1, 1<<21+9)
	var k kmsg.RecordBatch
	if err := k.ReadFrom(raw); err != nil {
		t.Fatal(err)
	}
	got := []any{k.FirstOffset, k.Length, k.PartitionLeaderEpoch, k.Magic, uint32(k.CRC), k.Attributes, k.LastOffsetDelta,
		k.FirstTimestamp, k.MaxTimestamp, k.ProducerID, k.ProducerEpoch, k.FirstSequence, k.NumRecords}
	want := []any{int64(raw.BaseOffset()), int32(raw.Size() - 12), int32(raw.LeaderEpoch()), raw.Magic(), raw.CRC(), raw.Attributes(), raw.LastOffsetDelta(),
		raw.FirstTimestamp(), raw.MaxTimestamp(), raw.ProducerID(), raw.ProducerEpoch(), raw.BaseSequence(), raw.Count()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
