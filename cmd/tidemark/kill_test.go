package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/broker/inspect"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const kills = 12

// load is a producer at work, and what it was told.
type load struct {
	mu    sync.Mutex
	acked map[consumer.TopicPartition]map[record.Offset]int // guarded by mu; which record each offset holds
	count int                                               // guarded by mu
	errs  []error                                           // guarded by mu
	more  chan struct{}                                     // guarded by mu; closed at the next acknowledgement
	sent  int                                               // read after the producer has ended
}

func (l *load) done(n int, r producer.Result, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tp := consumer.TopicPartition{Topic: r.Topic, Partition: r.Partition}
	switch {
	case err != nil:
		l.errs = append(l.errs, fmt.Errorf("record %d: %w", n, err))
	case l.acked[tp] == nil:
		l.acked[tp] = map[record.Offset]int{r.Offset: n}
	default:
		if other, ok := l.acked[tp][r.Offset]; ok {
			l.errs = append(l.errs, fmt.Errorf("records %d and %d were both acknowledged at %s offset %d", other, n, tp, r.Offset))
		}
		l.acked[tp][r.Offset] = n
	}
	l.count++
	close(l.more)
	l.more = make(chan struct{})
}

// await waits until n answers have come.
func (l *load) await(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		count, more := l.count, l.more
		l.mu.Unlock()
		if count >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d answers: %w", count, n, ctx.Err())
		}
	}
}

func (l *load) answers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

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

	l := &load{acked: map[consumer.TopicPartition]map[record.Offset]int{}, more: make(chan struct{})}
	p, err := producer.New([]string{b.GRPC}, producer.WithBatchBytes(4<<10), producer.WithBufferBytes(256<<10))
	if err != nil {
		t.Fatal(err)
	}
	work := run.NewGroup(ctx, "load")
	work.Go("produce", func(ctx context.Context) {
		for ; ctx.Err() == nil; l.sent++ {
			n := l.sent
			p.ProduceFunc(context.Background(), producer.Record{Topic: "t", Key: []byte(strconv.Itoa(n % 97)), Value: []byte(strconv.Itoa(n))},
				func(r producer.Result, err error) { l.done(n, r, err) })
		}
	})
	for range kills {
		if err := l.await(ctx, l.answers()+1+rng.IntN(3000)); err != nil {
			t.Fatalf("%v\n%s", err, b.Logs())
		}
		if err := b.Kill(); err != nil {
			t.Fatal(err)
		}
		next, err := child.Start(ctx, conf)
		if err != nil {
			t.Fatal(err)
		}
		b = next
	}
	work.Stop()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	check(ctx, t, b, l)
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

// stored is how many records the topic holds.
func stored(ctx context.Context, t *testing.T, address string) (n int64) {
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
	for _, r := range ranges {
		n += int64(r.End - r.Start)
	}
	return n
}

// check reads everything back: each acknowledged record stands at its offset,
// and each record that was sent is there once.
func check(ctx context.Context, t *testing.T, b *child.Broker, l *load) {
	t.Helper()
	for _, err := range l.errs {
		t.Error(err)
	}
	if l.count != l.sent {
		t.Errorf("%d records were sent, %d were answered", l.sent, l.count)
	}
	if n := stored(ctx, t, b.GRPC); n != int64(l.count) {
		t.Errorf("%d records were acknowledged, the topic holds %d", l.count, n)
	}
	c, err := consumer.New([]string{b.GRPC}, consumer.WithTopics("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	seen := make([]int, l.sent)
	for read := 0; read < l.count; {
		wait, cancel := context.WithTimeout(ctx, 20*time.Second)
		records, err := c.Poll(wait, 0)
		cancel()
		if err != nil {
			t.Fatalf("%d of %d records were read: %v", read, l.count, err)
		}
		for _, r := range records {
			n, err := strconv.Atoi(string(r.Value))
			if err != nil || n >= l.sent {
				t.Fatalf("%s offset %d holds %q", r.TopicPartition(), r.Offset, r.Value)
			}
			seen[n]++
			if want, ok := l.acked[r.TopicPartition()][r.Offset]; !ok || want != n {
				t.Errorf("%s offset %d holds record %d, acknowledged was %d (%v)", r.TopicPartition(), r.Offset, n, want, ok)
			}
		}
		read += len(records)
	}
	for n, times := range seen {
		if times != 1 {
			t.Errorf("record %d is there %d times", n, times)
		}
	}
	t.Logf("%d records, %d kills", l.count, kills)
}
