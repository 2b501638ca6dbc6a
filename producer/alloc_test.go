package producer_test

import (
	"context"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/client/fakeserver"
	"github.com/tidemarkhq/tidemark/producer"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// A record allocates nothing of its own: what is allocated belongs to its batch,
// which has hundreds of records.
func TestAllocationsPerRecord(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { return fakeserver.Discard })
	p := open(t, s)
	ctx := context.Background()
	value := make([]byte, 100)
	round := func() {
		for range 20_000 {
			p.Produce(ctx, producer.Record{Topic: "t", Value: value})
		}
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	round()
	// The fake broker's own allocations count too.
	if perRecord := testing.AllocsPerRun(3, round) / 20_000; perRecord > 0.5 {
		t.Errorf("%.2f allocations per record, the budget is 0.5", perRecord)
	} else {
		t.Logf("%.3f allocations per record", perRecord)
	}
}
