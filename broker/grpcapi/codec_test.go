package grpcapi

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

func TestFieldNumbersAreThoseOfTheProto(t *testing.T) {
	want := map[protoreflect.Name]protoreflect.FieldNumber{
		"correlation": produceCorrelationField, "topic": produceTopicField, "partition": producePartitionField, "batch": produceBatchField,
		"acks": produceAcksField, "timeout_ms": produceTimeoutField, "expect_offset": produceExpectField,
	}
	fields := (&pb.ProduceRequest{}).ProtoReflect().Descriptor().Fields()
	if fields.Len() != len(want) {
		t.Errorf("ProduceRequest has %d fields, the codec knows %d", fields.Len(), len(want))
	}
	for name, number := range want {
		if f := fields.ByName(name); f == nil || f.Number() != number {
			t.Errorf("%s is %v, the codec says %d", name, f, number)
		}
	}
	if f := (&pb.FetchResponse{}).ProtoReflect().Descriptor().Fields().ByName("batches"); f.Number() != fetchBatchesField {
		t.Errorf("batches is %v", f)
	}
}

// slices cuts b as the transport does.
func slices(b []byte, cut int) mem.BufferSlice {
	var s mem.BufferSlice
	for len(b) > cut {
		s = append(s, mem.SliceBuffer(b[:cut]))
		b = b[cut:]
	}
	return append(s, mem.SliceBuffer(b))
}

func same(in *produceIn, want *pb.ProduceRequest) bool {
	batch := []byte(nil)
	if in.batch != nil {
		batch = in.batch[partition.HeadRoom:]
	}
	return in.correlation == want.Correlation && in.topic == want.Topic && in.partition == want.Partition && bytes.Equal(batch, want.Batch) &&
		in.batchBytes == len(want.Batch) && in.acks == want.Acks && in.timeoutMs == want.TimeoutMs &&
		(in.expect == nil) == (want.ExpectOffset == nil) && (in.expect == nil || *in.expect == *want.ExpectOffset)
}

func TestProduceRequestsDecodeAsProtobufDoes(t *testing.T) {
	c := newCodec(DefaultConfig())
	rapid.Check(t, func(r *rapid.T) {
		want := &pb.ProduceRequest{
			Correlation: rapid.Uint64().Draw(r, "correlation"), Topic: rapid.StringN(0, 100, 400).Draw(r, "topic"), Partition: rapid.Int32().Draw(r, "partition"),
			Batch: rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(r, "batch"), Acks: pb.Acks(rapid.Int32().Draw(r, "acks")), TimeoutMs: rapid.Uint32().Draw(r, "timeout"),
		}
		if rapid.Bool().Draw(r, "conditional") {
			o := rapid.Int64().Draw(r, "expect")
			want.ExpectOffset = &o
		}
		b, err := proto.Marshal(want)
		if err != nil {
			r.Fatal(err)
		}
		var in produceIn
		if c.Unmarshal(slices(b, rapid.IntRange(1, 500).Draw(r, "cut")), &in); in.err != nil {
			r.Fatal(in.err)
		}
		if !same(&in, want) {
			r.Fatalf("%+v is not %v", in, want)
		}
	})
}

// FuzzProduceCodec: what the codec accepts, protobuf reads the same way.
func FuzzProduceCodec(f *testing.F) {
	good, err := proto.Marshal(&pb.ProduceRequest{Correlation: 1, Topic: "t", Batch: batchOf(f, 100), Acks: pb.Acks_ACKS_QUORUM, ExpectOffset: proto.Int64(5)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, 3)
	f.Add(good[:len(good)-1], 100)
	f.Add([]byte{0x22, 0xff, 0xff, 0xff, 0xff, 0x0f}, 1)
	f.Add([]byte{0x0b, 0x0c}, 1)
	c := newCodec(DefaultConfig())
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		var in produceIn
		c.Unmarshal(slices(b, max(cut, 1)), &in)
		if len(in.batch) > len(b)+partition.HeadRoom {
			t.Fatalf("%d bytes became %d", len(b), len(in.batch))
		}
		var want pb.ProduceRequest
		if err := proto.Unmarshal(b, &want); in.err == nil && (err != nil || !same(&in, &want)) {
			t.Fatalf("%+v is not %v, %v", in, &want, err)
		}
	})
}

func TestFetchResponsesAreEncodedWithoutCopies(t *testing.T) {
	c := newCodec(DefaultConfig())
	head := &pb.FetchResponse{Topic: "t", Partition: 3, Session: 9, HighWatermark: 8, Position: &pb.Position{TopicId: make([]byte, 16), Offset: 5}}
	for n := range 4 {
		var batches []record.Raw
		want := proto.Clone(head).(*pb.FetchResponse)
		for i := range n {
			b := batchOf(t, 1000*(i+1))
			batches = append(batches, b)
			want.Batches = append(want.Batches, b)
		}
		data, err := c.Marshal(&fetchOut{head: head, batches: batches})
		if err != nil {
			t.Fatal(err)
		}
		var got pb.FetchResponse
		if err := proto.Unmarshal(data.Materialize(), &got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&got, want) {
			t.Errorf("%d batches: %v", n, &got)
		}
		for i, b := range batches {
			if &data[2*i+1].ReadOnlyData()[0] != &b[0] {
				t.Errorf("batch %d of %d was copied", i, n)
			}
		}
	}
}

// Two bytes of a repeated field become a hundred once they are decoded.
func TestRequestsWithoutBatchAreBoundedBeforeTheyAreDecoded(t *testing.T) {
	c := newCodec(DefaultConfig())
	err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(bytes.Repeat([]byte{0x0a, 0}, 600<<10))}, &pb.FetchRequest{})
	if errs.CodeOf(err) != errs.MessageTooLarge {
		t.Error(err)
	}
}

func TestABatchThatIsTooLargeIsNotKept(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxBatchBytes = 1000
	b, err := proto.Marshal(&pb.ProduceRequest{Correlation: 4, Batch: make([]byte, 1001), Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	var in produceIn
	if err := newCodec(cfg).Unmarshal(slices(b, 100), &in); err != nil || in.err != nil || in.batch != nil || in.batchBytes != 1001 || in.correlation != 4 || in.topic != "t" {
		t.Errorf("%v, %+v", err, in)
	}
}
