package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/producer"
)

// feeding is a load that goes on beside the rest of the show.
type feeding struct {
	group *run.Group
	done  chan struct{}
}

// feed writes the input in a goroutine of its own.
func (s *show) feed(ctx context.Context, p *producer.Producer, topic string, in input, k *acked) *feeding {
	f := &feeding{group: run.NewGroup(ctx, "demo"), done: make(chan struct{})}
	half := max(len(in.lines)/2, 1)
	f.group.Go("feed", func(ctx context.Context) {
		defer close(f.done)
		for _, l := range in.lines {
			key, value := []byte(l.key), []byte(l.value)
			p.ProduceFunc(ctx, producer.Record{Topic: topic, Key: key, Value: value}, func(r producer.Result, err error) {
				if err != nil {
					k.mu.Lock()
					k.err = err
					k.mu.Unlock()
					return
				}
				k.add(r, recordSum(key, value), half)
			})
		}
	})
	return f
}

func (f *feeding) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the second load: %w", ctx.Err())
	}
}

func (f *feeding) stop() { f.group.Stop() }

// tally is what the members of the group have read together.
type tally struct {
	mu     sync.Mutex
	got    sum                // guarded by mu
	seen   map[place]struct{} // guarded by mu
	twice  int                // guarded by mu
	shares [members]int64     // guarded by mu
	parts  [members][]int32   // guarded by mu; the partitions that a member read from
	err    error              // guarded by mu
	all    chan struct{}      // closed when everything was read, or a member failed
	closed bool               // guarded by mu
}

func (t *tally) add(member int, records []consumer.Record, want int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range records {
		at := place{r.Partition, int64(r.Offset)}
		if _, ok := t.seen[at]; ok {
			t.twice++ // at least once: a rebalance may repeat what was not committed
			continue
		}
		t.seen[at] = struct{}{}
		t.got.add(recordSum(r.Key, r.Value))
		t.shares[member]++
		if !slices.Contains(t.parts[member], r.Partition) {
			t.parts[member] = append(t.parts[member], r.Partition)
		}
	}
	if t.got.records >= want {
		t.endLocked(nil)
	}
}

func (t *tally) endLocked(err error) {
	if t.closed {
		return
	}
	t.closed, t.err = true, err
	close(t.all)
}

// consumeAsGroup reads a topic through a group of three and checks count and checksum.
func (s *show) consumeAsGroup(ctx context.Context, topic string, want sum) error {
	s.command("tidemark consume %s -g readers -b %s        (%d times, side by side)", topic, s.broker.GRPC, members)
	begun := clock.Monotonic()
	t := &tally{seen: map[place]struct{}{}, all: make(chan struct{})}
	consumers, err := s.join(ctx, topic)
	if err != nil {
		return err
	}
	group := run.NewGroup(ctx, "demo")
	for i, c := range consumers {
		group.Go("member", func(ctx context.Context) { t.member(ctx, i, c, want.records) })
	}
	select {
	case <-t.all:
	case <-ctx.Done():
		t.err = fmt.Errorf("consume %s through a group: %w", topic, ctx.Err())
	}
	took := clock.Since(begun)
	group.Stop()
	for _, c := range consumers {
		if err := errors.Join(c.Commit(ctx), c.Close(ctx)); err != nil && t.err == nil {
			t.err = err
		}
	}
	if t.err != nil {
		return t.err
	}
	for i := range members {
		s.say("  member %d read %s records of partitions %s", i+1, terminal.Count(t.shares[i]), numbers(t.parts[i]))
	}
	s.say("  %s records in %s (%s rec/s, joining included), %d read again after a rebalance", terminal.Count(t.got.records),
		terminal.Duration(took), terminal.Rate(float64(t.got.records)/took.Seconds()), t.twice)
	if t.got != want {
		return fmt.Errorf("the group read %d records with checksum %016x, not %d with %016x", t.got.records, t.got.crc, want.records, want.crc)
	}
	s.say("  checksum %016x, the same as loaded", t.got.crc)
	return s.lag(ctx)
}

func (s *show) join(ctx context.Context, topic string) ([]*consumer.Consumer, error) {
	var all []*consumer.Consumer
	for range members {
		c, err := consumer.New([]string{s.broker.GRPC}, consumer.WithGroup("readers"), consumer.WithTopics(topic),
			consumer.WithAutoCommit(200*time.Millisecond))
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func (t *tally) member(ctx context.Context, i int, c *consumer.Consumer, want int64) {
	for ctx.Err() == nil {
		// Small bites, so that no member is done before the others have joined.
		records, err := c.Poll(ctx, 500)
		if err != nil {
			if ctx.Err() == nil {
				t.mu.Lock()
				t.endLocked(err)
				t.mu.Unlock()
			}
			return
		}
		t.add(i, records, want)
	}
}

func numbers(partitions []int32) string {
	slices.Sort(partitions)
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(partitions), " ", ","), "[]")
}

func (s *show) lag(ctx context.Context) error {
	s.command("tidemark group lag readers -b %s", s.broker.GRPC)
	g, err := s.admin.DescribeGroup(ctx, "readers")
	if err != nil {
		return fmt.Errorf("describe the group: %w", err)
	}
	s.say("  state %s, %s committed, lag %s", g.State, terminal.Counted(int64(len(g.Partitions)), "partition"), terminal.Counted(g.Lag(), "record"))
	if g.Lag() != 0 {
		return fmt.Errorf("the group has read everything and its lag is %d", g.Lag())
	}
	return nil
}
