package consumer_test

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/testkit"
	"github.com/tidemarkhq/tidemark/producer"
)

// exampleBroker starts a broker for an example, with three records in topic "orders".
func exampleBroker() (address string, stop func()) {
	b := testkit.NewBroker()
	ctx := context.Background()
	a, err := admin.New([]string{b.Address()})
	if err != nil {
		panic(err)
	}
	defer a.Close()
	if _, _, err := a.CreateTopic(ctx, admin.NewTopic{Name: "orders"}); err != nil {
		panic(err)
	}
	p, err := producer.New([]string{b.Address()})
	if err != nil {
		panic(err)
	}
	defer p.Close(ctx)
	for _, v := range []string{"opened", "filled", "paid"} {
		if _, err := p.Produce(ctx, producer.Record{Topic: "orders", Value: []byte(v)}).Wait(ctx); err != nil {
			panic(err)
		}
	}
	return b.Address(), b.Stop
}

// A member of a group: the group shares out the partitions, and committed
// offsets say where to go on.
func Example() {
	address, stop := exampleBroker()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	c, err := consumer.New([]string{address}, consumer.WithGroup("billing"), consumer.WithTopics("orders"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	for n := 0; n < 3; {
		records, err := c.Poll(ctx, 100)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, r := range records {
			fmt.Println(r.Offset, string(r.Value))
			n++
		}
	}
	if err := c.Commit(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 0 opened
	// 1 filled
	// 2 paid
}

// Without a group the caller says what to read, and where from.
func ExampleConsumer_Assign() {
	address, stop := exampleBroker()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	c, err := consumer.New([]string{address})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	orders := consumer.TopicPartition{Topic: "orders", Partition: 0}
	if err := c.Assign(ctx, map[consumer.TopicPartition]consumer.Position{orders: consumer.BeforeEnd(2)}); err != nil {
		fmt.Println(err)
		return
	}
	for r, err := range c.Records(ctx) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(r.Offset, string(r.Value))
		if r.Offset == 2 {
			break
		}
	}
	// Output:
	// 1 filled
	// 2 paid
}

// A reader that sees what another service has just written.
func ExampleWithNotBefore() {
	address, stop := exampleBroker()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	p, err := producer.New([]string{address})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close(ctx)
	result, err := p.Produce(ctx, producer.Record{Topic: "orders", Value: []byte("shipped")}).Wait(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := consumer.New([]string{address}, consumer.WithNotBefore(result.Token()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	at := consumer.AtOffset(result.Offset)
	if err := c.Assign(ctx, map[consumer.TopicPartition]consumer.Position{{Topic: "orders"}: at}); err != nil {
		fmt.Println(err)
		return
	}
	records, err := c.Poll(ctx, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(records[0].Value))
	// Output: shipped
}
