package producer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/testkit"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func realTopic(t testing.TB, partitions int, configs map[string]string) (*testkit.Broker, context.Context) {
	t.Helper()
	b := testkit.StartBroker(t)
	ctx := within(t)
	a, err := admin.New([]string{b.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, _, err := a.CreateTopic(ctx, admin.NewTopic{Name: "t", Partitions: partitions, Configs: configs}); err != nil {
		t.Fatal(err)
	}
	return b, ctx
}

func realProducer(t testing.TB, b *testkit.Broker, opts ...producer.Option) *producer.Producer {
	t.Helper()
	p, err := producer.New([]string{b.Address()}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = p.Close(ctx)
	})
	return p
}

// readAll reads the values of t/0 up to offset end.
func readAll(t *testing.T, ctx context.Context, b *testkit.Broker, end int) []string {
	t.Helper()
	c, err := consumer.New([]string{b.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	if err := c.Assign(ctx, map[consumer.TopicPartition]consumer.Position{{Topic: "t"}: consumer.AtStart()}); err != nil {
		t.Fatal(err)
	}
	var values []string
	for len(values) < end {
		records, err := c.Poll(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if int(r.Offset) != len(values) {
				t.Fatalf("offset %d after %d records", r.Offset, len(values))
			}
			values = append(values, string(r.Value))
		}
	}
	return values
}

func TestBrokerRestartsUnderLoad(t *testing.T) {
	b, ctx := realTopic(t, 1, nil)
	p := realProducer(t, b, producer.WithBatchBytes(2000), producer.WithCodec(record.CodecLZ4))
	const n = 6000
	var acked atomic.Int32
	for i := range n {
		p.ProduceFunc(ctx, rec(i), func(r producer.Result, err error) {
			if err != nil || r.Offset != record.Offset(i) {
				t.Errorf("record %d: %+v, %v", i, r, err)
			}
			acked.Add(1)
		})
		if i == n/3 || i == n*2/3 {
			b.Restart()
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if acked.Load() != n {
		t.Errorf("%d results for %d records", acked.Load(), n)
	}
	checkValues(t, readAll(t, ctx, b, n), n)
}

func TestBrokerChecksExpectations(t *testing.T) {
	b, ctx := realTopic(t, 1, nil)
	p := realProducer(t, b)
	for i := range 5 {
		if _, err := p.Append(ctx, "t", 0, []producer.Record{rec(i)}, producer.ExpectOffset(record.Offset(i))); err != nil {
			t.Fatal(err)
		}
		_, err := p.Append(ctx, "t", 0, []producer.Record{rec(99)}, producer.ExpectOffset(record.Offset(i)))
		var e *producer.ExpectationError
		if !errors.As(err, &e) || e.Actual != record.Offset(i+1) || errs.OutcomeUnknown(err) {
			t.Fatalf("got %v", err)
		}
	}
	checkValues(t, readAll(t, ctx, b, 5), 5)
}

func TestBrokerRefusesOversizeRecords(t *testing.T) {
	b, ctx := realTopic(t, 1, map[string]string{"max.message.bytes": "2000"})
	p := realProducer(t, b, producer.WithPartitioner(producer.ExplicitPartitioner()), producer.WithBatchBytes(1000))
	big := p.Produce(ctx, producer.Record{Topic: "t", Value: []byte(strings.Repeat("x", 5000))})
	next := p.Produce(ctx, rec(0))
	if _, err := big.Wait(ctx); errs.CodeOf(err) != errs.MessageTooLarge || errs.OutcomeUnknown(err) {
		t.Errorf("got %v", err)
	}
	if r, err := next.Wait(ctx); err != nil || r.Offset != 0 {
		t.Errorf("the next record: %+v, %v", r, err)
	}
}

// A topic's segments limit its batches too: what is larger is split, and nothing is refused.
func TestBrokerTakesBatchesLargerThanASegment(t *testing.T) {
	b, ctx := realTopic(t, 1, map[string]string{"segment.bytes": "65536"})
	p := realProducer(t, b, producer.WithBatchBytes(256<<10), producer.WithLinger(50*time.Millisecond))
	const n = 100
	var all []producer.Future
	for i := range n {
		r := rec(i)
		r.Headers = append(r.Headers, record.Header{Key: "pad", Value: make([]byte, 4096)})
		all = append(all, p.Produce(ctx, r))
	}
	for i, d := range all {
		if _, err := d.Wait(ctx); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	checkValues(t, readAll(t, ctx, b, n), n)
}

func TestBrokerTakesEveryCodecAndAcks(t *testing.T) {
	b, ctx := realTopic(t, 2, nil)
	for _, codec := range []record.Codec{record.CodecNone, record.CodecGzip, record.CodecSnappy, record.CodecLZ4, record.CodecZstd} {
		for _, acks := range []producer.Acks{producer.AcksAll, producer.AcksQuorum, producer.AcksLeader, producer.AcksNone} {
			p := realProducer(t, b, producer.WithCodec(codec), producer.WithAcks(acks))
			var records []producer.Record
			for i := range 50 {
				records = append(records, producer.Record{Topic: "t", Key: fmt.Append(nil, i), Value: []byte(strings.Repeat("abc", 100)), Headers: []record.Header{{Key: "h", Value: []byte("v")}}})
			}
			results, err := p.ProduceSync(ctx, records...)
			if err != nil {
				t.Fatalf("%v, acks %v: %v", codec, acks, err)
			}
			if acks == producer.AcksAll && (results[0].Offset < 0 || results[0].Token().IsZero() || results[0].Acked != acks) {
				t.Errorf("%v, acks %v: %+v", codec, acks, results[0])
			}
		}
	}
}

// The topic takes less than a batch of the producer holds: the batch is split until it fits.
func TestBatchThatIsTooLargeIsSplit(t *testing.T) {
	for _, idempotent := range []bool{true, false} {
		b, ctx := realTopic(t, 1, map[string]string{"max.message.bytes": "1500"})
		opts := []producer.Option{producer.WithBatchBytes(20_000)}
		if !idempotent {
			opts = append(opts, producer.WithoutIdempotence())
		}
		p := realProducer(t, b, opts...)
		const n = 3000
		var futures []producer.Future
		called := 0
		for i := range n {
			if i%2 == 0 {
				futures = append(futures, p.Produce(ctx, rec(i)))
				continue
			}
			p.ProduceFunc(ctx, rec(i), func(r producer.Result, err error) {
				if err != nil || r.Offset != record.Offset(i) {
					t.Errorf("record %d: %+v, %v", i, r, err)
				}
				called++
			})
		}
		for i, f := range futures {
			if r, err := f.Wait(ctx); err != nil || r.Offset != record.Offset(2*i) {
				t.Fatalf("record %d: %+v, %v", 2*i, r, err)
			}
		}
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if records, bytes := p.Buffered(); called != n/2 || records != 0 || bytes != 0 {
			t.Errorf("%d callbacks; %d records, %d bytes left", called, records, bytes)
		}
		checkValues(t, readAll(t, ctx, b, n), n)
	}
}
