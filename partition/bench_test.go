package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// payload is a batch of about size bytes that does not compress.
func payload(size int) record.Raw {
	value := make([]byte, size-80)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	return batch(string(value))
}

// appendAllocs is the budget of allocations of one append, from Append to the answer, when nothing is
// batched with it: the proposal and its channel are ours (ownAllocs), one is
// the test's, the rest is Raft's (future, channel, queue element, batches).
const (
	appendAllocs = 26
	ownAllocs    = 2
)

func TestAppendStaysWithinItsAllocationBudget(t *testing.T) {
	r := diskRig(t, withTopic(func(c *TopicConfig) { c.Flush = flushOS }))
	b := payload(1 << 10)
	seq := int32(0)
	got := testing.AllocsPerRun(500, func() {
		x := append(make([]byte, HeadRoom), b...)
		record.Raw(x[HeadRoom:]).SetProducer(1, 0, seq)
		seq++
		p, err := r.Append(context.Background(), Append{Batch: x, Room: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Result(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
	x := append(make([]byte, HeadRoom), b...)
	own := testing.AllocsPerRun(100, func() {
		if _, _, err := r.prepare(Append{Batch: x, Room: true}); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%.1f allocations per append, %.1f of them before Raft", got, own)
	if got > appendAllocs || own > ownAllocs {
		t.Fatalf("%.1f allocations per append, %.1f of them before Raft; the budget is %d and %d", got, own, appendAllocs, ownAllocs)
	}
}

// BenchmarkAppend measures a partition of one replica: through Raft, and, for
// comparison, the same entries straight into the log.
func BenchmarkAppend(b *testing.B) {
	for _, x := range []struct{ size, flight int }{{16 << 10, 256}, {64 << 10, 8}, {1 << 10, 64}} {
		for _, flush := range []string{flushCommit, flushOS} {
			b.Run(fmt.Sprintf("raft/flush=%s/size=%dKiB/inflight=%d", flush, x.size>>10, x.flight), func(b *testing.B) {
				benchRaft(b, flush, x.size, x.flight)
			})
			b.Run(fmt.Sprintf("log/flush=%s/size=%dKiB/inflight=%d", flush, x.size>>10, x.flight), func(b *testing.B) {
				benchLog(b, flush == flushCommit, x.size, min(x.flight, 64))
			})
		}
	}
}

func benchRaft(b *testing.B, flush string, size, flight int) {
	r := newRig(b, fsx.OS(), b.TempDir(), withTopic(func(c *TopicConfig) { c.Flush, c.SegmentBytes = flush, 64<<20 }))
	r.start()
	data := payload(size)
	slots := make(chan struct{}, flight)
	pending := make(chan *Pending, flight)
	done := make(chan error, 1)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		var failed error
		for p := range pending {
			if _, err := p.Result(context.Background()); err != nil {
				failed = err
			}
			<-slots
		}
		done <- failed
	}()
	for range b.N {
		slots <- struct{}{}
		p, err := r.Append(context.Background(), Append{Batch: data})
		if err != nil {
			b.Fatal(err)
		}
		pending <- p
	}
	close(pending)
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func benchLog(b *testing.B, sync bool, size, group int) {
	l, _, err := log.Open(log.Config{Dir: b.TempDir(), FS: fsx.OS(), SegmentBytes: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	body := append(make([]byte, metaBytes), payload(size)...)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for n, index := 0, log.Index(1); n < b.N; {
		entries := make([]log.Entry, min(group, b.N-n))
		for i := range entries {
			entries[i] = log.Entry{Index: index, Term: 1, Verdict: log.Accepted, BaseOffset: record.Offset(index - 1), Body: body, MetaBytes: metaBytes}
			index++
		}
		if l.NeedsRoll(len(entries) * len(body)) {
			if err := l.Roll(nil); err != nil {
				b.Fatal(err)
			}
		}
		if err := l.Write(entries, 0); err != nil {
			b.Fatal(err)
		}
		if sync {
			if err := l.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		n += len(entries)
	}
}
