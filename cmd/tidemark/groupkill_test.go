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

	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/producer"
)

// readers are the members of a group, and what they have seen together.
type readers struct {
	h       *history
	address string

	mu      sync.Mutex
	names   int             // guarded by mu
	read    map[string]bool // guarded by mu; values, by any member
	revoked int             // guarded by mu; partitions that a member had to give up
	errs    []error         // guarded by mu
}

func (g *readers) fail(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.errs) < 20 {
		g.errs = append(g.errs, fmt.Errorf(format, args...))
	}
}

func (g *readers) name() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.names++
	return "member" + strconv.Itoa(g.names)
}

// owner records since when a member owns what. Its callbacks run in Poll and Close, so in one goroutine.
type owner struct {
	g       *readers
	process string
	since   map[consumer.TopicPartition]int64
	leaving bool // nobody has asked for the partitions
}

func (o *owner) added(_ context.Context, list []consumer.TopicPartition) {
	for _, tp := range list {
		o.since[tp] = o.g.h.now()
	}
}

// gone records the end of an ownership. It is taken before others may own the partitions.
func (o *owner) gone(list []consumer.TopicPartition, outcome check.Outcome) {
	for _, tp := range list {
		o.g.h.Add(check.Op{Kind: check.Own, Process: o.process, Group: "g", Key: keyOf(tp.Topic, tp.Partition), Invoke: o.since[tp], Complete: o.g.h.now(), Outcome: outcome})
	}
}

func (o *owner) revoked(_ context.Context, list []consumer.TopicPartition) {
	if o.leaving {
		o.gone(list, check.Unknown)
		return
	}
	o.gone(list, check.OK)
	o.g.h.Saw("revoked", int64(len(list)))
	o.g.mu.Lock()
	defer o.g.mu.Unlock()
	o.g.revoked += len(list)
}

func (o *owner) lost(_ context.Context, list []consumer.TopicPartition) { o.gone(list, check.Unknown) }

// member reads for a while, and leaves.
func (g *readers) member(ctx context.Context, rng *rand.Rand) {
	o := &owner{g: g, process: g.name(), since: map[consumer.TopicPartition]int64{}}
	opts := []consumer.Option{consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithSessionTimeout(6 * time.Second),
		consumer.OnAssigned(o.added), consumer.OnRevoked(o.revoked), consumer.OnLost(o.lost)}
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
		o.leaving = true
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(end)
	}()
	stay, cancel := context.WithTimeout(ctx, time.Duration(1000+rng.IntN(4000))*time.Millisecond)
	defer cancel()
	for stay.Err() == nil {
		invoke := g.h.now()
		records, err := c.Poll(stay, 1+rng.IntN(500))
		if err != nil && stay.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			g.fail("poll: %v", err)
		}
		g.saw(o.process, invoke, records)
		if manual && len(records) > 0 && rng.IntN(4) == 0 {
			short, cancel := context.WithTimeout(stay, time.Second)
			_ = c.Commit(short) // not done, or not known: the next one says more
			cancel()
		}
	}
}

func (g *readers) saw(process string, invoke int64, records []consumer.Record) {
	g.h.polled(process, "g", invoke, records)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range records {
		g.read[string(r.Value)] = true
	}
}

// watch asks what is committed: it never goes back, and all before it was read by somebody.
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
		g.look(ctx, c)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (g *readers) look(ctx context.Context, c *consumer.Consumer) {
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	invoke := g.h.now()
	found, err := c.Committed(short)
	if err != nil {
		return
	}
	for p := range int32(3) {
		tp := consumer.TopicPartition{Topic: "t", Partition: p}
		g.h.Add(check.Op{Kind: check.Committed, Process: "watch", Group: "g", Key: keyOf("t", p), Invoke: invoke, Complete: g.h.now(), Outcome: check.OK, Offset: offsetOf(found, tp)})
	}
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

	p, err := producer.New([]string{b.GRPC}, producer.WithBatchBytes(2<<10), producer.WithBufferBytes(32<<10))
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory("groupkill", seed)
	l := &load{h: h, p: p, more: make(chan struct{})}
	produce, members := run.NewGroup(ctx, "load"), run.NewGroup(ctx, "members")
	produce.Go("produce", func(ctx context.Context) {
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			l.produce()
			if l.sent%8 == 0 {
				select {
				case <-pace.C:
				case <-ctx.Done():
				}
			}
		}
	})
	g := &readers{h: h, address: b.GRPC, read: map[string]bool{}}
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
		b = h.killed(ctx, t, b, conf)
	}
	produce.Stop()
	l.close(ctx, t)
	g.awaitAll(ctx, t, l, b)
	members.Stop()
	if err := b.Stop(ctx); err != nil {
		t.Error(err)
	}
	for _, err := range g.errs {
		t.Error(err)
	}
	h.judge(t, check.Require{
		check.SawAcked: 1, check.SawFaults: int64(n), "revoked": 1, check.Checked(check.Lost): 1, check.Checked(check.DuplicateIdempotent): 1,
		check.Checked(check.CommitRegress): 1, check.Checked(check.CommitAhead): 1, check.Checked(check.PollSkip): 1,
	})
}

// awaitAll waits until the group has read every acknowledged record, and has had to rebalance.
func (g *readers) awaitAll(ctx context.Context, t *testing.T, l *load, b *child.Broker) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(45 * time.Second)
	for {
		g.mu.Lock()
		missing, revoked := l.answers()-len(g.read), g.revoked
		g.mu.Unlock()
		if missing <= 0 && revoked > 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("%d acknowledged records were never read, %d partitions were revoked\n%s", missing, revoked, b.Logs())
			return
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}
