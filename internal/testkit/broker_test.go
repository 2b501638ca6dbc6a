package testkit_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/testkit"
	"github.com/tidemarkhq/tidemark/producer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrip(t *testing.T) {
	b := testkit.StartBroker(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	addrs := []string{b.Address()}
	a, err := admin.New(addrs)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, _, err := a.CreateTopic(ctx, admin.NewTopic{Name: "t", Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	p, err := producer.New(addrs)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(ctx)
	for i := range 1000 {
		p.ProduceFunc(ctx, producer.Record{Topic: "t", Key: fmt.Append(nil, i), Value: fmt.Append(nil, i)}, func(_ producer.Result, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := consumer.New(addrs, consumer.WithTopics("t"), consumer.WithGroup("g"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	seen := map[string]bool{}
	for len(seen) < 1000 {
		records, err := c.Poll(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			seen[string(r.Value)] = true
		}
	}
}
