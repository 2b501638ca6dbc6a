package grpcapi

import (
	"encoding/binary"
	"io"
	"math"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that newCodec wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// codec is protobuf, with two differences. Requests are bounded before they are
// decoded, since two bytes of a repeated field become a hundred. And batches
// are spared copies: on their way in they are copied once, behind the room that the
// replica wants; on their way out the transport gets the log's own memory.
type codec struct {
	encoding.CodecV2
	maxRequestBytes int
	maxBatchBytes   int
}

func newCodec(cfg Config) codec {
	return codec{encoding.GetCodecV2("proto"), cfg.MaxRequestBytes, cfg.MaxBatchBytes}
}

// produceIn is a ProduceRequest as the codec decodes it.
type produceIn struct {
	correlation uint64
	topic       string
	partition   int32
	// batch has partition.HeadRoom bytes in front of the batch. It is nil
	// when the batch is empty or too large.
	batch      []byte
	batchBytes int // of the batch alone, even where it was not kept
	acks       pb.Acks
	timeoutMs  uint32
	expect     *int64
	err        error // the message could not be decoded
}

// fetchOut is a FetchResponse whose batches are not copied.
type fetchOut struct {
	head    *pb.FetchResponse // without batches
	batches []record.Raw
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if in, ok := v.(*produceIn); ok {
		// gRPC would answer an error from here itself, without a code of ours.
		in.err = c.produce(data, in)
		return nil
	}
	if n := data.Len(); n > c.maxRequestBytes {
		return errs.Errorf(errs.MessageTooLarge, "request of %d bytes is larger than the limit of %d; ask for less at once", n, c.maxRequestBytes)
	}
	return c.CodecV2.Unmarshal(data, v)
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	out, ok := v.(*fetchOut)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	// A message is the concatenation of its fields in any order, so the batches go behind the rest.
	head, err := proto.Marshal(out.head)
	if err != nil {
		return nil, err
	}
	data := make(mem.BufferSlice, 0, 2*len(out.batches)+1)
	for _, b := range out.batches {
		head = protowire.AppendTag(head, fetchBatchesField, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(b)))
		data = append(data, mem.SliceBuffer(head), mem.SliceBuffer(b))
		head = nil
	}
	if head != nil {
		data = append(data, mem.SliceBuffer(head))
	}
	return data, nil
}

// The numbers of the fields, as tidemark.proto has them; a test compares.
const (
	fetchBatchesField = 4

	produceCorrelationField = 1
	produceTopicField       = 2
	producePartitionField   = 3
	produceBatchField       = 4
	produceAcksField        = 5
	produceTimeoutField     = 6
	produceExpectField      = 7
)

// maxTopicBytes is more than any topic's name may have.
const maxTopicBytes = 1024

var errWire = errs.New(errs.InvalidRequest, "request is not a valid protobuf message")

// produce decodes a ProduceRequest. As protobuf wants it, the last of several
// fields of one number counts, and unknown fields are skipped.
func (c codec) produce(data mem.BufferSlice, in *produceIn) error {
	r := data.Reader()
	defer r.Close()
	*in = produceIn{}
	for r.Remaining() > 0 {
		tag, err := binary.ReadUvarint(r)
		if err != nil || tag>>3 == 0 || tag>>3 > uint64(protowire.MaxValidNumber) {
			return errWire
		}
		field, typ := protowire.Number(tag>>3), protowire.Type(tag&7)
		switch typ {
		case protowire.VarintType:
			v, err := binary.ReadUvarint(r)
			if err != nil {
				return errWire
			}
			in.setVarint(field, v)
		case protowire.BytesType:
			n, err := binary.ReadUvarint(r)
			if err != nil || n > uint64(r.Remaining()) {
				return errWire
			}
			if err := c.setBytes(in, field, int(n), r); err != nil {
				return err
			}
		case protowire.Fixed32Type, protowire.Fixed64Type:
			n := 4
			if typ == protowire.Fixed64Type {
				n = 8
			}
			if _, err := r.Discard(n); err != nil {
				return errWire
			}
		default: // groups: nobody sends them
			return errWire
		}
	}
	return nil
}

func (in *produceIn) setVarint(field protowire.Number, v uint64) {
	switch field {
	case produceCorrelationField:
		in.correlation = v
	case producePartitionField:
		in.partition = int32(v)
	case produceAcksField:
		in.acks = pb.Acks(int32(v))
	case produceTimeoutField:
		in.timeoutMs = uint32(v)
	case produceExpectField:
		e := int64(v)
		in.expect = &e
	}
}

func (c codec) setBytes(in *produceIn, field protowire.Number, n int, r *mem.Reader) error {
	switch {
	case field == produceTopicField && n <= maxTopicBytes:
		name := make([]byte, n)
		if _, err := io.ReadFull(r, name); err != nil || !utf8.Valid(name) {
			return errWire
		}
		in.topic = string(name)
		return nil
	case field == produceTopicField:
		return errs.Errorf(errs.InvalidTopicException, "topic name of %d bytes is too long", n)
	case field == produceBatchField:
		in.batch, in.batchBytes = nil, n
		// One that is too large is refused later, by itself: the stream goes on.
		if n > 0 && n <= c.maxBatchBytes && n <= math.MaxInt32-partition.HeadRoom {
			in.batch = make([]byte, partition.HeadRoom+n)
			if _, err := io.ReadFull(r, in.batch[partition.HeadRoom:]); err != nil {
				return errWire
			}
			return nil
		}
	}
	if _, err := r.Discard(n); err != nil {
		return errWire
	}
	return nil
}
