package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// history records what the clients of a test do. It is safe for concurrent use.
type history struct {
	*check.Recorder
	begun time.Time
}

func newHistory(suite string, seed uint64) *history {
	return &history{check.NewRecorder(suite, seed, 2_000_000), time.Now()}
}

func (h *history) now() int64 { return int64(time.Since(h.begun)) }

func keyOf(topic string, partition int32) check.Key {
	return check.Key{Topic: topic, Partition: partition}
}

// polled records one poll, as one of each partition.
func (h *history) polled(process, group string, invoke int64, records []consumer.Record) {
	complete := h.now()
	byKey := map[check.Key][]check.Record{}
	for _, r := range records {
		k := keyOf(r.Topic, r.Partition)
		byKey[k] = append(byKey[k], check.Record{Offset: int64(r.Offset), Value: string(r.Value)})
	}
	for k, list := range byKey {
		h.Add(check.Op{Kind: check.Poll, Process: process, Group: group, Key: k, Invoke: invoke, Complete: complete, Outcome: check.OK, Records: list})
	}
}

// judge prints the RESULT line, and fails the test with the evidence where there is any.
func (h *history) judge(t *testing.T, require check.Require) {
	t.Helper()
	r := check.Check(h.History())
	t.Log(r.Result(require))
	if err := r.Err(require); err != nil {
		t.Error(err)
	}
}

// load is a producer at work, and what it was told.
type load struct {
	h *history
	p *producer.Producer

	mu    sync.Mutex
	count int           // guarded by mu
	errs  []error       // guarded by mu
	more  chan struct{} // guarded by mu; closed at the next answer
	sent  int           // read after the producer has ended
}

// produce sends the next record. It is called by one goroutine.
func (l *load) produce() {
	n, invoke := l.sent, l.h.now()
	l.sent++
	l.p.ProduceFunc(context.Background(), producer.Record{Topic: "t", Key: []byte(strconv.Itoa(n % 97)), Value: []byte(strconv.Itoa(n))},
		func(r producer.Result, err error) { l.done(n, invoke, r, err) })
}

// done records an acknowledgement. Which partition a record without one was for is not known; it fails the test.
func (l *load) done(n int, invoke int64, r producer.Result, err error) {
	if err == nil {
		l.h.Add(check.Op{
			Kind: check.Send, Process: "producer", Key: keyOf(r.Topic, r.Partition), Invoke: invoke, Complete: l.h.now(), Outcome: check.OK,
			Records:  []check.Record{{Offset: int64(r.Offset), Value: strconv.Itoa(n)}},
			Producer: &check.Producer{ID: -1, Seq: -1, Idempotent: true},
		})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("record %d: %w", n, err))
	}
	l.count++
	close(l.more)
	l.more = make(chan struct{})
}

// await waits until n answers have come.
func (l *load) await(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		count, more := l.count, l.more
		l.mu.Unlock()
		if count >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d answers: %w", count, n, ctx.Err())
		}
	}
}

func (l *load) answers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// close waits for all answers. Each record that was sent must have been acknowledged.
func (l *load) close(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := l.p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for _, err := range l.errs {
		t.Error(err)
	}
	if l.count != l.sent {
		t.Errorf("%d records were sent, %d were answered", l.sent, l.count)
	}
}

// readAll reads the topic from its start to its end.
func (h *history) readAll(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	invoke := h.now()
	ranges := offsets(ctx, t, address)
	c, err := consumer.New([]string{address}, consumer.WithTopics("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	left := int64(0)
	for _, r := range ranges {
		left += int64(r.End - r.Start)
		h.Add(check.Op{Kind: check.Seek, Process: "reader", Key: keyOf("t", r.Partition), Invoke: invoke, Complete: invoke, Outcome: check.OK, Offset: int64(r.Start)})
	}
	read := map[check.Key][]check.Record{}
	for left > 0 {
		from := h.now()
		wait, cancel := context.WithTimeout(ctx, 20*time.Second)
		records, err := c.Poll(wait, 0)
		cancel()
		if err != nil {
			t.Fatalf("%d records were not read: %v", left, err)
		}
		h.polled("reader", "", from, records)
		for _, r := range records {
			k := keyOf(r.Topic, r.Partition)
			read[k] = append(read[k], check.Record{Offset: int64(r.Offset), Value: string(r.Value)})
		}
		left -= int64(len(records))
	}
	for _, r := range ranges {
		k := keyOf("t", r.Partition)
		h.Add(check.Op{Kind: check.Final, Process: "reader", Key: k, Invoke: invoke, Complete: h.now(), Outcome: check.OK,
			Offset: int64(r.Start), End: int64(r.End), Records: read[k]})
	}
}

// offsetOf is what is committed of tp, NoOffset for nothing.
func offsetOf(found map[consumer.TopicPartition]record.Offset, tp consumer.TopicPartition) int64 {
	if o, ok := found[tp]; ok {
		return int64(o)
	}
	return check.NoOffset
}
