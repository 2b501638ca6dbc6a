package powercut

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// The topics of a load: one is written by an idempotent producer, one by a plain one.
var topics = []string{"idempotent", "plain"}

// load is two producers and a member of a group at work.
type load struct {
	w      *world
	group  *run.Group // produces
	reader *run.Group
	ps     []*producer.Producer

	mu    sync.Mutex
	acked int           // guarded by mu
	read  int           // guarded by mu; records that the group has read
	more  chan struct{} // guarded by mu; closed when one of these changes
	errs  []error       // guarded by mu; of clients that must not fail
}

func (w *world) load() *load {
	w.t.Helper()
	l := &load{w: w, group: run.NewGroup(w.ctx, "producers"), reader: run.NewGroup(w.ctx, "reader"), more: make(chan struct{})}
	w.t.Cleanup(l.reader.Stop)
	w.t.Cleanup(l.group.Stop)
	for _, topic := range topics {
		opts := []producer.Option{producer.WithPartitioner(producer.ExplicitPartitioner()), producer.WithBatchBytes(4 << 10), producer.WithBufferBytes(64 << 10),
			producer.WithDeliveryTimeout(patience), producer.WithRequestTimeout(3 * time.Second)}
		if topic == "plain" {
			opts = append(opts, producer.WithoutIdempotence())
		}
		p, err := producer.New([]string{w.conf.GRPC}, opts...)
		if err != nil {
			w.t.Fatal(err)
		}
		l.ps = append(l.ps, p)
		l.group.Go(topic, func(ctx context.Context) { l.produce(ctx, p, topic) })
	}
	l.reader.Go("member", l.member)
	l.reader.Go("watch", l.watch)
	return l
}

// produce sends records one after the other, a few hundred in flight at most.
func (l *load) produce(ctx context.Context, p *producer.Producer, topic string) {
	rng := rand.New(rand.NewPCG(7, uint64(len(topic))))
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		l.send(p, topic, int32(n%partitions), fmt.Sprintf("%s-%d-%s", topic, n, strings.Repeat("x", rng.IntN(300))))
		if n%4 == 0 {
			select {
			case <-pace.C:
			case <-ctx.Done():
			}
		}
	}
}

func (l *load) send(p *producer.Producer, topic string, partition int32, value string) {
	op := check.Op{
		Kind: check.Send, Process: "producer-" + topic, Key: check.Key{Topic: topic, Partition: partition}, Invoke: l.w.now(),
		Records:  []check.Record{{Offset: check.NoOffset, Value: value}},
		Producer: &check.Producer{ID: -1, Seq: -1, Idempotent: topic == "idempotent"},
	}
	ticket := l.w.h.Begin(op)
	p.ProduceFunc(context.Background(), producer.Record{Topic: topic, Partition: partition, Value: []byte(value)}, func(r producer.Result, err error) {
		op.Complete, op.Outcome = l.w.now(), check.OK
		switch {
		case err == nil:
			op.Records = []check.Record{{Offset: int64(r.Offset), Value: value}}
		case errs.OutcomeUnknown(err):
			op.Outcome, op.Error = check.Unknown, err.Error()
		default:
			op.Outcome, op.Error = check.Fail, err.Error()
		}
		l.w.h.End(ticket, op)
		l.note(func() {
			if err == nil {
				l.acked++
			}
		})
	})
}

// note changes counts.
func (l *load) note(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.more)
	l.more = make(chan struct{})
}

// await waits until a condition on the counts holds.
func (l *load) await(what string, ok func() bool) {
	l.w.t.Helper()
	for late := time.After(patience); ; {
		l.mu.Lock()
		done, more := ok(), l.more
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-more:
		case <-late:
			l.w.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func (l *load) counts() (acked, read int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked, l.read
}

// awaitAcks waits for so many more acknowledgements.
func (l *load) awaitAcks(n int) {
	l.w.t.Helper()
	acked, _ := l.counts()
	l.await(fmt.Sprintf("%d more acknowledgements", n), func() bool { return l.acked >= acked+n })
}

// member reads both topics as the only member of a group, and commits as it goes.
func (l *load) member(ctx context.Context) {
	c, err := consumer.New([]string{l.w.conf.GRPC}, consumer.WithGroup("g"), consumer.WithTopics(topics...), consumer.WithAutoCommit(20*time.Millisecond))
	if err != nil {
		l.fail(err)
		return
	}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(end) // the broker may be gone
	}()
	for ctx.Err() == nil {
		invoke := l.w.now()
		records, err := c.Poll(ctx, 200)
		if err != nil && ctx.Err() == nil {
			l.fail(fmt.Errorf("poll: %w", err))
			return
		}
		l.w.polled("member", "g", invoke, records)
		l.note(func() { l.read += len(records) })
	}
}

func (l *load) fail(err error) {
	l.note(func() { l.errs = append(l.errs, err) })
}

// watch asks what is committed: it never goes back.
func (l *load) watch(ctx context.Context) {
	c, err := consumer.New([]string{l.w.conf.GRPC}, consumer.WithGroup("g"))
	if err != nil {
		l.fail(err)
		return
	}
	defer c.Close(context.Background())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		l.look(ctx, c)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (l *load) look(ctx context.Context, c *consumer.Consumer) {
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	invoke := l.w.now()
	found, err := c.Committed(short)
	if err != nil {
		return
	}
	for _, topic := range topics {
		for p := range int32(partitions) {
			op := check.Op{Kind: check.Committed, Process: "watch", Group: "g", Key: check.Key{Topic: topic, Partition: p},
				Invoke: invoke, Complete: l.w.now(), Outcome: check.OK, Offset: check.NoOffset}
			if o, ok := found[consumer.TopicPartition{Topic: topic, Partition: p}]; ok {
				op.Offset = int64(o)
			}
			l.w.h.Add(op)
		}
	}
}

// stop ends the producers, which wait for their answers, and the readers.
func (l *load) stop() {
	l.w.t.Helper()
	l.group.Stop()
	for _, p := range l.ps {
		if err := p.Close(l.w.ctx); err != nil {
			l.w.t.Error(err)
		}
	}
	l.reader.Stop()
	for _, err := range l.errs {
		l.w.t.Error(err)
	}
}

// polled records one poll, as one of each partition.
func (w *world) polled(process, group string, invoke int64, records []consumer.Record) map[check.Key][]check.Record {
	byKey := map[check.Key][]check.Record{}
	for _, r := range records {
		k := check.Key{Topic: r.Topic, Partition: r.Partition}
		byKey[k] = append(byKey[k], check.Record{Offset: int64(r.Offset), Value: string(r.Value)})
	}
	complete := w.now()
	for k, list := range byKey {
		w.h.Add(check.Op{Kind: check.Poll, Process: process, Group: group, Key: k, Invoke: invoke, Complete: complete, Outcome: check.OK, Records: list})
	}
	return byKey
}

// readAll reads partitions from start to end; those in except are left out.
func (w *world) readAll(except ...check.Key) {
	w.t.Helper()
	for _, topic := range topics {
		for p := range int32(partitions) {
			if k := (check.Key{Topic: topic, Partition: p}); !slices.Contains(except, k) {
				w.readOne(k)
			}
		}
	}
}

func (w *world) readOne(k check.Key) {
	w.t.Helper()
	invoke := w.now()
	c := w.assign(k)
	defer c.Close(w.ctx)
	tp := consumer.TopicPartition{Topic: k.Topic, Partition: k.Partition}
	found, err := c.Offsets(w.ctx, map[consumer.TopicPartition]consumer.Position{tp: consumer.AtEnd()})
	if err != nil {
		w.t.Fatal(err)
	}
	end := int64(found[tp]) // and the log starts at 0: nothing is given up
	w.h.Add(check.Op{Kind: check.Seek, Process: "reader", Key: k, Invoke: invoke, Complete: invoke, Outcome: check.OK})
	var all []check.Record
	for int64(len(all)) < end {
		from := w.now()
		wait, cancel := context.WithTimeout(w.ctx, patience)
		records, err := c.Poll(wait, 0)
		cancel()
		if err != nil {
			w.t.Fatalf("%s: %d of %d records were read: %v", k, len(all), end, err)
		}
		all = append(all, w.polled("reader", "", from, records)[k]...)
	}
	w.h.Add(check.Op{Kind: check.Final, Process: "reader", Key: k, Invoke: invoke, Complete: w.now(), Outcome: check.OK,
		End: end, Records: all})
}

// assign reads one partition from offset 0.
func (w *world) assign(k check.Key) *consumer.Consumer {
	w.t.Helper()
	c, err := consumer.New([]string{w.conf.GRPC})
	if err != nil {
		w.t.Fatal(err)
	}
	tp := consumer.TopicPartition{Topic: k.Topic, Partition: k.Partition}
	if err := c.Assign(w.ctx, map[consumer.TopicPartition]consumer.Position{tp: consumer.AtOffset(0)}); err != nil {
		w.t.Fatal(errors.Join(err, c.Close(w.ctx)))
	}
	return c
}
