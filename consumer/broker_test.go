package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/testkit"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// real is a broker with topic "t", and clients of it.
type real struct {
	t   *testing.T
	b   *testkit.Broker
	ctx context.Context
	a   *admin.Client
	p   *producer.Producer
}

func startReal(t *testing.T, partitions int, configs map[string]string) *real {
	t.Helper()
	r := &real{t: t, b: testkit.StartBroker(t)}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	r.ctx = ctx
	var err error
	if r.a, err = admin.New([]string{r.b.Address()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.a.Close() })
	if _, _, err := r.a.CreateTopic(ctx, admin.NewTopic{Name: "t", Partitions: partitions, Configs: configs}); err != nil {
		t.Fatal(err)
	}
	if r.p, err = producer.New([]string{r.b.Address()}, producer.WithPartitioner(producer.ExplicitPartitioner()), producer.WithBatchBytes(1000)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.p.Close(ctx) })
	return r
}

func (r *real) fill(partition int32, from, n int) {
	r.t.Helper()
	for i := from; i < from+n; i++ {
		r.p.ProduceFunc(r.ctx, producer.Record{Topic: "t", Partition: partition, Value: fmt.Appendf(nil, "v%d", i), Timestamp: time.UnixMilli(int64(i) * 1000)}, func(_ producer.Result, err error) {
			if err != nil {
				r.t.Error(err)
			}
		})
	}
	if err := r.p.Flush(r.ctx); err != nil {
		r.t.Fatal(err)
	}
}

func (r *real) open(opts ...consumer.Option) *consumer.Consumer {
	r.t.Helper()
	c, err := consumer.New([]string{r.b.Address()}, opts...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

func TestBrokerPositionsAndTrim(t *testing.T) {
	r := startReal(t, 1, map[string]string{"message.timestamp.before.max.ms": "9223372036854775807"})
	r.fill(0, 0, 300)
	for name, tc := range map[string]struct {
		at   consumer.Position
		want int
	}{
		"start":      {consumer.AtStart(), 0},
		"offset":     {consumer.AtOffset(123), 123},
		"time":       {consumer.AtTime(time.UnixMilli(41_500)), 42},
		"before end": {consumer.BeforeEnd(7), 293},
	} {
		c := r.open()
		assign(t, c, tc.at)
		t.Log(name)
		expect(t, r.ctx, c, tc.want, 300)
	}
	if _, err := r.a.TrimTopic(r.ctx, "t", map[int32]record.Offset{0: 100}); err != nil {
		t.Fatal(err)
	}
	c := r.open()
	assign(t, c, consumer.AtOffset(5))
	_, err := c.Poll(r.ctx, 0)
	var out *consumer.OutOfRangeError
	if !errors.As(err, &out) || out.Start != 100 || out.End != 300 {
		t.Fatalf("got %v", err)
	}
	if err := c.Seek(r.ctx, t0, consumer.AtStart()); err != nil {
		t.Fatal(err)
	}
	expect(t, r.ctx, c, 100, 300)
	e := r.open(consumer.WithReset(consumer.ResetEarliest))
	assign(t, e, consumer.AtOffset(5000))
	expect(t, r.ctx, e, 100, 300)
}

func TestBrokerReadLevels(t *testing.T) {
	r := startReal(t, 1, nil)
	r.fill(0, 0, 50)
	result, err := r.p.Produce(r.ctx, producer.Record{Topic: "t", Value: []byte("v50")}).Wait(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string][]consumer.Option{
		"leader":       nil,
		"linearizable": {consumer.WithConsistency(consumer.Linearizable)},
		"session":      {consumer.WithNotBefore(result.Token())},
		"bounded":      {consumer.WithConsistency(consumer.Bounded), consumer.WithMaxStaleness(time.Second)},
		"eventual":     {consumer.WithConsistency(consumer.Eventual)},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.open(opts...)
			assign(t, c, consumer.AtStart())
			expect(t, r.ctx, c, 0, 51)
			if token := c.Token(); token.Len() != 1 {
				t.Errorf("token %v", token)
			}
		})
	}
}

func TestBrokerRestartsUnderAConsumer(t *testing.T) {
	r := startReal(t, 1, nil)
	c := r.open()
	assign(t, c, consumer.AtStart())
	r.fill(0, 0, 500)
	expect(t, r.ctx, c, 0, 300)
	r.b.Restart()
	r.fill(0, 500, 500)
	expect(t, r.ctx, c, 300, 1000)
}

func TestBrokerGroupSharesAndCommits(t *testing.T) {
	r := startReal(t, 6, nil)
	var mu sync.Mutex
	seen := make(map[string]int)
	polling, stop := context.WithCancel(r.ctx)
	var wg sync.WaitGroup
	run := func() *consumer.Consumer {
		c := r.open(consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithAutoCommit(10*time.Millisecond))
		wg.Go(func() {
			for {
				records, err := c.Poll(polling, 50)
				if polling.Err() != nil || errors.Is(err, consumer.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, rec := range records {
					seen[fmt.Sprintf("%d/%d", rec.Partition, rec.Offset)]++
				}
				mu.Unlock()
			}
		})
		return c
	}
	members := []*consumer.Consumer{run(), run(), run()}
	eventually(t, r.ctx, "three members have two partitions each", func() bool {
		return !slices.ContainsFunc(members, func(c *consumer.Consumer) bool { return len(c.Assignment()) != 2 })
	})
	for p := range int32(6) {
		r.fill(p, 0, 100)
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
	eventually(t, r.ctx, "600 records came", func() bool { return count() == 600 })
	if err := members[2].Close(r.ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, r.ctx, "two members share", func() bool { return len(members[0].Assignment()) == 3 && len(members[1].Assignment()) == 3 })
	r.b.Restart()
	for p := range int32(6) {
		r.fill(p, 100, 100)
	}
	eventually(t, r.ctx, "1200 records came", func() bool { return count() == 1200 })
	eventually(t, r.ctx, "the group has no lag", func() bool {
		g, err := r.a.DescribeGroup(r.ctx, "g")
		return err == nil && len(g.Partitions) == 6 && g.Lag() == 0 && !slices.ContainsFunc(g.Partitions, func(p admin.GroupPartition) bool { return p.Lag < 0 })
	})
	stop()
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for k, n := range seen {
		if n > 2 {
			t.Errorf("record %s came %d times", k, n)
		}
	}
}

func TestBrokerStaticMemberComesBack(t *testing.T) {
	r := startReal(t, 2, nil)
	for range 2 {
		c := r.open(consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithInstanceID("i"))
		r.fill(0, 0, 1)
		if _, err := c.Poll(r.ctx, 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(r.ctx); err != nil {
			t.Fatal(err)
		}
		g, err := r.a.DescribeGroup(r.ctx, "g")
		if err != nil || len(g.MemberList) != 1 || g.MemberList[0].InstanceID != "i" {
			t.Fatalf("a static member that stopped keeps its place: %+v, %v", g, err)
		}
	}
}

func TestBrokerRegexSubscription(t *testing.T) {
	r := startReal(t, 1, nil)
	if _, _, err := r.a.CreateTopic(r.ctx, admin.NewTopic{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	c := r.open(consumer.WithGroup("g"), consumer.WithTopicRegex("t|x.*"))
	r.fill(0, 0, 5)
	expect(t, r.ctx, c, 0, 5)
	if got := c.Assignment(); len(got) != 1 || got[0] != t0 {
		t.Errorf("assigned %v", got)
	}
}

func TestBrokerResetsAGroup(t *testing.T) {
	r := startReal(t, 1, nil)
	r.fill(0, 0, 20)
	c := r.open(consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithManualCommit())
	expect(t, r.ctx, c, 0, 20)
	if err := c.Commit(r.ctx); err != nil {
		t.Fatal(err)
	}
	plan, err := r.a.PlanReset(r.ctx, "g", admin.ToOffset(5), admin.ResetScope{})
	if err != nil || len(plan.Moves) != 1 || plan.Moves[0].From != 20 || plan.Moves[0].To != 5 {
		t.Fatalf("%+v, %v", plan, err)
	}
	if _, err := r.a.ExecuteReset(r.ctx, plan); errs.CodeOf(err) == errs.None {
		t.Error("the offsets of a group with members were reset")
	}
	if err := c.Close(r.ctx); err != nil {
		t.Fatal(err)
	}
	if results, err := r.a.ExecuteReset(r.ctx, plan); err != nil || results[0].Err != nil {
		t.Fatalf("%+v, %v", results, err)
	}
	again := r.open(consumer.WithGroup("g"), consumer.WithTopics("t"))
	expect(t, r.ctx, again, 5, 20)
}
