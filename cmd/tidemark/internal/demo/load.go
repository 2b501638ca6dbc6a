package demo

import (
	"context"
	"fmt"
	"sync"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/producer"
)

// load writes the input and waits for every acknowledgement.
func (s *show) load(ctx context.Context, topic string, in input) (sum, error) {
	s.command("%s | tidemark produce %s -f kv -b %s", in.pipe, topic, s.broker.GRPC)
	s.say("  %s", in.what)
	p, err := producer.New([]string{s.broker.GRPC})
	if err != nil {
		return sum{}, err
	}
	meter := terminal.NewMeter()
	var want sum
	var mu sync.Mutex
	var failed error
	for _, l := range in.lines {
		key, value := []byte(l.key), []byte(l.value)
		want.add(recordSum(key, value))
		meter.Sent()
		sent := clock.Monotonic()
		p.ProduceFunc(ctx, producer.Record{Topic: topic, Key: key, Value: value}, func(_ producer.Result, err error) {
			meter.Done(len(key)+len(value), clock.Since(sent), err != nil)
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	if err := p.Close(ctx); err != nil {
		return want, err
	}
	mu.Lock()
	defer mu.Unlock()
	if failed != nil {
		return want, fmt.Errorf("produce to %s: %w", topic, failed)
	}
	s.say("  %s", meter.Snapshot().Produced(topic))
	return want, nil
}

// acked is what a producer was told about its records.
type acked struct {
	mu    sync.Mutex
	at    map[place]uint64 // guarded by mu; checksum of each acknowledged record
	total int              // guarded by mu; acknowledgements, those of one place twice counted twice
	err   error            // guarded by mu
	half  chan struct{}    // closed when half of the records are acknowledged
}

func (k *acked) add(r producer.Result, crc uint64, half int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.at[place{r.Partition, int64(r.Offset)}] = crc
	if k.total++; k.total == half {
		close(k.half)
	}
}

// killWhileLoading kills the broker with SIGKILL while a producer is at work,
// starts it again, lets the producer finish, and looks for every acknowledged record.
func (s *show) killWhileLoading(ctx context.Context, topic string, in input) error {
	s.command("%s | tidemark produce %s -f kv -b %s &  kill -9 %d", in.pipe, topic, s.broker.GRPC, s.broker.PID)
	k := &acked{at: map[place]uint64{}, half: make(chan struct{})}
	p, err := producer.New([]string{s.broker.GRPC})
	if err != nil {
		return err
	}
	fed := s.feed(ctx, p, topic, in, k)
	defer fed.stop()
	select {
	case <-k.half:
	case <-ctx.Done():
		return fmt.Errorf("wait for half of the second load: %w", ctx.Err())
	}
	if err := s.crash(ctx, k, len(in.lines)); err != nil {
		return err
	}
	if err := fed.wait(ctx); err != nil {
		return err
	}
	if err := p.Close(ctx); err != nil {
		return fmt.Errorf("finish the second load: %w", err)
	}
	if k.err != nil {
		return fmt.Errorf("produce to %s: %w", topic, k.err)
	}
	return s.prove(ctx, topic, in, k)
}

// crash kills the broker and starts it again at the same address.
func (s *show) crash(ctx context.Context, k *acked, total int) error {
	grpc, pid := s.broker.GRPC, s.broker.PID
	if err := s.broker.Kill(); err != nil {
		return err
	}
	k.mu.Lock()
	before := k.total
	k.mu.Unlock()
	s.say("  killed process %d with SIGKILL after %s of %s acknowledgements", pid, terminal.Count(int64(before)), terminal.Count(int64(total)))
	s.command("tidemark serve --set node.data_dir=%s --set listeners.grpc.address=%s", s.data, grpc)
	begun := clock.Monotonic()
	b, err := child.Start(ctx, child.Config{Dir: s.data, GRPC: grpc})
	if err != nil {
		s.broker = nil
		return err
	}
	s.broker = b
	s.say("  process %d recovered and serves after %s; the producer goes on by itself", b.PID, terminal.Duration(clock.Since(begun)))
	return nil
}

// prove reads everything back and compares it with what was acknowledged.
func (s *show) prove(ctx context.Context, topic string, in input, k *acked) error {
	s.command("tidemark consume %s -o :end -f json -b %s", topic, s.broker.GRPC)
	begun := clock.Monotonic()
	var found, changed int
	var got, want sum
	err := s.readAll(ctx, topic, func(r consumer.Record) error {
		crc := recordSum(r.Key, r.Value)
		got.add(crc)
		switch expect, ok := k.at[place{r.Partition, int64(r.Offset)}]; {
		case ok && expect == crc:
			found++
		case ok:
			changed++
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range in.lines {
		want.add(recordSum([]byte(l.key), []byte(l.value)))
	}
	missing, extra := len(k.at)-found-changed, got.records-int64(len(k.at))
	s.say("  %s acknowledged, %s read back in %s: %d missing, %d changed, %d there twice", terminal.Count(int64(k.total)),
		terminal.Count(got.records), terminal.Duration(clock.Since(begun)), missing, changed, extra)
	if missing != 0 || changed != 0 || extra != 0 || got != want || k.total != len(in.lines) {
		return fmt.Errorf("the second load is not what was acknowledged: want %d records with checksum %016x, got %d with %016x",
			want.records, want.crc, got.records, got.crc)
	}
	s.say("  checksum %016x, as it should be", got.crc)
	return nil
}
