package consumer_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/testkit"
	"github.com/tidemarkhq/tidemark/producer"
)

// The whole way through a real broker in this process: written with fsync and
// acks all, then read from the start.
func BenchmarkBroker(b *testing.B) {
	for _, size := range []int{100, 1024} {
		broker := testkit.StartBroker(b)
		addrs := []string{broker.Address()}
		ctx := context.Background()
		a, err := admin.New(addrs)
		if err != nil {
			b.Fatal(err)
		}
		defer a.Close()
		if _, _, err := a.CreateTopic(ctx, admin.NewTopic{Name: "t"}); err != nil {
			b.Fatal(err)
		}
		p, err := producer.New(addrs)
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close(ctx)
		value := make([]byte, size)
		written := 0
		b.Run(fmt.Sprintf("produce/size=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				p.Produce(ctx, producer.Record{Topic: "t", Value: value})
			}
			if err := p.Flush(ctx); err != nil {
				b.Fatal(err)
			}
			written += b.N
		})
		b.Run(fmt.Sprintf("consume/size=%d", size), func(b *testing.B) {
			c, err := consumer.New(addrs)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close(ctx)
			if err := c.Assign(ctx, map[consumer.TopicPartition]consumer.Position{t0: consumer.AtStart()}); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			read := 0
			var page []consumer.Record
			for b.Loop() {
				if read == written {
					read = 0
					if err := c.Seek(ctx, t0, consumer.AtStart()); err != nil {
						b.Fatal(err)
					}
				}
				read++
				if len(page) == 0 {
					if page, err = c.Poll(ctx, 0); err != nil {
						b.Fatal(err)
					}
				}
				page = page[1:]
			}
		})
	}
}
