package producer_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/internal/testkit"
	"github.com/tidemarkhq/tidemark/producer"
)

// exampleBroker starts a broker for an example, with a topic "orders" of one partition.
func exampleBroker() (address string, stop func()) {
	b := testkit.NewBroker()
	a, err := admin.New([]string{b.Address()})
	if err != nil {
		panic(err)
	}
	defer a.Close()
	if _, _, err := a.CreateTopic(context.Background(), admin.NewTopic{Name: "orders"}); err != nil {
		panic(err)
	}
	return b.Address(), b.Stop
}

func Example() {
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
	result, err := p.Produce(ctx, producer.Record{Topic: "orders", Key: []byte("42"), Value: []byte("paid")}).Wait(ctx)
	if err != nil {
		fmt.Println(err) // errs.OutcomeUnknown(err) tells whether it may have been written
		return
	}
	fmt.Printf("partition %d, offset %d, acks %v\n", result.Partition, result.Offset, result.Acked)
	// Output: partition 0, offset 0, acks all
}

// Callbacks of one partition come in the order of the calls.
func ExampleProducer_ProduceFunc() {
	address, stop := exampleBroker()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	p, err := producer.New([]string{address}, producer.WithLinger(10*time.Millisecond))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, order := range []string{"a", "b", "c"} {
		p.ProduceFunc(ctx, producer.Record{Topic: "orders", Value: []byte(order)}, func(r producer.Result, err error) {
			fmt.Println(order, r.Offset, err)
		})
	}
	if err := p.Close(ctx); err != nil { // delivers what is left
		fmt.Println(err)
	}
	// Output:
	// a 0 <nil>
	// b 1 <nil>
	// c 2 <nil>
}

// A conditional append: optimistic concurrency on the end of the partition.
func ExampleProducer_Append() {
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
	records := []producer.Record{{Value: []byte("opened")}, {Value: []byte("filled")}}
	if _, err := p.Append(ctx, "orders", 0, records, producer.ExpectOffset(0)); err != nil {
		fmt.Println(err)
	}
	_, err = p.Append(ctx, "orders", 0, records, producer.ExpectOffset(0))
	var elsewhere *producer.ExpectationError
	if errors.As(err, &elsewhere) {
		fmt.Println("somebody was faster; the partition ends at", elsewhere.Actual)
	}
	// Output: somebody was faster; the partition ends at 2
}
