package admin_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/internal/client/fakeserver"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func open(t *testing.T, addrs ...string) (*admin.Client, context.Context) {
	t.Helper()
	a, err := admin.New(addrs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return a, ctx
}

func fill(s *fakeserver.Server, topic string, partition int32, n int) {
	for i := range n {
		s.Append(topic, partition, record.Record{Timestamp: int64(i) * 1000, Value: []byte("v")})
	}
}

func TestTopics(t *testing.T) {
	s := fakeserver.Start(t, nil)
	a, ctx := open(t, "127.0.0.1:1", s.Addr())
	topic, existed, err := a.CreateTopic(ctx, admin.NewTopic{Name: "t", Partitions: 2})
	if err != nil || existed || len(topic.Partitions) != 2 {
		t.Fatalf("%+v, %v, %v", topic, existed, err)
	}
	if _, _, err := a.CreateTopic(ctx, admin.NewTopic{Name: "t"}); !errors.Is(err, errs.New(errs.TopicAlreadyExists, "")) || errs.OutcomeUnknown(err) {
		t.Errorf("got %v", err)
	}
	if _, existed, err := a.CreateTopic(ctx, admin.NewTopic{Name: "t", IfNotExists: true}); err != nil || !existed {
		t.Errorf("%v, %v", existed, err)
	}
	if topic, err = a.AddPartitions(ctx, "t", 3); err != nil || len(topic.Partitions) != 3 {
		t.Errorf("%+v, %v", topic, err)
	}
	fill(s, "t", 1, 20)
	if _, err := a.TrimTopic(ctx, "t", map[int32]record.Offset{1: 5}); err != nil {
		t.Fatal(err)
	}
	ranges, err := a.TopicOffsets(ctx, "t")
	if err != nil || len(ranges) != 3 || ranges[1] != (admin.Range{Partition: 1, Start: 5, End: 20}) {
		t.Errorf("%+v, %v", ranges, err)
	}
	at, err := a.TopicOffsetsAt(ctx, "t", time.UnixMilli(7500))
	if err != nil || at[1].Offset != 8 || at[0].Offset != -1 || !at[1].Timestamp.Equal(time.UnixMilli(8000)) {
		t.Errorf("%+v, %v", at, err)
	}
	d, err := a.DescribeTopic(ctx, "t")
	if err != nil || d.Logs[1].HighWatermark != 20 || d.Configs[0].Name != "retention.ms" {
		t.Errorf("%+v, %v", d, err)
	}
	if err := a.AlterTopic(ctx, "t", admin.Change{Set: map[string]string{"retention.ms": "1"}}); err != nil {
		t.Error(err)
	}
	topics, err := a.Topics(ctx)
	if err != nil || len(topics) != 1 || topics[0].Name != "t" {
		t.Errorf("%+v, %v", topics, err)
	}
	if err := a.DeleteTopic(ctx, "t"); err != nil {
		t.Error(err)
	}
	if err := a.DeleteTopic(ctx, "t"); errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("got %v", err)
	}
	if err := a.DeleteTopic(ctx, "t", admin.IfExists()); err != nil {
		t.Error(err)
	}
	if _, err := a.TopicOffsets(ctx, "t"); errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("got %v", err)
	}
	if cl, err := a.Cluster(ctx); err != nil || cl.ID != "fake" || len(cl.Brokers) != 1 {
		t.Errorf("%+v, %v", cl, err)
	}
	if cfg, err := a.TopicConfig(ctx, "x"); err != nil || cfg[0].Name != "name-of-x" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

// A partition that nobody leads, as after its only replica was damaged, is named, and holds no other up.
func TestAPartitionWithoutALeaderHoldsNoOtherUp(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 3})
	fill(s, "t", 0, 20)
	fill(s, "t", 2, 30)
	s.SetLeaderless("t", 1, true)
	a, ctx := open(t, s.Addr())
	began := time.Now()
	ranges, err := a.TopicOffsets(ctx, "t")
	if err != nil || ranges[0] != (admin.Range{Partition: 0, End: 20}) || ranges[2] != (admin.Range{Partition: 2, End: 30}) {
		t.Errorf("%+v, %v", ranges, err)
	}
	if err := ranges[1].Err; errs.CodeOf(err) != errs.LeaderNotAvailable || ranges[1].Partition != 1 {
		t.Errorf("%+v", ranges[1])
	}
	at, err := a.TopicOffsetsAt(ctx, "t", time.UnixMilli(7500))
	if err != nil || at[0].Offset != 8 || errs.CodeOf(at[1].Err) != errs.LeaderNotAvailable || at[2].Offset != 8 {
		t.Errorf("%+v, %v", at, err)
	}
	plan, err := a.PlanReset(ctx, "g", admin.ToStart(), admin.ResetScope{Topics: []string{"t"}})
	if err != nil || plan.Moves[0].Err != nil || errs.CodeOf(plan.Moves[1].Err) != errs.LeaderNotAvailable || plan.Moves[2].Err != nil {
		t.Errorf("%+v, %v", plan, err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("three questions took %v", took)
	}
}

func TestReset(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	fill(s, "t", 0, 100)
	s.Trim("t", 0, 10)
	a, ctx := open(t, s.Addr())
	p0 := admin.ResetScope{Partitions: []admin.TopicPartition{{Topic: "t"}}}
	if _, err := a.PlanReset(ctx, "g", admin.ToStart(), admin.ResetScope{}); errs.CodeOf(err) != errs.GroupIDNotFound {
		t.Errorf("an unknown group without a scope: %v", err)
	}
	execute := func(to admin.ResetTo, scope admin.ResetScope, want record.Offset) {
		t.Helper()
		plan, err := a.PlanReset(ctx, "g", to, scope)
		if err != nil || plan.Moves[0].Err != nil || plan.Moves[0].To != want || plan.Moves[0].Lag != int64(100-want) {
			t.Fatalf("%+v, %v; want %d", plan, err, want)
		}
		results, err := a.ExecuteReset(ctx, plan)
		if err != nil || results[0].Err != nil || s.Committed("g", "t", 0) != int64(want) {
			t.Fatalf("%+v, %v, committed %d", results, err, s.Committed("g", "t", 0))
		}
	}
	execute(admin.ToEnd(), p0, 100)
	execute(admin.Shift(-30), admin.ResetScope{}, 70)
	execute(admin.Shift(1000), p0, 100)
	execute(admin.ToOffset(3), p0, 10)
	execute(admin.ToTime(time.UnixMilli(50_500)), p0, 51)
	execute(admin.ToCurrent(), p0, 51)
	execute(admin.ToStart(), admin.ResetScope{Topics: []string{"t"}}, 10)
	plan, err := a.PlanReset(ctx, "other", admin.Shift(1), p0)
	if err != nil || plan.Moves[0].Err == nil {
		t.Errorf("a shift from nothing: %+v, %v", plan, err)
	}
	g, err := a.DescribeGroup(ctx, "g")
	if err != nil || g.Lag() != 90 || g.Partitions[0].Committed != 10 {
		t.Errorf("%+v, %v", g, err)
	}
	if failed, err := a.DeleteOffsets(ctx, "g", admin.TopicPartition{Topic: "t"}); err != nil || len(failed) != 0 || s.Committed("g", "t", 0) != -1 {
		t.Errorf("%v, %v", failed, err)
	}
	if all, err := a.Groups(ctx); err != nil || len(all) == 0 {
		t.Errorf("%v, %v", all, err)
	}
	if err := a.DeleteGroup(ctx, "g"); err != nil {
		t.Error(err)
	}
	if _, err := a.DescribeGroup(ctx, "g"); errs.CodeOf(err) != errs.GroupIDNotFound {
		t.Errorf("got %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	a, err := admin.New([]string{"127.0.0.1:1"}, admin.WithRequestTimeout(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, err = a.Cluster(context.Background())
	if errs.CodeOf(err) != errs.NetworkException || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	_, _, err = a.CreateTopic(context.Background(), admin.NewTopic{Name: "t"})
	if errs.OutcomeUnknown(err) {
		t.Errorf("nothing was sent, so the outcome is known: %v", err)
	}
}

func TestBadAddresses(t *testing.T) {
	for _, addrs := range [][]string{nil, {"localhost"}, {""}} {
		if _, err := admin.New(addrs); errs.CodeOf(err) != errs.InvalidConfig {
			t.Errorf("%q: %v", addrs, err)
		}
	}
}
