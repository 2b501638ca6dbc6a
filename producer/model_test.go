package producer_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client/fakeserver"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/errs"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Whatever the broker does, the results tell the truth: an acknowledged record
// is in the log once, at its offset; a refused one is not there; one of unknown outcome
// is there once or not at all; and the order is that of the calls.
func TestResultsTellTheTruth(t *testing.T) {
	for range 8 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { tellsTheTruth(t, seed) })
	}
}

func tellsTheTruth(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	idempotent := rng.IntN(4) > 0
	s := fakeserver.Start(t, map[string]int{"t": 1})
	var mu sync.Mutex
	trouble := rand.New(rand.NewPCG(seed, 2))
	calm := false
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
		mu.Lock()
		defer mu.Unlock()
		verdicts := []fakeserver.Verdict{
			fakeserver.Refuse, fakeserver.RefuseHard, fakeserver.CutBefore, fakeserver.CutAfter, fakeserver.TimedOut, fakeserver.Lose, fakeserver.Silence,
		}
		if k := trouble.IntN(25); k < len(verdicts) && !calm {
			return verdicts[k]
		}
		return fakeserver.Go
	})
	opts := []producer.Option{producer.WithBatchBytes(150), producer.WithLinger(0), producer.WithRequestTimeout(40 * time.Millisecond)}
	if rng.IntN(2) == 0 {
		opts = append(opts, producer.WithDeliveryTimeout(time.Duration(10+rng.IntN(100))*time.Millisecond))
	}
	if !idempotent {
		opts = append(opts, producer.WithoutIdempotence())
	}
	p := open(t, s, opts...)
	ctx := within(t)
	const n = 400
	futures := make([]producer.Future, n)
	for i := range n {
		if rng.IntN(20) == 0 {
			if _, err := p.Append(ctx, "t", 0, []producer.Record{{Value: []byte("aside")}}, producer.ExpectOffset(-5)); err == nil {
				t.Fatal("an impossible expectation held")
			}
		}
		futures[i] = p.Produce(ctx, rec(i))
	}
	mu.Lock()
	calm = true
	mu.Unlock()
	type outcome struct {
		r   producer.Result
		err error
	}
	outcomes := make([]outcome, n)
	for i, f := range futures {
		outcomes[i].r, outcomes[i].err = f.Wait(ctx)
	}
	// One more record shows that the producer still works.
	if _, err := p.Produce(ctx, rec(n)).Wait(ctx); err != nil {
		t.Errorf("after the trouble: %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	log := s.Values("t", 0)
	at := make(map[string][]int)
	for o, v := range log {
		at[v] = append(at[v], o)
	}
	if len(at["aside"]) > 0 {
		t.Error("a conditional append whose expectation failed is in the log")
	}
	lastAcked := -1
	for i, out := range outcomes {
		places := at[fmt.Sprintf("v%d", i)]
		switch {
		case out.err == nil:
			if len(places) != 1 || places[0] != int(out.r.Offset) {
				t.Errorf("record %d: acknowledged at %d, found at %v", i, out.r.Offset, places)
			}
			if int(out.r.Offset) <= lastAcked {
				t.Errorf("record %d: offset %d after %d", i, out.r.Offset, lastAcked)
			}
			lastAcked = int(out.r.Offset)
		case errs.OutcomeUnknown(out.err):
			if len(places) > 1 {
				t.Errorf("record %d: found at %v", i, places)
			}
		case len(places) > 0:
			t.Errorf("record %d: refused (%v), yet found at %v", i, out.err, places)
		}
	}
}
