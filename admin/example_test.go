package admin_test

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/internal/testkit"
)

func Example() {
	b := testkit.NewBroker()
	defer b.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	a, err := admin.New([]string{b.Address()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	topic, _, err := a.CreateTopic(ctx, admin.NewTopic{
		Name: "orders", Partitions: 3, Configs: map[string]string{"retention.ms": "604800000"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	offsets, err := a.TopicOffsets(ctx, topic.Name)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(topic.Name, len(topic.Partitions), "partitions, the first holds", offsets[0].End-offsets[0].Start, "records")
	// Output: orders 3 partitions, the first holds 0 records
}

// A reset is planned, looked at, and then executed.
func ExampleClient_PlanReset() {
	b := testkit.NewBroker()
	defer b.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	a, err := admin.New([]string{b.Address()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	if _, _, err := a.CreateTopic(ctx, admin.NewTopic{Name: "orders"}); err != nil {
		fmt.Println(err)
		return
	}
	plan, err := a.PlanReset(ctx, "billing", admin.ToStart(), admin.ResetScope{Topics: []string{"orders"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, m := range plan.Moves {
		fmt.Printf("%s/%d: %d -> %d\n", m.Topic, m.Partition, m.From, m.To)
	}
	if _, err := a.ExecuteReset(ctx, plan); err != nil {
		fmt.Println(err)
	}
	// Output: orders/0: -1 -> 0
}
