package producer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client/fakeserver"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	"github.com/tidemarkhq/tidemark/proto/session"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

const patience = 20 * time.Second

func open(t testing.TB, s *fakeserver.Server, opts ...producer.Option) *producer.Producer {
	t.Helper()
	opts = append([]producer.Option{producer.WithRetryBackoff(time.Millisecond, 20*time.Millisecond)}, opts...)
	p, err := producer.New([]string{s.Addr()}, opts...)
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

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func rec(i int) producer.Record {
	return producer.Record{Topic: "t", Value: fmt.Appendf(nil, "v%d", i)}
}

func TestRecordsGetDenseOffsetsInOrder(t *testing.T) {
	for _, codec := range []record.Codec{record.CodecNone, record.CodecGzip, record.CodecSnappy, record.CodecLZ4, record.CodecZstd} {
		t.Run(codec.String(), func(t *testing.T) {
			s := fakeserver.Start(t, map[string]int{"t": 1})
			p := open(t, s, producer.WithCodec(codec), producer.WithBatchBytes(2000))
			ctx := within(t)
			const n = 2000
			futures := make([]producer.Future, n)
			for i := range futures {
				futures[i] = p.Produce(ctx, rec(i))
			}
			for i, f := range futures {
				r, err := f.Wait(ctx)
				if err != nil || r.Offset != record.Offset(i) || r.Partition != 0 || r.Topic != "t" {
					t.Fatalf("record %d: %+v, %v", i, r, err)
				}
			}
			checkValues(t, s.Values("t", 0), n)
		})
	}
}

func checkValues(t *testing.T, got []string, n int) {
	t.Helper()
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("v%d", i)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the log holds %d records, want %d in order; first difference at %d", len(got), n, firstDifference(got, want))
	}
}

func firstDifference(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// Five batches are in flight while requests are refused, cut off before and
// after the append, and answered with an unknown outcome.
func TestOrderAndOnceUnderInjectedFailures(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, rand.Uint64()} {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			s := fakeserver.Start(t, map[string]int{"t": 1})
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(seed, 0))
			s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
				mu.Lock()
				defer mu.Unlock()
				verdicts := []fakeserver.Verdict{fakeserver.Refuse, fakeserver.CutBefore, fakeserver.CutAfter, fakeserver.TimedOut, fakeserver.Lose}
				if k := rng.IntN(20); k < len(verdicts) {
					return verdicts[k]
				}
				return fakeserver.Go
			})
			p := open(t, s, producer.WithBatchBytes(150), producer.WithLinger(0))
			ctx := within(t)
			const n = 1500
			var order []int
			for i := range n {
				p.ProduceFunc(ctx, rec(i), func(r producer.Result, err error) {
					if err != nil || r.Offset != record.Offset(i) {
						t.Errorf("record %d: offset %d, %v", i, r.Offset, err)
					}
					order = append(order, i)
				})
			}
			if err := p.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			checkValues(t, s.Values("t", 0), n)
			if len(order) != n || !slices.IsSorted(order) {
				t.Errorf("%d callbacks, sorted: %v", len(order), slices.IsSorted(order))
			}
		})
	}
}

func TestFiveBatchesTravelAtOnceAndNoMore(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	var arrived atomic.Int32
	p := open(t, s, producer.WithBatchBytes(100), producer.WithLinger(0))
	ctx := within(t)
	if _, err := p.Produce(ctx, rec(0)).Wait(ctx); err != nil { // the broker knows the producer from now on
		t.Fatal(err)
	}
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { arrived.Add(1); return fakeserver.Silence })
	for i := range 99 {
		p.Produce(ctx, rec(i+1))
	}
	for arrived.Load() < 5 {
		if ctx.Err() != nil {
			t.Fatalf("%d batches arrived", arrived.Load())
		}
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := p.Flush(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush: %v", err)
	}
	if n := arrived.Load(); n != 5 {
		t.Errorf("%d batches arrived without an answer", n)
	}
	s.OnProduce(nil)
	s.Restart(t)
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	checkValues(t, s.Values("t", 0), 100)
}

// A broker takes any number as the first of a producer that it does not know: the
// second batch must not overtake a first one that was refused.
func TestTheSecondBatchOfANewProducerWaitsForTheFirst(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	var mu sync.Mutex
	var numbers []int32
	s.OnProduce(func(req *pb.ProduceRequest) fakeserver.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if numbers = append(numbers, record.Raw(req.Batch).BaseSequence()); len(numbers) == 1 {
			return fakeserver.Refuse
		}
		return fakeserver.Go
	})
	p := open(t, s, producer.WithBatchBytes(100), producer.WithLinger(0))
	ctx := within(t)
	for i := range 50 {
		p.Produce(ctx, rec(i))
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(numbers) < 3 || numbers[0] != 0 || numbers[1] != 0 {
		t.Errorf("batches were sent with the sequences %v; the first was refused and must come again before any other", numbers)
	}
	checkValues(t, s.Values("t", 0), 50)
}

func TestRefusedBatchLeavesNoGap(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	var calls atomic.Int32
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
		if calls.Add(1) == 2 {
			return fakeserver.RefuseHard
		}
		return fakeserver.Go
	})
	p := open(t, s, producer.WithBatchBytes(80), producer.WithLinger(0))
	ctx := within(t)
	var futures []producer.Future
	for i := range 50 {
		futures = append(futures, p.Produce(ctx, rec(i)))
	}
	var delivered []string
	failed := 0
	for i, f := range futures {
		if _, err := f.Wait(ctx); err != nil {
			failed++
			if errs.CodeOf(err) != errs.InvalidRecord || errs.OutcomeUnknown(err) {
				t.Errorf("record %d: %v", i, err)
			}
			continue
		}
		delivered = append(delivered, fmt.Sprintf("v%d", i))
	}
	if failed == 0 {
		t.Error("no record failed")
	}
	if got := s.Values("t", 0); !slices.Equal(got, delivered) {
		t.Errorf("the log holds %v, delivered were %v", got, delivered)
	}
}

func TestWithoutIdempotenceAnUnknownOutcomeIsReported(t *testing.T) {
	for name, verdict := range map[string]fakeserver.Verdict{"cut": fakeserver.CutAfter, "timeout": fakeserver.TimedOut} {
		t.Run(name, func(t *testing.T) {
			s := fakeserver.Start(t, map[string]int{"t": 1})
			var once atomic.Bool
			s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
				if once.CompareAndSwap(false, true) {
					return verdict
				}
				return fakeserver.Go
			})
			p := open(t, s, producer.WithoutIdempotence())
			ctx := within(t)
			_, err := p.Produce(ctx, rec(0)).Wait(ctx)
			if !errs.OutcomeUnknown(err) {
				t.Errorf("error %v does not say that the outcome is unknown", err)
			}
			if _, err := p.Produce(ctx, rec(1)).Wait(ctx); err != nil {
				t.Fatal(err)
			}
			checkValues(t, s.Values("t", 0), 2) // appended once
		})
	}
}

func TestWithoutIdempotenceARefusalIsRetried(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	var calls atomic.Int32
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
		if calls.Add(1) < 4 {
			return fakeserver.Refuse
		}
		return fakeserver.Go
	})
	p := open(t, s, producer.WithAcks(producer.AcksLeader))
	ctx := within(t)
	r, err := p.Produce(ctx, rec(0)).Wait(ctx)
	if err != nil || r.Acked != producer.AcksLeader {
		t.Fatalf("%+v, %v", r, err)
	}
	checkValues(t, s.Values("t", 0), 1)
}

func TestRestartInTheMiddle(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	p := open(t, s, producer.WithBatchBytes(200))
	ctx := within(t)
	const n = 600
	for i := range n {
		p.Produce(ctx, rec(i))
		if i%200 == 100 {
			s.Restart(t)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	checkValues(t, s.Values("t", 0), n)
}

func TestDeliveryTimeoutSaysWhatMayHaveHappened(t *testing.T) {
	t.Run("refused all along", func(t *testing.T) {
		s := fakeserver.Start(t, map[string]int{"t": 1})
		s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { return fakeserver.Refuse })
		// One attempt, and a pause beyond the timeout: so none is under way when it ends.
		p := open(t, s, producer.WithDeliveryTimeout(50*time.Millisecond), producer.WithRetryBackoff(time.Hour, time.Hour))
		ctx := within(t)
		_, err := p.Produce(ctx, rec(0)).Wait(ctx)
		if errs.CodeOf(err) != errs.RequestTimedOut || errs.OutcomeUnknown(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody leads", func(t *testing.T) {
		s := fakeserver.Start(t, map[string]int{"t": 1})
		s.SetLeaderless("t", 0, true)
		p := open(t, s, producer.WithDeliveryTimeout(50*time.Millisecond))
		ctx := within(t)
		_, err := p.Produce(ctx, rec(0)).Wait(ctx)
		if errs.CodeOf(err) != errs.LeaderNotAvailable || errs.OutcomeUnknown(err) || !strings.Contains(err.Error(), "has no leader") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("never answered", func(t *testing.T) {
		s := fakeserver.Start(t, map[string]int{"t": 1})
		var calls atomic.Int32
		s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
			if calls.Add(1) == 1 {
				return fakeserver.Silence
			}
			return fakeserver.Go
		})
		p := open(t, s, producer.WithDeliveryTimeout(50*time.Millisecond), producer.WithRequestTimeout(100*time.Millisecond))
		ctx := within(t)
		_, err := p.Produce(ctx, rec(0)).Wait(ctx)
		if errs.CodeOf(err) != errs.RequestTimedOut || !errs.OutcomeUnknown(err) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSilentBrokerIsAskedAgain(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	var calls atomic.Int32
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
		if calls.Add(1) == 1 {
			return fakeserver.Silence
		}
		return fakeserver.Go
	})
	p := open(t, s, producer.WithRequestTimeout(100*time.Millisecond), producer.WithDeliveryTimeout(5*time.Second))
	ctx := within(t)
	r, err := p.Produce(ctx, rec(0)).Wait(ctx)
	if err != nil || !r.Duplicate {
		t.Fatalf("%+v, %v; want the first append's offset as a duplicate", r, err)
	}
	checkValues(t, s.Values("t", 0), 1)
}

func TestBufferIsBounded(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	gate := make(chan struct{})
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { <-gate; return fakeserver.Go })
	ctx := within(t)

	p := open(t, s, producer.WithBufferBytes(1000), producer.WithFullBuffer(producer.RefuseWhenFull))
	accepted, refused := 0, 0
	for i := range 100 {
		select {
		case <-p.Produce(ctx, rec(i)).Done():
			refused++
		default:
			accepted++
		}
		if _, n := p.Buffered(); n > 1000 {
			t.Fatalf("%d bytes buffered, the bound is 1000", n)
		}
	}
	if accepted == 0 || refused == 0 {
		t.Errorf("%d accepted, %d refused", accepted, refused)
	}
	if _, err := p.Produce(ctx, rec(0)).Wait(ctx); !errors.Is(err, producer.ErrBufferFull) {
		t.Errorf("got %v, want ErrBufferFull", err)
	}

	short, cancel := context.WithCancel(ctx)
	b := open(t, s, producer.WithBufferBytes(1000))
	b.Produce(ctx, producer.Record{Topic: "t", Value: make([]byte, 900)})
	cancel()
	if _, err := b.Produce(short, producer.Record{Topic: "t", Value: make([]byte, 900)}).Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	if _, err := b.Produce(ctx, producer.Record{Topic: "t", Value: make([]byte, 2000)}).Wait(ctx); errs.CodeOf(err) != errs.MessageTooLarge {
		t.Errorf("got %v, want MESSAGE_TOO_LARGE", err)
	}
	waiting := make(chan error, 1)
	done := make(chan struct{})
	b.ProduceFunc(ctx, producer.Record{Topic: "t", Value: []byte("x")}, func(producer.Result, error) {})
	close(gate)
	b.ProduceFunc(ctx, producer.Record{Topic: "t", Value: make([]byte, 900)}, func(_ producer.Result, err error) { waiting <- err; close(done) })
	<-done
	if err := <-waiting; err != nil {
		t.Errorf("the record that waited for space: %v", err)
	}
}

func TestCloseResolvesEverything(t *testing.T) {
	t.Run("delivers what it can", func(t *testing.T) {
		s := fakeserver.Start(t, map[string]int{"t": 3})
		p := open(t, s, producer.WithLinger(time.Hour))
		ctx := within(t)
		var ok atomic.Int32
		for i := range 100 {
			p.ProduceFunc(ctx, rec(i), func(_ producer.Result, err error) {
				if err == nil {
					ok.Add(1)
				}
			})
		}
		if err := p.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if ok.Load() != 100 {
			t.Errorf("%d of 100 records were delivered", ok.Load())
		}
		if _, err := p.Produce(ctx, rec(0)).Wait(ctx); !errors.Is(err, producer.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := p.Close(ctx); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
	t.Run("fails the rest and says how", func(t *testing.T) {
		s := fakeserver.Start(t, map[string]int{"t": 1})
		s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { return fakeserver.Silence })
		p := open(t, s, producer.WithBatchBytes(80), producer.WithLinger(0))
		ctx := within(t)
		var futures []producer.Future
		for i := range 20 {
			futures = append(futures, p.Produce(ctx, rec(i)))
		}
		for len(s.Values("t", 0)) == 0 { // until something was sent
			if ctx.Err() != nil {
				t.Fatal("nothing arrived")
			}
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := p.Close(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("Close: %v", err)
		}
		var unknown, closed int
		for i, f := range futures {
			switch _, err := f.Wait(ctx); {
			case errs.OutcomeUnknown(err):
				unknown++
			case errors.Is(err, producer.ErrClosed):
				closed++
			default:
				t.Errorf("record %d: %v", i, err)
			}
		}
		if unknown == 0 || closed == 0 {
			t.Errorf("%d unknown, %d never sent; want some of both", unknown, closed)
		}
		if n, b := p.Buffered(); n != 0 || b != 0 {
			t.Errorf("%d records, %d bytes left", n, b)
		}
	})
}

func TestConditionalAppend(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	p := open(t, s)
	ctx := within(t)
	two := []producer.Record{rec(0), rec(1)}
	r, err := p.Append(ctx, "t", 0, two, producer.ExpectOffset(0))
	if err != nil || r.Offset != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	_, err = p.Append(ctx, "t", 0, two, producer.ExpectOffset(0))
	var e *producer.ExpectationError
	if !errors.As(err, &e) || e.Actual != 2 || !errors.Is(err, errs.New(errs.ExpectationFailed, "")) || errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	for i := 2; i < 40; i++ { // the refusal left no gap in the sequence
		p.Produce(ctx, rec(i))
	}
	if r, err = p.Append(ctx, "t", 0, []producer.Record{rec(40)}, producer.ExpectOffset(40)); err != nil || r.Offset != 40 {
		t.Fatalf("%+v, %v", r, err)
	}
	checkValues(t, s.Values("t", 0), 41)
	if got := s.Calls("InitProducer"); got != 1 {
		t.Errorf("%d producer ids were taken", got)
	}
}

func TestConditionalAppendWithLostAnswer(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	var once atomic.Bool
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict {
		if once.CompareAndSwap(false, true) {
			return fakeserver.CutAfter
		}
		return fakeserver.Go
	})
	p := open(t, s)
	ctx := within(t)
	r, err := p.Append(ctx, "t", 0, []producer.Record{rec(0)}, producer.ExpectOffset(0))
	if err != nil || r.Offset != 0 || !r.Duplicate {
		t.Fatalf("%+v, %v; its own first attempt must not count as a conflict", r, err)
	}
}

func TestUnknownTopic(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	p := open(t, s)
	ctx := within(t)
	_, err := p.Produce(ctx, producer.Record{Topic: "nowhere"}).Wait(ctx)
	if errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("got %v", err)
	}
	if _, err := p.Produce(ctx, rec(0)).Wait(ctx); err != nil {
		t.Fatal(err)
	}
	s.RemoveTopic("t")
	_, err = p.Produce(ctx, rec(1)).Wait(ctx)
	if errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("after the topic went: %v", err)
	}
}

func TestDeadAddressesAreTriedInTurn(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	p, err := producer.New([]string{"127.0.0.1:1", s.Addr()}, producer.WithRetryBackoff(time.Millisecond, 20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	defer p.Close(ctx)
	if _, err := p.Produce(ctx, rec(0)).Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestLingerGathersRecords(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	gate := make(chan struct{})
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { <-gate; return fakeserver.Go })
	p := open(t, s, producer.WithLinger(time.Hour))
	ctx := within(t)
	first := p.Produce(ctx, rec(0))
	for i := 1; i < 100; i++ {
		p.Produce(ctx, rec(i))
	}
	close(gate)
	if _, err := first.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Batches("t", 0)); n > 2 {
		t.Errorf("100 records came in %d batches, want one or two", n)
	}
	checkValues(t, s.Values("t", 0), 100)
}

func TestResultToken(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	p := open(t, s)
	ctx := within(t)
	results, err := p.ProduceSync(ctx, rec(0), rec(1))
	if err != nil {
		t.Fatal(err)
	}
	token := results[0].Token()
	token.Merge(results[1].Token())
	back, err := session.ParseToken(token.String())
	if err != nil || back.Len() != 1 {
		t.Fatalf("%v, %v", back, err)
	}
	for part, at := range map[session.Partition]record.Offset{{TopicID: [16]byte([]byte("0000000000000001")), Partition: 0}: 2} {
		if got, ok := back.Position(part); !ok || got.Offset != at || got.Epoch != 1 {
			t.Errorf("position %+v, %v", got, ok)
		}
	}
}

func TestIdleProducerRecoversFromAForgottenID(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	p := open(t, s)
	ctx := within(t)
	if _, err := p.Produce(ctx, rec(0)).Wait(ctx); err != nil {
		t.Fatal(err)
	}
	s.ForgetProducers("t", 0)
	if _, err := p.Produce(ctx, rec(1)).Wait(ctx); err != nil {
		t.Fatal(err)
	}
	checkValues(t, s.Values("t", 0), 2)
}

// The allocations of Produce itself: batches and sending are shared by many records.
func BenchmarkProduce(b *testing.B) {
	for _, size := range []int{100, 1024} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			s := fakeserver.Start(b, map[string]int{"t": 1})
			s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { return fakeserver.Discard })
			p := open(b, s)
			ctx := context.Background()
			value := make([]byte, size)
			began := clock.Monotonic()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				p.Produce(ctx, producer.Record{Topic: "t", Value: value})
			}
			if err := p.Flush(ctx); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/clock.Since(began).Seconds(), "records/s")
		})
	}
}

// A second Close does not fail what the first still delivers.
func TestClosesTogether(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	gate := make(chan struct{})
	arrived := make(chan struct{}, 1000)
	s.OnProduce(func(*pb.ProduceRequest) fakeserver.Verdict { arrived <- struct{}{}; <-gate; return fakeserver.Go })
	p := open(t, s)
	ctx := within(t)
	f := p.Produce(ctx, rec(0))
	<-arrived
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := p.Close(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	close(gate)
	wg.Wait()
	if _, err := f.Wait(ctx); err != nil {
		t.Error(err)
	}
}
