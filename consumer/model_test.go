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
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Members come, go, are thrown out, and lose their connections. Every record is
// processed by somebody, and no offset is committed whose records were not.
func TestAtLeastOnceWhateverHappens(t *testing.T) {
	for range 4 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { atLeastOnce(t, seed) })
	}
}

const churnPartitions = 3

// processed is what all members together have worked through.
type processed struct {
	mu   sync.Mutex
	done [churnPartitions]map[int64]bool
}

func (p *processed) add(partition int32, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[partition][offset] = true
}

// upTo is the first offset of a partition that nobody has processed.
func (p *processed) upTo(partition int32) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := int64(0)
	for p.done[partition][o] {
		o++
	}
	return o
}

func atLeastOnce(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := fakeserver.Start(t, map[string]int{"t": churnPartitions})
	var mu sync.Mutex
	cuts := rand.New(rand.NewPCG(seed, 1))
	s.OnFetch(func(*pb.FetchResponse) error {
		mu.Lock()
		defer mu.Unlock()
		if cuts.IntN(30) == 0 {
			return fakeserver.ErrCut
		}
		return nil
	})
	all := &processed{}
	for i := range all.done {
		all.done[i] = make(map[int64]bool)
	}
	ctx := within(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	polling, stop := context.WithCancel(ctx)
	defer stop()
	join := func() *consumer.Consumer {
		c := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithAutoCommit(2*time.Millisecond),
			consumer.WithMaxPartitionBytes(300), consumer.WithPrefetchBytes(2000))
		wg.Go(func() { work(polling, c, all) })
		return c
	}
	members := []*consumer.Consumer{join()}
	var end [churnPartitions]int
	for range 25 {
		p := rng.IntN(churnPartitions)
		n := 1 + rng.IntN(60)
		fill(s, "t", int32(p), end[p], n)
		end[p] += n
		switch k := rng.IntN(10); {
		case k < 3 && len(members) < 4:
			members = append(members, join())
		case k < 5 && len(members) > 1:
			i := rng.IntN(len(members))
			if err := members[i].Close(ctx); err != nil && errs.CodeOf(err) != errs.UnknownMemberID {
				t.Errorf("close: %v", err)
			}
			members = append(members[:i], members[i+1:]...)
		case k < 6:
			if ids := s.Members("g"); len(ids) > 0 {
				s.Evict("g", ids[rng.IntN(len(ids))])
			}
		case k < 7:
			s.Restart(t)
		}
		// A little progress between two disturbances, so that they hit different states.
		eventually(t, ctx, "progress", func() bool { return all.upTo(int32(p)) >= int64(end[p]-n) })
		for q := range int32(churnPartitions) {
			if c := s.Committed("g", "t", q); c > all.upTo(q) {
				t.Fatalf("partition %d: %d is committed, but only the records below %d were processed", q, c, all.upTo(q))
			}
		}
	}
	for q := range int32(churnPartitions) {
		eventually(t, ctx, fmt.Sprintf("all of partition %d is processed and committed", q), func() bool {
			return all.upTo(q) == int64(end[q]) && s.Committed("g", "t", q) == int64(end[q])
		})
	}
}

// work polls and processes until ctx ends or the consumer is closed. Processing is over
// only when the next Poll begins, as for a real application.
func work(ctx context.Context, c *consumer.Consumer, all *processed) {
	for {
		records, err := c.Poll(ctx, 13)
		if ctx.Err() != nil || errors.Is(err, consumer.ErrClosed) {
			return
		}
		for _, r := range records {
			all.add(r.Partition, int64(r.Offset))
		}
	}
}
