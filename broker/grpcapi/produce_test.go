package grpcapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// withDoor runs f in a bubble whose time stands still while anything works, so
// that synctest.Wait means: nothing more will happen by itself.
func withDoor(t *testing.T, change func(*Config), f func(t *testing.T, d *door)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := open(t, newFakeBroker("t", "u"), change)
		defer d.close()
		f(t, d)
	})
}

type produceClient struct {
	t      *testing.T
	s      pb.Log_ProduceClient
	cancel context.CancelFunc
	sent   uint64
}

func (d *door) produce(t *testing.T) *produceClient {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := pb.NewLogClient(d.conn).Produce(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &produceClient{t: t, s: s, cancel: cancel}
	if first := c.recv(); first.Correlation != 0 || first.WindowBytes != int64(d.api.cfg.ProduceWindowBytes) {
		t.Fatalf("first response %v", first)
	}
	return c
}

func (c *produceClient) send(r *pb.ProduceRequest) {
	c.t.Helper()
	if r.Correlation == 0 {
		c.sent++
		r.Correlation = c.sent
	}
	if r.Topic == "" {
		r.Topic = "t"
	}
	if err := c.s.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *produceClient) recv() *pb.ProduceResponse {
	c.t.Helper()
	r, err := c.s.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

func TestProduceAnswersWithOffsetsAndTokens(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c := d.produce(t)
		for i := range int64(3) {
			c.send(&pb.ProduceRequest{Batch: batchOf(t, 10), Partition: 1, Acks: pb.Acks_ACKS_QUORUM})
			got := c.recv()
			if got.Correlation != c.sent || got.Error != nil || got.BaseOffset != i || got.Acked != pb.Acks_ACKS_QUORUM || got.LogAppendTimeMs != -1 {
				t.Fatalf("%v", got)
			}
			if p := got.Position; p.Offset != i+1 || p.Partition != 1 || p.LeaderEpoch != 1 || len(p.TopicId) != 16 || p.TopicId[0] != 1 {
				t.Fatalf("token %v", p)
			}
		}
		c.s.CloseSend()
		if _, err := c.s.Recv(); err == nil || err.Error() != "EOF" {
			t.Errorf("after the end: %v", err)
		}
		if n := value(t, d.api.metrics.requests.WithLabelValues("Produce", "ok")); n != 3 {
			t.Errorf("counted %v requests", n)
		}
	})
}

func TestAnswersComeInTheOrderOfRequests(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.hold = true
		c := d.produce(t)
		for range 5 {
			c.send(&pb.ProduceRequest{Batch: batchOf(t, 10)})
		}
		synctest.Wait()
		held := d.broker.held
		if len(held) != 5 {
			t.Fatalf("%d requests were dispatched while none was answered", len(held))
		}
		for i := len(held) - 1; i >= 0; i-- {
			held[i].answer(partition.Appended{BaseOffset: record.Offset(100 + i)}, nil)
		}
		for i := range 5 {
			if got := c.recv(); got.Correlation != uint64(i+1) || got.BaseOffset != int64(100+i) {
				t.Fatalf("answer %d is %v", i, got)
			}
		}
		c.cancel()
	})
}

func TestOneBadRequestDoesNotEndTheStream(t *testing.T) {
	withDoor(t, func(c *Config) { c.MaxBatchBytes = 2000 }, func(t *testing.T, d *door) {
		c := d.produce(t)
		corrupt := batchOf(t, 100)
		corrupt[70] ^= 1
		for _, tt := range []struct {
			name string
			req  *pb.ProduceRequest
			want errs.Code
		}{
			{"unknown topic", &pb.ProduceRequest{Topic: "nowhere", Batch: batchOf(t, 1)}, errs.UnknownTopicOrPartition},
			{"unknown partition", &pb.ProduceRequest{Partition: -4, Batch: batchOf(t, 1)}, errs.UnknownTopicOrPartition},
			{"no batch", &pb.ProduceRequest{}, errs.InvalidRecord},
			{"a batch that is too large", &pb.ProduceRequest{Batch: batchOf(t, 3000)}, errs.MessageTooLarge},
			{"a damaged batch", &pb.ProduceRequest{Batch: corrupt}, errs.CorruptMessage},
			{"acks that do not exist", &pb.ProduceRequest{Batch: batchOf(t, 1), Acks: 9}, errs.InvalidRequiredAcks},
			{"an expectation that fails", &pb.ProduceRequest{Batch: batchOf(t, 1), ExpectOffset: proto.Int64(55)}, errs.ExpectationFailed},
		} {
			c.send(tt.req)
			got := c.recv()
			if got.Correlation != c.sent || errs.Code(got.Error.GetCode()) != tt.want || got.Error.Name != tt.want.Name() || got.BaseOffset != -1 || got.Error.OutcomeUnknown {
				t.Errorf("%s: %v", tt.name, got)
			}
			if tt.want == errs.ExpectationFailed && (got.Error.ActualOffset == nil || *got.Error.ActualOffset != 0) {
				t.Errorf("actual offset: %v", got.Error)
			}
		}
		c.send(&pb.ProduceRequest{Batch: batchOf(t, 1), ExpectOffset: proto.Int64(0)})
		if got := c.recv(); got.Error != nil {
			t.Errorf("the good one: %v", got)
		}
		c.cancel()
	})
}

func TestAcksNoneLearnNoOffset(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c := d.produce(t)
		c.send(&pb.ProduceRequest{Batch: batchOf(t, 1), Acks: pb.Acks_ACKS_NONE})
		if got := c.recv(); got.BaseOffset != -1 || got.Acked != pb.Acks_ACKS_NONE || got.Position != nil || got.Error != nil {
			t.Error(got)
		}
		c.cancel()
	})
}

// A client that ignores the window is not refused: the broker stops reading.
func TestTheWindowBoundsWhatIsUnanswered(t *testing.T) {
	const window = 1 << 20
	withDoor(t, func(c *Config) { c.ProduceWindowBytes = window }, func(t *testing.T, d *door) {
		d.broker.hold = true
		c := d.produce(t)
		batch := batchOf(t, 100_000)
		const requests = 60
		go func() {
			for i := range uint64(requests) {
				if c.s.Send(&pb.ProduceRequest{Correlation: i + 1, Topic: "t", Batch: batch}) != nil {
					return
				}
			}
		}()
		synctest.Wait()
		if n, bytes := d.broker.dispatched(); bytes > window || n < window/len(batch) {
			t.Fatalf("%d bytes in %d requests were taken with a window of %d", bytes, n, window)
		}
		answered := 0
		for answered < requests {
			d.broker.mu.Lock()
			held := d.broker.held
			d.broker.held = nil
			d.broker.mu.Unlock()
			for _, p := range held {
				p.answer(partition.Appended{}, nil)
			}
			for range held {
				answered++
				if got := c.recv(); got.Correlation != uint64(answered) || got.Error != nil {
					t.Fatal(got)
				}
			}
			synctest.Wait()
		}
		c.cancel()
	})
}

// The client sends and never receives: neither side may wedge the other, nor
// may answers pile up.
func TestAProducerThatNeverReceivesIsHeldBack(t *testing.T) {
	withDoor(t, func(c *Config) { c.ProduceWindowRequests = 50 }, func(t *testing.T, d *door) {
		c := d.produce(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range uint64(1_000_000) {
				if c.s.Send(&pb.ProduceRequest{Correlation: i + 1, Topic: strings.Repeat("x", 200)}) != nil {
					return
				}
			}
			t.Error("everything was taken")
		}()
		synctest.Wait() // the client is held back by flow control
		c.cancel()
		<-done
	})
}

func TestALargerBatchThanTheWindowGoesAlone(t *testing.T) {
	withDoor(t, func(c *Config) { c.ProduceWindowBytes = 1000 }, func(t *testing.T, d *door) {
		c := d.produce(t)
		c.send(&pb.ProduceRequest{Batch: batchOf(t, 5000)})
		if got := c.recv(); got.Error != nil {
			t.Error(got)
		}
		c.cancel()
	})
}

func TestADeadlineIsAnUnknownOutcome(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.hold = true
		c := d.produce(t)
		start := time.Now()
		c.send(&pb.ProduceRequest{Batch: batchOf(t, 1), TimeoutMs: 1500})
		got := c.recv()
		if errs.Code(got.Error.GetCode()) != errs.RequestTimedOut || !got.Error.OutcomeUnknown || !got.Error.Retriable {
			t.Error(got)
		}
		if took := time.Since(start); took != 1500*time.Millisecond {
			t.Errorf("after %v", took)
		}
		c.cancel()
	})
}

func TestErrorsWithoutACodeAreHiddenLoggedAndCounted(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.fail = errors.New("secret path /var/lib")
		c := d.produce(t)
		c.send(&pb.ProduceRequest{Batch: batchOf(t, 1)})
		got := c.recv().Error
		if errs.Code(got.Code) != errs.UnknownServerError || strings.Contains(got.Message, "secret") || !got.OutcomeUnknown {
			t.Error(got)
		}
		c.cancel()
		synctest.Wait()
		if !strings.Contains(d.logged.String(), "secret path") || value(t, d.api.metrics.uncoded) != 1 {
			t.Errorf("logged %q", d.logged)
		}
	})
}

func TestAPanicEndsTheStreamAndNothingElse(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.explode = true
		c := d.produce(t)
		c.send(&pb.ProduceRequest{Batch: batchOf(t, 1)})
		_, err := c.s.Recv()
		if e := detail(t, err); errs.Code(e.Code) != errs.UnknownServerError || strings.Contains(e.Message, "invariant") {
			t.Errorf("%v", err)
		}
		d.broker.mu.Lock()
		d.broker.explode = false
		d.broker.mu.Unlock()
		again := d.produce(t)
		again.send(&pb.ProduceRequest{Batch: batchOf(t, 1)})
		if got := again.recv(); got.Error != nil {
			t.Error(got)
		}
		again.cancel()
		if value(t, d.api.metrics.panics) != 1 || value(t, d.api.metrics.uncoded) != 0 {
			t.Error("not counted as one panic")
		}
	})
}

func TestMalformedStreamsEndWithACode(t *testing.T) {
	for _, tt := range []struct {
		name string
		send any
		want errs.Code
	}{
		{"correlation 0", &pb.ProduceRequest{Topic: "t"}, errs.InvalidRequest},
		{"another message", &pb.FetchPartition{Topic: string([]byte{0}), Session: 1, NotBefore: &pb.Position{}, LeaderEpoch: proto.Int32(-1), Partition: 5}, errs.InvalidRequest},
		{"a long name", &pb.ProduceRequest{Correlation: 1, Topic: strings.Repeat("x", 2000)}, errs.InvalidTopicException},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withDoor(t, func(c *Config) { c.MaxBatchBytes, c.MaxRequestBytes = 100<<10, 100<<10 }, func(t *testing.T, d *door) {
				c := d.produce(t)
				if err := c.s.SendMsg(tt.send); err != nil {
					t.Fatal(err)
				}
				_, err := c.s.Recv()
				if e := detail(t, err); errs.Code(e.Code) != tt.want {
					t.Errorf("%v", err)
				}
				c.cancel()
			})
		})
	}
}

func TestShutdownAnswersWhatIsInFlight(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.hold = true
		busy, idle := d.produce(t), d.produce(t)
		busy.send(&pb.ProduceRequest{Batch: batchOf(t, 1)})
		synctest.Wait()
		d.api.Drain()
		_, err := idle.s.Recv()
		if e := detail(t, err); status.Code(err) != codes.Unavailable || errs.Code(e.Code) != errs.ShuttingDown || !e.Retriable && errs.ShuttingDown.Retriable() {
			t.Errorf("idle stream: %v", err)
		}
		synctest.Wait()
		d.broker.held[0].answer(partition.Appended{BaseOffset: 42}, nil)
		if got := busy.recv(); got.BaseOffset != 42 {
			t.Error(got)
		}
		if _, err = busy.s.Recv(); errs.Code(detail(t, err).Code) != errs.ShuttingDown {
			t.Errorf("busy stream: %v", err)
		}
		c, err := pb.NewLogClient(d.conn).Produce(t.Context())
		if err == nil {
			_, err = c.Recv()
		}
		if errs.Code(detail(t, err).Code) != errs.ShuttingDown {
			t.Errorf("new stream: %v", err)
		}
	})
}

func TestStopCutsOffWhatDoesNotEnd(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.hold = true
		c := d.produce(t)
		c.send(&pb.ProduceRequest{Batch: batchOf(t, 1), TimeoutMs: 600_000})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := d.api.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := c.s.Recv(); err == nil {
			t.Error("the stream goes on")
		}
		c.cancel()
	})
}

func TestAClientThatGoesLeavesNothingBehind(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.hold = true
		c := d.produce(t)
		for range 10 {
			c.send(&pb.ProduceRequest{Batch: batchOf(t, 1)})
		}
		c.cancel()
		synctest.Wait()
		if n := value(t, d.api.metrics.streams.WithLabelValues("Produce")); n != 0 {
			t.Errorf("%v streams are open", n)
		}
	})
}
