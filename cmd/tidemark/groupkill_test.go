package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// readers are the members of a group, and what they have seen together.
type readers struct {
	address string
	mu      sync.Mutex
	seen    map[consumer.TopicPartition]map[record.Offset]string // guarded by mu; by any member, before it polled again
	stored  map[consumer.TopicPartition]record.Offset            // guarded by mu; the highest commit that was observed
	errs    []error                                              // guarded by mu
}

func (g *readers) fail(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.errs) < 20 {
		g.errs = append(g.errs, fmt.Errorf(format, args...))
	}
}

// member reads for a while, and leaves.
func (g *readers) member(ctx context.Context, rng *rand.Rand) {
	opts := []consumer.Option{consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithSessionTimeout(6 * time.Second)}
	manual := rng.IntN(2) == 0
	if manual {
		opts = append(opts, consumer.WithManualCommit())
	} else {
		opts = append(opts, consumer.WithAutoCommit(50*time.Millisecond))
	}
	c, err := consumer.New([]string{g.address}, opts...)
	if err != nil {
		g.fail("new member: %v", err)
		return
	}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(end)
	}()
	stay, cancel := context.WithTimeout(ctx, time.Duration(1000+rng.IntN(4000))*time.Millisecond)
	defer cancel()
	for stay.Err() == nil {
		records, err := c.Poll(stay, 1+rng.IntN(500))
		if err != nil && stay.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			g.fail("poll: %v", err)
		}
		g.saw(records)
		if manual && len(records) > 0 && rng.IntN(4) == 0 {
			short, cancel := context.WithTimeout(stay, time.Second)
			_ = c.Commit(short) // not done, or not known: the next one says more
			cancel()
		}
	}
}

func (g *readers) saw(records []consumer.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range records {
		tp := r.TopicPartition()
		if g.seen[tp] == nil {
			g.seen[tp] = map[record.Offset]string{}
		}
		if before, ok := g.seen[tp][r.Offset]; ok && before != string(r.Value) {
			g.errs = append(g.errs, fmt.Errorf("%s offset %d was %q and is %q", tp, r.Offset, before, r.Value))
		}
		g.seen[tp][r.Offset] = string(r.Value)
	}
}

// watch asks what is committed: it never goes back, and all before it was seen by somebody.
func (g *readers) watch(ctx context.Context) {
	c, err := consumer.New([]string{g.address}, consumer.WithGroup("g"))
	if err != nil {
		g.fail("watcher: %v", err)
		return
	}
	defer c.Close(context.Background())
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		_ = g.look(ctx, c)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (g *readers) look(ctx context.Context, c *consumer.Consumer) error {
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	found, err := c.Committed(short)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for tp, at := range found {
		before := g.stored[tp]
		if at < before {
			g.errs = append(g.errs, fmt.Errorf("%s: the committed offset went back from %d to %d", tp, before, at))
		}
		for o := before; o < at; o++ {
			if _, ok := g.seen[tp][o]; !ok {
				g.errs = append(g.errs, fmt.Errorf("%s: %d is committed, and nobody has seen offset %d", tp, at, o))
				break
			}
		}
		g.stored[tp] = max(before, at)
	}
	for tp, before := range g.stored {
		if _, ok := found[tp]; !ok {
			g.errs = append(g.errs, fmt.Errorf("%s: the committed offset %d is gone", tp, before))
		}
	}
	return nil
}

// Members come and go, commit by themselves or by hand, and the broker is killed under them.
// A commit never goes back and never runs ahead of what was read, and every
// acknowledged record is read by somebody, from its offset.
func TestAGroupUnderKillsReadsEverythingAndItsCommitsNeverGoBack(t *testing.T) {
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv("TIDEMARK_SEED"), 10, 64); err == nil {
		seed = n
	}
	n, err := strconv.Atoi(os.Getenv("TIDEMARK_KILLS"))
	if err != nil {
		n = 6
	}
	t.Logf("TIDEMARK_SEED=%d TIDEMARK_KILLS=%d", seed, n)
	rng := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit+time.Duration(n)*5*time.Second)
	defer cancel()
	conf := child.Config{Dir: filepath.Join(t.TempDir(), "data")}
	b, err := child.Start(ctx, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Kill() })
	conf.GRPC = b.GRPC
	create(ctx, t, b.GRPC)

	l := &load{acked: map[consumer.TopicPartition]map[record.Offset]int{}, more: make(chan struct{})}
	p, err := producer.New([]string{b.GRPC}, producer.WithBatchBytes(2<<10), producer.WithBufferBytes(32<<10))
	if err != nil {
		t.Fatal(err)
	}
	produce, members := run.NewGroup(ctx, "load"), run.NewGroup(ctx, "members")
	produce.Go("produce", func(ctx context.Context) {
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for ; ctx.Err() == nil; l.sent++ {
			n := l.sent
			p.ProduceFunc(context.Background(), producer.Record{Topic: "t", Key: []byte(strconv.Itoa(n % 97)), Value: []byte(strconv.Itoa(n))},
				func(r producer.Result, err error) { l.done(n, r, err) })
			if n%8 == 0 {
				select {
				case <-pace.C:
				case <-ctx.Done():
				}
			}
		}
	})
	g := &readers{address: b.GRPC, seen: map[consumer.TopicPartition]map[record.Offset]string{}, stored: map[consumer.TopicPartition]record.Offset{}}
	for k := range 3 {
		own := rand.New(rand.NewPCG(seed, uint64(k+1)))
		members.Go("member", func(ctx context.Context) {
			for ctx.Err() == nil {
				g.member(ctx, own)
			}
		})
	}
	members.Go("watch", g.watch)
	for range n {
		if err := l.await(ctx, l.answers()+1+rng.IntN(8000)); err != nil {
			t.Fatalf("%v\n%s", err, b.Logs())
		}
		if err := b.Kill(); err != nil {
			t.Fatal(err)
		}
		if b, err = child.Start(ctx, conf); err != nil {
			t.Fatal(err)
		}
	}
	produce.Stop()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	g.awaitAll(ctx, t, l, b)
	members.Stop()
	if err := b.Stop(ctx); err != nil {
		t.Error(err)
	}
	for _, err := range append(l.errs, g.errs...) {
		t.Error(err)
	}
	t.Logf("%d records, %d kills, committed %v", l.count, n, g.stored)
}

// awaitAll waits until the group has read every acknowledged record.
func (g *readers) awaitAll(ctx context.Context, t *testing.T, l *load, b *child.Broker) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(45 * time.Second)
	for {
		missing, example := g.missing(l)
		if missing == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("%d acknowledged records were never read, such as %s\n%s", missing, example, b.Logs())
			return
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}

func (g *readers) missing(l *load) (n int, example string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for tp, records := range l.acked {
		for o, value := range records {
			if got, ok := g.seen[tp][o]; !ok || got != strconv.Itoa(value) {
				n++
				example = fmt.Sprintf("%s offset %d, record %d (%q)", tp, o, value, got)
			}
		}
	}
	return n, example
}
