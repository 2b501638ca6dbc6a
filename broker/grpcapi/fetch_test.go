package grpcapi

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

type fetchClient struct {
	t      *testing.T
	s      pb.Log_FetchClient
	cancel context.CancelFunc
}

func (d *door) fetch(t *testing.T, first *pb.FetchRequest) *fetchClient {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := pb.NewLogClient(d.conn).Fetch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &fetchClient{t: t, s: s, cancel: cancel}
	c.send(first)
	return c
}

func (c *fetchClient) send(r *pb.FetchRequest) {
	c.t.Helper()
	if err := c.s.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *fetchClient) recv() *pb.FetchResponse {
	c.t.Helper()
	r, err := c.s.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// nothing asserts that no response is there or on its way.
func (c *fetchClient) nothing() (got chan *pb.FetchResponse) {
	c.t.Helper()
	got = make(chan *pb.FetchResponse, 1)
	go func() {
		if r, err := c.s.Recv(); err == nil {
			got <- r
		}
		close(got)
	}()
	synctest.Wait()
	select {
	case r := <-got:
		c.t.Fatalf("unexpected response %v", r)
	default:
	}
	return got
}

func add(topic string, p int32, offset int64) *pb.FetchPartition {
	return &pb.FetchPartition{Topic: topic, Partition: p, Offset: offset, Session: 1}
}

func fill(t *testing.T, r *fakeReplica, batches, valueBytes int) {
	t.Helper()
	b := batchOf(t, valueBytes)
	for range batches {
		r.append(b)
	}
}

func offsets(r *pb.FetchResponse) (got []int64) {
	for _, b := range r.Batches {
		got = append(got, int64(record.Raw(b).BaseOffset()))
	}
	return got
}

func TestFetchDeliversFromTheOffset(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		fill(t, d.broker.replica("t", 1), 5, 10)
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 1, 2)}, CreditBytes: 1 << 20})
		got := c.recv()
		if o := offsets(got); len(o) != 3 || o[0] != 2 || got.HighWatermark != 5 || got.LogStartOffset != 0 || got.LeaderEpoch != 1 || got.Session != 1 || got.Error != nil {
			t.Errorf("%v", got)
		}
		if p := got.Position; p.Offset != 5 || p.Partition != 1 || p.LeaderEpoch != 1 || p.TopicId[0] != 1 {
			t.Errorf("token %v", p)
		}
		for _, b := range got.Batches {
			if _, err := record.Check(b); err != nil {
				t.Error(err)
			}
		}
		c.cancel()
	})
}

func TestAParkedPartitionCostsNothingAndWakesAtOnce(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		r := d.broker.replica("t", 0)
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}, CreditBytes: 1 << 20})
		got := c.nothing()
		before := r.View()
		_ = before
		r.mu.Lock()
		views := r.views
		r.mu.Unlock()
		time.Sleep(24 * time.Hour) // of the bubble's clock
		r.mu.Lock()
		idle := r.views - views
		r.mu.Unlock()
		if idle > 30 {
			t.Errorf("looked %d times within an idle day", idle)
		}
		start := time.Now()
		fill(t, r, 1, 10)
		if resp := <-got; resp == nil || resp.HighWatermark != 1 || time.Since(start) != 0 {
			t.Errorf("%v after %v", resp, time.Since(start))
		}
		c.cancel()
	})
}

func TestCreditBoundsWhatIsSent(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		r := d.broker.replica("t", 0)
		fill(t, r, 10, 1000)
		size := int64(len(r.batches[0]))
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}})
		c.nothing()
		c.cancel()

		c = d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}, CreditBytes: 3*size + 1})
		if o := offsets(c.recv()); len(o) != 3 {
			t.Errorf("offsets %v for a credit of three", o)
		}
		if o := offsets(c.recv()); len(o) != 1 || o[0] != 3 {
			t.Errorf("offsets %v for one byte: one batch may overdraw", o)
		}
		got := c.nothing()
		c.send(&pb.FetchRequest{CreditBytes: size - 1}) // pays the debt
		synctest.Wait()
		if len(got) > 0 {
			t.Error("sent without credit")
		}
		c.send(&pb.FetchRequest{CreditBytes: 2 * size})
		if o := offsets(<-got); len(o) != 2 || o[0] != 4 {
			t.Errorf("offsets %v", o)
		}
		c.cancel()
	})
}

func TestPartitionsTakeTurns(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		size := len(batchOf(t, 1000))
		var req pb.FetchRequest
		for _, topic := range []string{"t", "u"} {
			for p := range int32(2) {
				fill(t, d.broker.replica(topic, p), 20, 1000)
				req.Add = append(req.Add, add(topic, p, 0))
			}
		}
		req.MaxPartitionBytes, req.CreditBytes = uint32(size), 1<<30
		c := d.fetch(t, &req)
		counts := map[string]int{}
		for i := range 40 {
			got := c.recv()
			counts[got.Topic+string(rune('0'+got.Partition))]++
			if len(got.Batches) != 1 {
				t.Fatalf("%d batches beyond max_partition_bytes", len(got.Batches))
			}
			for k, n := range counts {
				if n > i/4+1 {
					t.Fatalf("after %d responses %s had %d", i+1, k, n)
				}
			}
		}
		c.cancel()
	})
}

func TestFetchGathersMinBytesForMaxWait(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		r := d.broker.replica("t", 0)
		size := len(batchOf(t, 100))
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}, CreditBytes: 1 << 20, MinBytes: uint32(2 * size), MaxWaitMs: 2000})
		start := time.Now()
		fill(t, r, 1, 100)
		got := c.nothing()
		if resp := <-got; len(resp.Batches) != 1 || time.Since(start) != 2*time.Second {
			t.Errorf("%d batches after %v, want one after max_wait", len(resp.Batches), time.Since(start))
		}
		fill(t, r, 1, 100)
		got = c.nothing()
		start = time.Now()
		time.Sleep(time.Second)
		fill(t, r, 1, 100)
		if resp := <-got; len(resp.Batches) != 2 || time.Since(start) != time.Second {
			t.Errorf("%d batches after %v, want two as soon as they are there", len(resp.Batches), time.Since(start))
		}
		// What does not fit into a response is not waited for.
		c.send(&pb.FetchRequest{MaxPartitionBytes: uint32(size + 5)})
		synctest.Wait()
		start = time.Now()
		fill(t, r, 3, 100)
		if resp := c.recv(); len(resp.Batches) != 1 || time.Since(start) != 0 {
			t.Errorf("%d batches after %v", len(resp.Batches), time.Since(start))
		}
		c.cancel()
	})
}

func TestPartitionsMoveAndLeaveUnderSessions(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		r := d.broker.replica("t", 0)
		fill(t, r, 4, 10)
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}, CreditBytes: 1 << 20})
		c.recv()
		moved := add("t", 0, 3)
		moved.Session = 2
		c.send(&pb.FetchRequest{Add: []*pb.FetchPartition{moved}})
		if got := c.recv(); got.Session != 2 || len(got.Batches) != 1 || offsets(got)[0] != 3 {
			t.Errorf("%v", got)
		}
		c.send(&pb.FetchRequest{Remove: []*pb.TopicPartition{{Topic: "t"}, {Topic: "never added"}}})
		synctest.Wait()
		if n := r.watched(); n != 0 {
			t.Errorf("%d watches are left", n)
		}
		fill(t, r, 1, 10)
		c.nothing()
		c.cancel()
		synctest.Wait()
	})
}

func TestErrorsEndOnePartitionOnly(t *testing.T) {
	withDoor(t, func(c *Config) { c.MaxFetchPartitions = 3 }, func(t *testing.T, d *door) {
		fill(t, d.broker.replica("t", 0), 2, 10)
		fill(t, d.broker.replica("t", 1), 2, 10)
		d.broker.replica("u", 0).follower = true
		c := d.fetch(t, &pb.FetchRequest{CreditBytes: 1 << 20, Add: []*pb.FetchPartition{
			add("nowhere", 0, 0), add("t", 0, 3), add("u", 0, 0), add("t", 1, 0), add("u", 1, 0), add("t", -1, 0),
		}})
		want := map[string]errs.Code{"nowhere0": errs.UnknownTopicOrPartition, "t0": errs.OffsetOutOfRange, "u0": errs.NotLeaderOrFollower, "t1": 0, "u1": errs.LimitExceeded, "t-1": errs.LimitExceeded}
		for range len(want) {
			got := c.recv()
			key := got.Topic + string(rune('0'+got.Partition))
			if got.Partition < 0 {
				key = got.Topic + "-1"
			}
			code, ok := want[key]
			if !ok || errs.Code(got.Error.GetCode()) != code {
				t.Errorf("%s: %v", key, got.Error)
			}
			delete(want, key)
			if code == errs.NotLeaderOrFollower && (got.Error.LeaderId == nil || *got.Error.LeaderId != 1) {
				t.Errorf("no hint at the leader: %v", got.Error)
			}
			if code == errs.OffsetOutOfRange && (got.HighWatermark != 2 || got.LogStartOffset != 0) {
				t.Errorf("out of range without the range: %v", got)
			}
		}
		if n := d.broker.replica("t", 0).watched() + d.broker.replica("u", 0).watched(); n != 0 {
			t.Errorf("failed partitions keep %d watches", n)
		}
		// The leadership moves while the partition is parked.
		d.broker.replica("t", 1).change(func() { d.broker.replica("t", 1).follower = true })
		if got := c.recv(); errs.Code(got.Error.GetCode()) != errs.NotLeaderOrFollower || got.Partition != 1 {
			t.Errorf("%v", got)
		}
		c.cancel()
	})
}

func TestOffsetsBetweenHighWatermarkAndLogEndWait(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		r := d.broker.replica("t", 0)
		fill(t, r, 4, 10)
		r.change(func() { r.hw = 2 })
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 3)}, CreditBytes: 1 << 20})
		got := c.nothing()
		r.change(func() { r.hw = 4 })
		if resp := <-got; len(resp.Batches) != 1 || offsets(resp)[0] != 3 {
			t.Errorf("%v", resp)
		}
		c.cancel()
	})
}

// epochs gives a replica records 0..4 of epoch 1, 5..9 of epoch 3, and leads in 4.
func epochs(t *testing.T, r *fakeReplica) {
	r.epoch = 1
	fill(t, r, 5, 10)
	r.epoch = 3
	fill(t, r, 5, 10)
	r.ends[1], r.ends[3], r.epoch = 5, 10, 4
}

func TestTruncationIsDetectedByEpochs(t *testing.T) {
	for _, tt := range []struct {
		name          string
		epoch, offset int64
		want          errs.Code
		actual        int64
	}{
		{"the same history", 1, 5, errs.None, 0},
		{"the newest record", 3, 10, errs.None, 0},
		{"the start", 1, 0, errs.None, 0},
		{"records of an epoch that ended before", 1, 7, errs.TokenTruncated, 5},
		{"an epoch that this log never had", 2, 5, errs.TokenTruncated, 5},
		{"an epoch to come", 9, 5, errs.UnknownLeaderEpoch, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withDoor(t, nil, func(t *testing.T, d *door) {
				epochs(t, d.broker.replica("t", 0))
				a := add("t", 0, tt.offset)
				a.LeaderEpoch = proto.Int32(int32(tt.epoch))
				c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{a}, CreditBytes: 1 << 20})
				defer c.cancel()
				if tt.want == errs.None && tt.offset == 10 {
					c.nothing()
					return
				}
				got := c.recv()
				if errs.Code(got.Error.GetCode()) != tt.want {
					t.Fatalf("%v", got)
				}
				if tt.want == errs.TokenTruncated && (got.Error.ActualOffset == nil || *got.Error.ActualOffset != tt.actual) {
					t.Errorf("%v", got.Error)
				}
			})
		})
	}
}

func TestSessionReadsWaitForTheToken(t *testing.T) {
	session := func(p *pb.Position) *pb.FetchRequest {
		a := add("t", 0, 0)
		a.NotBefore = p
		return &pb.FetchRequest{Add: []*pb.FetchPartition{a}, CreditBytes: 1 << 20, Consistency: pb.Consistency_CONSISTENCY_SESSION}
	}
	id := make([]byte, 16)
	id[0] = 1
	t.Run("a follower answers once it has caught up", func(t *testing.T) {
		withDoor(t, nil, func(t *testing.T, d *door) {
			r := d.broker.replica("t", 0)
			r.follower = true
			fill(t, r, 3, 10)
			c := d.fetch(t, session(&pb.Position{TopicId: id, LeaderEpoch: 1, Offset: 4}))
			got := c.nothing()
			fill(t, r, 1, 10)
			if resp := <-got; resp.Error != nil || len(resp.Batches) != 4 {
				t.Errorf("%v", resp)
			}
			c.cancel()
		})
	})
	t.Run("waiting has an end", func(t *testing.T) {
		withDoor(t, nil, func(t *testing.T, d *door) {
			start := time.Now()
			c := d.fetch(t, session(&pb.Position{TopicId: id, LeaderEpoch: 1, Offset: 4}))
			if got := c.recv(); errs.Code(got.Error.GetCode()) != errs.OffsetNotAvailable || time.Since(start) != 30*time.Second {
				t.Errorf("%v after %v", got, time.Since(start))
			}
			c.cancel()
		})
	})
	t.Run("a token beyond the end of its epoch is told", func(t *testing.T) {
		withDoor(t, nil, func(t *testing.T, d *door) {
			epochs(t, d.broker.replica("t", 0))
			c := d.fetch(t, session(&pb.Position{TopicId: id, LeaderEpoch: 3, Offset: 12}))
			if got := c.recv(); errs.Code(got.Error.GetCode()) != errs.TokenTruncated || *got.Error.ActualOffset != 10 {
				t.Errorf("%v", got)
			}
			c.cancel()
		})
	})
	t.Run("a follower that is behind cannot tell and waits", func(t *testing.T) {
		withDoor(t, nil, func(t *testing.T, d *door) {
			r := d.broker.replica("t", 0)
			epochs(t, r)
			r.change(func() { r.follower, r.hw, r.ends[3] = true, 8, 8 })
			c := d.fetch(t, session(&pb.Position{TopicId: id, LeaderEpoch: 3, Offset: 10}))
			got := c.nothing()
			r.change(func() { r.hw, r.ends[3] = 10, 10 })
			if resp := <-got; resp.Error != nil || len(resp.Batches) != 10 {
				t.Errorf("%v", resp)
			}
			c.cancel()
		})
	})
	t.Run("a token of a topic that was deleted is refused", func(t *testing.T) {
		withDoor(t, nil, func(t *testing.T, d *door) {
			c := d.fetch(t, session(&pb.Position{TopicId: make([]byte, 16), LeaderEpoch: 1, Offset: 0}))
			if got := c.recv(); errs.Code(got.Error.GetCode()) != errs.InconsistentTopicID {
				t.Errorf("%v", got)
			}
			c.cancel()
		})
	})
}

func TestALinearizableReadHoldsUpNoOtherPartition(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		slow, quick := d.broker.replica("t", 0), d.broker.replica("t", 1)
		fill(t, slow, 1, 10)
		fill(t, quick, 1, 10)
		asked := make(chan struct{})
		slow.linearize = func(ctx context.Context) error {
			select {
			case <-asked:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0), add("t", 1, 0)}, CreditBytes: 1 << 20, Consistency: pb.Consistency_CONSISTENCY_LINEARIZABLE})
		if got := c.recv(); got.Partition != 1 {
			t.Errorf("%v", got)
		}
		got := c.nothing()
		close(asked)
		if resp := <-got; resp.Partition != 0 || resp.Error != nil {
			t.Errorf("%v", resp)
		}
		// One that is removed while it waits leaves nothing behind.
		asked = nil
		c.send(&pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}})
		synctest.Wait()
		c.send(&pb.FetchRequest{Remove: []*pb.TopicPartition{{Topic: "t"}}})
		c.nothing()
		c.cancel()
	})
}

func TestAFailedLinearizationIsThePartitionsError(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.replica("t", 0).linearize = func(context.Context) error { return errs.New(errs.NotLeaderOrFollower, "deposed") }
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}, CreditBytes: 1, Consistency: pb.Consistency_CONSISTENCY_BOUNDED})
		if got := c.recv(); errs.Code(got.Error.GetCode()) != errs.NotLeaderOrFollower || got.Error.Message != "deposed" {
			t.Errorf("%v", got)
		}
		c.cancel()
	})
}

// A consumer grants endless credit and stops reading: the broker must neither
// read ahead for it nor stop listening to it.
func TestAConsumerThatStopsReadingTakesNoMemory(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		var req pb.FetchRequest
		for _, topic := range []string{"t", "u"} {
			for p := range int32(2) {
				fill(t, d.broker.replica(topic, p), 400, 100_000)
				req.Add = append(req.Add, add(topic, p, 0))
			}
		}
		req.CreditBytes, req.MaxPartitionBytes = 1<<62, 1<<20
		c := d.fetch(t, &req)
		synctest.Wait()
		served, watched := 0, 0
		for _, r := range d.broker.replicas {
			r.mu.Lock()
			served += r.readBytes
			r.mu.Unlock()
			watched += r.watched()
		}
		if served > 3<<20 || watched != 8 {
			t.Errorf("%d bytes of 160 MB were read for a consumer that reads nothing; %d watches", served, watched)
		}
		// It still listens.
		for range 100 {
			c.send(&pb.FetchRequest{Remove: []*pb.TopicPartition{{Topic: "t"}, {Topic: "u", Partition: 1}}, CreditBytes: 1 << 62})
		}
		synctest.Wait()
		if n := d.broker.replica("t", 0).watched(); n != 0 {
			t.Error("a request of a consumer that does not read was not heard")
		}
		c.cancel()
		synctest.Wait()
		if n := d.broker.replica("t", 1).watched(); n != 0 {
			t.Error("a watch is left")
		}
	})
}

func TestMalformedFetchesEndTheStream(t *testing.T) {
	for _, tt := range []struct {
		name string
		req  *pb.FetchRequest
		want errs.Code
	}{
		{"negative credit", &pb.FetchRequest{CreditBytes: -1}, errs.InvalidRequest},
		{"a consistency that does not exist", &pb.FetchRequest{Consistency: 77}, errs.InvalidRequest},
		{"errors without end", &pb.FetchRequest{Add: make([]*pb.FetchPartition, 5000)}, errs.LimitExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withDoor(t, nil, func(t *testing.T, d *door) {
				for i := range tt.req.Add {
					tt.req.Add[i] = &pb.FetchPartition{}
				}
				c := d.fetch(t, tt.req)
				for {
					_, err := c.s.Recv()
					if err == nil {
						continue
					}
					if e := detail(t, err); errs.Code(e.Code) != tt.want {
						t.Errorf("%v", err)
					}
					break
				}
				c.cancel()
			})
		})
	}
}

func TestFetchStreamsEndAtShutdown(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c := d.fetch(t, &pb.FetchRequest{Add: []*pb.FetchPartition{add("t", 0, 0)}, CreditBytes: 1})
		synctest.Wait()
		d.api.Drain()
		_, err := c.s.Recv()
		if e := detail(t, err); errs.Code(e.Code) != errs.ShuttingDown {
			t.Errorf("%v", err)
		}
		if n := d.broker.replica("t", 0).watched(); n != 0 {
			t.Errorf("%d watches are left", n)
		}
		c.cancel()
	})
}
