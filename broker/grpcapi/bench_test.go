package grpcapi

import (
	"context"
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tidemarkhq/tidemark/partition"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// sink takes batches and forgets them: what remains is the cost of the door.
type sink struct{ *fakeBroker }

func (s sink) Produce(_ context.Context, _ string, _ int32, a partition.Append) (Pending, error) {
	p := &fakePending{done: make(chan struct{})}
	p.answer(partition.Appended{Acked: a.Acks, LogAppendTime: -1}, nil)
	return p, nil
}

// loopback serves over TCP, as clients on the same machine see it.
func loopback(b *testing.B, replicas Replicas, broker *fakeBroker) pb.LogClient {
	b.Helper()
	api, err := New(DefaultConfig(), Deps{Replicas: replicas, Metadata: broker, Topics: broker, Groups: &broker.groups})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- api.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		conn.Close()
		api.Stop(context.Background())
		<-served
	})
	return pb.NewLogClient(conn)
}

// BenchmarkProduce keeps 8 requests in flight; client and door share the machine.
func BenchmarkProduce(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("batch=%dKiB", size>>10), func(b *testing.B) {
			broker := newFakeBroker("t")
			s, err := loopback(b, sink{broker}, broker).Produce(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Recv(); err != nil {
				b.Fatal(err)
			}
			req := &pb.ProduceRequest{Topic: "t", Batch: batchOf(b, size)}
			inFlight := 0
			recv := func() {
				if _, err := s.Recv(); err != nil {
					b.Fatal(err)
				}
				inFlight--
			}
			b.SetBytes(int64(len(req.Batch)))
			b.ReportAllocs()
			for b.Loop() {
				req.Correlation++
				if err := s.Send(req); err != nil {
					b.Fatal(err)
				}
				if inFlight++; inFlight == 8 {
					recv()
				}
			}
			for inFlight > 0 {
				recv()
			}
		})
	}
}

// BenchmarkFetch reads batches from memory, over and over.
func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("batch=%dKiB", size>>10), func(b *testing.B) {
			broker := newFakeBroker("t")
			r := broker.replica("t", 0)
			batch := batchOf(b, size)
			perRound := min(512, (8<<20)/size)
			for range perRound {
				r.append(batch)
			}
			s, err := loopback(b, broker, broker).Fetch(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			have, left := 0, 0 // batches received and not counted yet; batches of this round to come
			b.SetBytes(int64(len(batch)))
			b.ReportAllocs()
			for b.Loop() {
				if have == 0 && left == 0 {
					left = perRound
					if err := s.Send(&pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}, CreditBytes: 16 << 20}); err != nil {
						b.Fatal(err)
					}
				}
				if have == 0 {
					resp, err := s.Recv()
					if err != nil {
						b.Fatal(err)
					}
					have = len(resp.Batches)
					left -= have
				}
				have--
			}
		})
	}
}

// BenchmarkWake is what one commit costs a stream that watches many partitions.
func BenchmarkWake(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("partitions=%d", n), func(b *testing.B) {
			broker := newFakeBroker("t")
			api, err := New(DefaultConfig(), Deps{Replicas: broker, Metadata: broker, Topics: broker, Groups: &broker.groups})
			if err != nil {
				b.Fatal(err)
			}
			f := newFetchStream(api, b.Context())
			req := &pb.FetchRequest{CreditBytes: 1 << 20}
			for p := range int32(n) {
				broker.replicas[partID{"t", p}] = newFakeReplica()
				req.Add = append(req.Add, add("t", p, 0))
			}
			if err := f.request(req); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if out, _, err := f.next(); out != nil || err != nil {
					b.Fatal(out, err)
				}
			}
			f.close()
		})
	}
}
