package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/client/fakeserver"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	"github.com/tidemarkhq/tidemark/proto/session"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

const patience = 20 * time.Second

func open(t testing.TB, s *fakeserver.Server, opts ...consumer.Option) *consumer.Consumer {
	t.Helper()
	opts = append([]consumer.Option{consumer.WithRetryBackoff(time.Millisecond, 20*time.Millisecond)}, opts...)
	c, err := consumer.New([]string{s.Addr()}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// fill appends n records in batches of up to 7, values v0 and on, timestamps 1000*offset.
func fill(s *fakeserver.Server, topic string, partition int32, from, n int) {
	for i := from; i < from+n; {
		var batch []record.Record
		for range 7 {
			if i < from+n {
				batch = append(batch, record.Record{Timestamp: int64(i) * 1000, Value: fmt.Appendf(nil, "v%d", i)})
				i++
			}
		}
		s.Append(topic, partition, batch...)
	}
}

var t0 = consumer.TopicPartition{Topic: "t"}

// expect polls until records first to last-1 of t/0 came, each once and in order.
func expect(t *testing.T, ctx context.Context, c *consumer.Consumer, first, last int) {
	t.Helper()
	for next := first; next < last; {
		records, err := c.Poll(ctx, last-next)
		if err != nil {
			t.Fatalf("at offset %d: %v", next, err)
		}
		for _, r := range records {
			if int(r.Offset) != next || string(r.Value) != fmt.Sprintf("v%d", next) {
				t.Fatalf("got offset %d (%q), want %d", r.Offset, r.Value, next)
			}
			next++
		}
	}
}

func assign(t *testing.T, c *consumer.Consumer, at consumer.Position) {
	t.Helper()
	if err := c.Assign(context.Background(), map[consumer.TopicPartition]consumer.Position{t0: at}); err != nil {
		t.Fatal(err)
	}
}

func TestPositions(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 100)
	s.Trim("t", 0, 10)
	for name, tc := range map[string]struct {
		at   consumer.Position
		want int
	}{
		"start":            {consumer.AtStart(), 10},
		"offset":           {consumer.AtOffset(33), 33},
		"time":             {consumer.AtTime(time.UnixMilli(41_500)), 42},
		"after start":      {consumer.AfterStart(5), 15},
		"before end":       {consumer.BeforeEnd(3), 97},
		"before the start": {consumer.BeforeEnd(1000), 10},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, s)
			assign(t, c, tc.at)
			expect(t, within(t), c, tc.want, 100)
		})
	}
	t.Run("end", func(t *testing.T) {
		c := open(t, s)
		ctx := within(t)
		got, err := c.Offsets(ctx, map[consumer.TopicPartition]consumer.Position{t0: consumer.AtEnd()})
		if err != nil || got[t0] != 100 {
			t.Fatalf("%v, %v", got, err)
		}
		assign(t, c, consumer.AtOffset(got[t0]))
		fill(s, "t", 0, 100, 20)
		expect(t, ctx, c, 100, 120)
	})
}

func TestSubscribeWithoutGroupReadsEverything(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 3})
	for p := range int32(3) {
		fill(s, "t", p, 0, 50)
	}
	c := open(t, s, consumer.WithTopics("t"))
	ctx := within(t)
	next := make(map[int32]record.Offset)
	for n := 0; n < 150; {
		records, err := c.Poll(ctx, 9)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) > 9 {
			t.Fatalf("%d records, asked for 9", len(records))
		}
		for _, r := range records {
			if r.Offset != next[r.Partition] {
				t.Fatalf("partition %d: offset %d, want %d", r.Partition, r.Offset, next[r.Partition])
			}
			next[r.Partition]++
			n++
		}
	}
	for tp, lag := range c.Lag() {
		if lag.Records != 0 || lag.HighWatermark != 50 {
			t.Errorf("%s: %+v", tp, lag)
		}
	}
}

func TestNoDuplicatesAndNoGapsOverReconnects(t *testing.T) {
	for _, seed := range []uint64{1, 2, rand.Uint64()} {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			s := fakeserver.Start(t, map[string]int{"t": 1})
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(seed, 0))
			s.OnFetch(func(*pb.FetchResponse) error {
				mu.Lock()
				defer mu.Unlock()
				if rng.IntN(8) == 0 {
					return fakeserver.ErrCut
				}
				return nil
			})
			c := open(t, s, consumer.WithMaxPartitionBytes(200))
			assign(t, c, consumer.AtStart())
			ctx := within(t)
			const n = 1000
			fill(s, "t", 0, 0, n/2)
			expect(t, ctx, c, 0, n/4)
			s.Restart(t)
			fill(s, "t", 0, n/2, n/2)
			expect(t, ctx, c, n/4, n)
		})
	}
}

func TestPrefetchIsBoundedByCredit(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 5000)
	batch := int64(len(s.Batches("t", 0)[10])) + 20
	const bound = 4000
	c := open(t, s, consumer.WithPrefetchBytes(bound), consumer.WithMaxPartitionBytes(500))
	assign(t, c, consumer.AtStart())
	ctx := within(t)
	// The responses hold up to 500 bytes, or one batch; the last one may overdraw.
	over := max(500, batch)
	var consumed int64
	next := 0
	for next < 5000 {
		records, err := c.Poll(ctx, 100)
		if err != nil {
			t.Fatal(err)
		}
		next += len(records)
		consumed = 0
		for _, b := range s.Batches("t", 0) {
			if int(b.BaseOffset()) <= next {
				consumed += int64(len(b))
			}
		}
		if ahead := s.SentBytes() - consumed; ahead > bound+over {
			t.Fatalf("the broker was %d bytes ahead; the bound is %d and one response", ahead, bound)
		}
	}
}

func TestSeekPauseResume(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	fill(s, "t", 0, 0, 100)
	c := open(t, s)
	assign(t, c, consumer.AtStart())
	ctx := within(t)
	expect(t, ctx, c, 0, 100)
	if err := c.Seek(ctx, t0, consumer.AtOffset(40)); err != nil {
		t.Fatal(err)
	}
	if at, ok := c.Position(t0); !ok || at != 40 {
		t.Errorf("position %d, %v", at, ok)
	}
	c.Pause(t0)
	fill(s, "t", 0, 100, 10)
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	if records, err := c.Poll(short, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a paused partition gave %d records, %v", len(records), err)
	}
	c.Resume(t0)
	expect(t, ctx, c, 40, 110)
	if err := c.Seek(ctx, consumer.TopicPartition{Topic: "t", Partition: 1}, consumer.AtStart()); errs.CodeOf(err) != errs.InvalidRequest {
		t.Errorf("seek of a foreign partition: %v", err)
	}
}

func TestOutOfRange(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 70)
	s.Trim("t", 0, 35)
	t.Run("error", func(t *testing.T) {
		c := open(t, s)
		assign(t, c, consumer.AtOffset(5))
		ctx := within(t)
		_, err := c.Poll(ctx, 0)
		var out *consumer.OutOfRangeError
		var part *consumer.PartitionError
		if !errors.As(err, &out) || out.Offset != 5 || out.Start != 35 || out.End != 70 || !errors.As(err, &part) || errs.CodeOf(err) != errs.OffsetOutOfRange {
			t.Fatalf("got %v", err)
		}
		if err := c.Seek(ctx, t0, consumer.AtStart()); err != nil {
			t.Fatal(err)
		}
		expect(t, ctx, c, 35, 70)
	})
	t.Run("earliest", func(t *testing.T) {
		c := open(t, s, consumer.WithReset(consumer.ResetEarliest))
		assign(t, c, consumer.AtOffset(5))
		expect(t, within(t), c, 35, 70)
	})
	t.Run("latest", func(t *testing.T) {
		c := open(t, s, consumer.WithReset(consumer.ResetLatest))
		assign(t, c, consumer.AtOffset(500))
		ctx := within(t)
		for {
			if at, ok := c.Position(t0); ok && at == 70 {
				break
			}
			if ctx.Err() != nil {
				t.Fatal("the position was not reset")
			}
		}
		fill(s, "t", 0, 70, 7)
		expect(t, ctx, c, 70, 77)
	})
}

func TestTruncationIsDetected(t *testing.T) {
	for name, policy := range map[string]consumer.ResetPolicy{"error": consumer.ResetError, "reset": consumer.ResetLatest} {
		for _, refilled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/refilled=%v", name, refilled), func(t *testing.T) {
				s := fakeserver.Start(t, map[string]int{"t": 1})
				fill(s, "t", 0, 0, 70)
				c := open(t, s, consumer.WithReset(policy))
				assign(t, c, consumer.AtStart())
				ctx := within(t)
				expect(t, ctx, c, 0, 70)
				s.Stop()
				s.NewEpoch("t", 0, 49)
				if refilled {
					fill(s, "t", 0, 49, 51)
				}
				s.Restart(t)
				if policy != consumer.ResetError {
					if !refilled {
						fill(s, "t", 0, 49, 51)
					}
					expect(t, ctx, c, 49, 100)
					return
				}
				_, err := c.Poll(ctx, 0)
				var cut *consumer.TruncatedError
				if !errors.As(err, &cut) || cut.Offset != 70 || cut.Diverged != 49 {
					t.Fatalf("got %v", err)
				}
			})
		}
	}
}

func TestUnknownTopicIsReported(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	ctx := within(t)
	c := open(t, s, consumer.WithTopics("nowhere"))
	if _, err := c.Poll(ctx, 0); errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("subscribed: %v", err)
	}
	a := open(t, s)
	if err := a.Assign(ctx, map[consumer.TopicPartition]consumer.Position{{Topic: "nowhere"}: consumer.AtOffset(0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Poll(ctx, 0); errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("assigned: %v", err)
	}
}

func TestSessionTokenTravels(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 10)
	c := open(t, s)
	assign(t, c, consumer.AtStart())
	ctx := within(t)
	expect(t, ctx, c, 0, 10)
	token := c.Token()
	at, ok := token.Position(session.Partition{TopicID: [16]byte([]byte("0000000000000001"))})
	if !ok || at.Offset != 10 {
		t.Fatalf("token %v: %+v", token, at)
	}
	r := open(t, s, consumer.WithNotBefore(token))
	assign(t, r, consumer.AtStart())
	expect(t, ctx, r, 0, 10)
}

func TestPollAfterClose(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	c := open(t, s)
	assign(t, c, consumer.AtStart())
	ctx := within(t)
	done := make(chan error, 1)
	started := make(chan struct{})
	wait := sync.WaitGroup{}
	wait.Go(func() {
		close(started)
		_, err := c.Poll(ctx, 0)
		done <- err
	})
	<-started
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, consumer.ErrClosed) {
		t.Errorf("the waiting Poll returned %v", err)
	}
	if _, err := c.Poll(ctx, 0); !errors.Is(err, consumer.ErrClosed) {
		t.Errorf("a later Poll returned %v", err)
	}
	wait.Wait()
}

func TestRecordsIterates(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 20)
	c := open(t, s)
	assign(t, c, consumer.AtStart())
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	n := 0
	for r, err := range c.Records(ctx) {
		if err != nil || int(r.Offset) != n {
			t.Fatalf("record %d: %+v, %v", n, r, err)
		}
		if n++; n == 20 {
			cancel()
		}
	}
	if n != 20 {
		t.Errorf("%d records", n)
	}
}

// Whoever breaks off an iteration goes on with the next record, and a commit in the
// middle covers what was handed out, no more.
func TestRecordsCanBeBrokenOff(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 50)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithManualCommit())
	assign(t, c, consumer.AtStart())
	ctx := within(t)
	for r, err := range c.Records(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Offset == 9 {
			break
		}
	}
	if err := c.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.Committed("g", "t", 0); got != 10 {
		t.Errorf("committed %d after the record with offset 9", got)
	}
	expect(t, ctx, c, 10, 50)
}

// A partition that nobody leads, as after its only replica was damaged, is named by
// LastError, and keeps no other from being read.
func TestAPartitionWithoutALeaderHoldsNoOtherUp(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	fill(s, "t", 0, 0, 5)
	fill(s, "t", 1, 0, 5)
	s.SetLeaderless("t", 1, true)
	c := open(t, s)
	ctx := within(t)
	both := map[consumer.TopicPartition]consumer.Position{{Topic: "t", Partition: 0}: consumer.AtStart(), {Topic: "t", Partition: 1}: consumer.AtStart()}
	if err := c.Assign(ctx, both); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	expect(t, ctx, c, 0, 5)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the other partition came after %v", took)
	}
	var where *consumer.PartitionError
	if err := c.LastError(); !errors.As(err, &where) || where.Partition != 1 {
		t.Errorf("LastError is %v", err)
	}
	s.SetLeaderless("t", 1, false)
	expect(t, ctx, c, 0, 5)
	if err := c.LastError(); err != nil {
		t.Errorf("after it is over: %v", err)
	}
}

func TestLastErrorTellsWhyNothingComes(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	c := open(t, s)
	assign(t, c, consumer.AtOffset(0))
	fill(s, "t", 0, 0, 5)
	ctx := within(t)
	expect(t, ctx, c, 0, 5)
	s.Stop()
	for c.LastError() == nil {
		if ctx.Err() != nil {
			t.Fatal("no error is told")
		}
	}
	s.Restart(t)
	fill(s, "t", 0, 5, 5)
	expect(t, ctx, c, 5, 10)
	if err := c.LastError(); err != nil {
		t.Errorf("after it is over: %v", err)
	}
}
