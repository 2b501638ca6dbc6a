package consumer_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/consumer"
)

// A topic that was deleted and made again is another topic: what a consumer knows about the first
// says nothing about the second, neither where to go on nor what to commit.
func TestATopicMadeAgainIsReadFromItsStart(t *testing.T) {
	r := startReal(t, 1, nil)
	r.fill(0, 0, 10)
	c, err := consumer.New([]string{r.b.Address()}, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithManualCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(r.ctx)
	read := func(want int, prefix int) {
		t.Helper()
		seen := map[string]bool{}
		for len(seen) < want {
			ctx, cancel := context.WithTimeout(r.ctx, 8*time.Second)
			records, err := c.Poll(ctx, 0)
			late := ctx.Err() != nil
			cancel()
			if late {
				t.Fatalf("%d of %d records: %v, %v", len(seen), want, err, c.LastError())
			}
			for _, rec := range records {
				seen[string(rec.Value)] = true
			}
		}
		for i := range want {
			if v := fmt.Sprint("v", prefix+i); !seen[v] {
				t.Errorf("%s was never read", v)
			}
		}
	}
	read(10, 0)

	if err := r.a.DeleteTopic(r.ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.a.CreateTopic(r.ctx, admin.NewTopic{Name: "t", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	// What was read belongs to the topic that is gone.
	err = c.Commit(r.ctx)
	tp := consumer.TopicPartition{Topic: "t"}
	if at, _ := c.Committed(r.ctx, tp); at[tp] != 0 {
		t.Errorf("offset %d of the topic that is gone was committed to the new one (%v)", at[tp], err)
	}
	r.fill(0, 100, 20)
	read(20, 100)
	if err := c.Commit(r.ctx); err != nil {
		t.Fatal(err)
	}
	if at, err := c.Committed(r.ctx, tp); err != nil || at[tp] != 20 {
		t.Errorf("committed %v, %v", at, err)
	}
}

// A caller may still work on records of the topic that is gone when Poll reads the new one.
func TestRecordsOfATopicThatIsGoneAreNotCommittedToItsSuccessor(t *testing.T) {
	r := startReal(t, 1, nil)
	r.fill(0, 0, 10)
	c := r.open(consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithManualCommit())
	var old []consumer.Record
	for len(old) < 10 {
		records, err := c.Poll(r.ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		old = append(old, records...)
	}
	if err := r.a.DeleteTopic(r.ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.a.CreateTopic(r.ctx, admin.NewTopic{Name: "t", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	r.fill(0, 100, 20)
	for {
		records, _ := c.Poll(r.ctx, 3) // errors while the topic is away
		if r.ctx.Err() != nil {
			t.Fatal(c.LastError())
		}
		if len(records) > 0 && string(records[0].Value) == "v100" {
			break
		}
	}
	err := c.CommitRecords(r.ctx, old...)
	tp := consumer.TopicPartition{Topic: "t"}
	if at, _ := c.Committed(r.ctx, tp); at[tp] != 0 || err == nil {
		t.Errorf("offset %d of the topic that is gone was committed to the new one (%v)", at[tp], err)
	}
}
