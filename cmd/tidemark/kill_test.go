package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/broker/inspect"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/producer"
)

const kills = 12

// A broker that is killed with SIGKILL again and again while a producer writes
// loses nothing that it acknowledged, and writes nothing twice.
func TestKilledUnderLoadLosesNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	conf := child.Config{Dir: filepath.Join(t.TempDir(), "data")}
	b, err := child.Start(ctx, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Kill() }) // dead already where the test has passed
	conf.GRPC = b.GRPC
	create(ctx, t, b.GRPC)

	p, err := producer.New([]string{b.GRPC}, producer.WithBatchBytes(4<<10), producer.WithBufferBytes(256<<10))
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory("kill", seed)
	l := &load{h: h, p: p, more: make(chan struct{})}
	work := run.NewGroup(ctx, "load")
	work.Go("produce", func(ctx context.Context) {
		for ctx.Err() == nil {
			l.produce()
		}
	})
	for range kills {
		if err := l.await(ctx, l.answers()+1+rng.IntN(3000)); err != nil {
			t.Fatalf("%v\n%s", err, b.Logs())
		}
		b = h.killed(ctx, t, b, conf)
	}
	work.Stop()
	l.close(ctx, t)
	h.readAll(ctx, t, b.GRPC)
	h.judge(t, check.Require{
		check.SawAcked: kills, check.SawFaults: kills, check.Checked(check.Lost): kills, check.Checked(check.DuplicateIdempotent): kills,
		check.Checked(check.SendNonmonotonic): kills, check.Checked(check.PollSkip): kills, check.Checked(check.RealtimeOrder): kills,
	})
	if err := b.Stop(ctx); err != nil {
		t.Error(err)
	}
	s, err := inspect.Verify(fsx.OS(), conf.Dir)
	if err != nil || len(s.Damage) > 0 {
		t.Errorf("after %d kills: %v %+v", kills, err, s.Damage)
	}
}

func create(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	a, err := admin.New([]string{address})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = a.CreateTopic(ctx, admin.NewTopic{Name: "t", Partitions: 3})
	if err = errors.Join(err, a.Close()); err != nil {
		t.Fatal(err)
	}
}

// offsets are what the partitions of the topic hold.
func offsets(ctx context.Context, t *testing.T, address string) []admin.Range {
	t.Helper()
	a, err := admin.New([]string{address})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ranges, err := a.TopicOffsets(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	return ranges
}

// killed kills the broker and starts it again.
func (h *history) killed(ctx context.Context, t *testing.T, b *child.Broker, conf child.Config) *child.Broker {
	t.Helper()
	from := h.now()
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	next, err := child.Start(ctx, conf)
	if err != nil {
		t.Fatal(err)
	}
	h.Fault(check.Fault{Kind: "kill", From: from, Until: h.now()})
	return next
}
