package grpcapi

import (
	"context"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// scriptedStream is a stream on which a client sent some messages, read
// everything, and then closed its side.
type scriptedStream struct {
	ctx      context.Context
	codec    codec
	messages [][]byte
	sent     int
	bytes    int
}

func (s *scriptedStream) SetHeader(metadata.MD) error  { return nil }
func (s *scriptedStream) SendHeader(metadata.MD) error { return nil }
func (s *scriptedStream) SetTrailer(metadata.MD)       {}
func (s *scriptedStream) Context() context.Context     { return s.ctx }

func (s *scriptedStream) RecvMsg(m any) error {
	if len(s.messages) == 0 {
		return io.EOF
	}
	b := s.messages[0]
	s.messages = s.messages[1:]
	return s.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m)
}

func (s *scriptedStream) SendMsg(m any) error {
	b, err := s.codec.Marshal(m)
	s.sent++
	s.bytes += b.Len()
	return err
}

// split cuts b into messages, each behind two bytes of length.
func split(b []byte) (messages [][]byte) {
	for len(b) >= 2 {
		n := min(int(b[0])<<8|int(b[1]), len(b)-2)
		messages = append(messages, b[2:2+n])
		b = b[2+n:]
	}
	return messages
}

func join(t testing.TB, messages ...proto.Message) (b []byte) {
	for _, m := range messages {
		one, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		b = append(append(b, byte(len(one)>>8), byte(len(one))), one...)
	}
	return b
}

// FuzzRequests sends any bytes to any method: nothing panics, every error has
// a code, and answers stay in proportion.
func FuzzRequests(f *testing.F) {
	services := []*grpc.ServiceDesc{&pb.Log_ServiceDesc, &pb.Topics_ServiceDesc, &pb.Groups_ServiceDesc, &pb.Admin_ServiceDesc}
	batch := batchOf(f, 50)
	f.Add(byte(0), join(f, &pb.ProduceRequest{Correlation: 1, Topic: "t", Batch: batch}, &pb.ProduceRequest{Correlation: 2, Topic: "t", Batch: batch, ExpectOffset: proto.Int64(7)}))
	f.Add(byte(1), join(f, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0), add("x", 9, -5)}, CreditBytes: 1000}, &pb.FetchRequest{Consistency: 1, Remove: []*pb.TopicPartition{{Topic: "t"}}}))
	a := add("t", 1, 3)
	a.LeaderEpoch, a.NotBefore = proto.Int32(2), &pb.Position{Offset: 1 << 60, TopicId: []byte{1}}
	f.Add(byte(1), join(f, &pb.FetchRequest{Add: []*pb.FetchPartition{a}, CreditBytes: 1 << 62, MinBytes: 1 << 31, MaxWaitMs: 1 << 31, Consistency: 2}))
	for i, m := range []proto.Message{
		&pb.ListOffsetsRequest{Queries: []*pb.ListOffsetsRequest_Query{{Topic: "t", TimestampMs: -9}}}, &pb.GetMetadataRequest{Topics: []string{"t"}},
		&pb.CreateTopicRequest{Name: "../..", Partitions: -1}, &pb.TrimTopicRequest{Name: "t", Trims: []*pb.TrimTopicRequest_Trim{{Before: -1}}},
		&pb.HeartbeatRequest{Owned: []*pb.Assignment{{}}}, &pb.CommitOffsetsRequest{Offsets: []*pb.OffsetCommit{{Offset: -1}}}, &pb.DescribeConfigRequest{Topic: "t"},
	} {
		f.Add(byte(2+i), join(f, m))
	}

	broker := newFakeBroker("t", "u")
	for _, r := range broker.replicas {
		r.append(batch)
	}
	api, err := New(DefaultConfig(), Deps{Replicas: broker, Metadata: broker, Topics: broker, Groups: &broker.groups})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { api.Stop(context.Background()) })
	c := newCodec(api.cfg)

	f.Fuzz(func(t *testing.T, method byte, b []byte) {
		messages := split(b)
		ctx, cancel := context.WithCancel(t.Context()) // as when a call ends
		defer cancel()
		s := &scriptedStream{ctx: ctx, codec: c, messages: messages}
		var err error
		switch m := int(method); m % 20 {
		case 0:
			err = api.stream(api, s, &grpc.StreamServerInfo{FullMethod: "/tidemark.v1.Log/Produce"}, pb.Log_ServiceDesc.Streams[0].Handler)
			if s.sent > len(messages)+1 || s.bytes > 2000*(len(messages)+1) {
				t.Fatalf("%d requests got %d answers of %d bytes", len(messages), s.sent, s.bytes)
			}
		case 1:
			err = api.stream(api, s, &grpc.StreamServerInfo{FullMethod: "/tidemark.v1.Log/Fetch"}, pb.Log_ServiceDesc.Streams[1].Handler)
		default:
			var all []grpc.MethodDesc
			for _, desc := range services {
				all = append(all, desc.Methods...)
			}
			decode := func(v any) error {
				if len(messages) == 0 {
					return nil
				}
				return c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(messages[0])}, v)
			}
			desc := all[m%len(all)]
			_, err = desc.Handler(api, ctx, decode, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
				resp, err := api.unary(ctx, req, info, h)
				if err != nil && errorOf(err).Code == 0 {
					t.Fatalf("%s: error without a code: %v", info.FullMethod, err)
				}
				return resp, err
			})
		}
		if n := value(t, api.metrics.panics); n > 0 {
			t.Fatalf("method %d panicked: %v", method, err)
		}
	})
}
