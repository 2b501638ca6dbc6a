package partition

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func TestAppendedRecordsAreReadBackWithDenseOffsets(t *testing.T) {
	r := diskRig(t)
	var want []string
	for i := range 20 {
		values := names("v", i%4+1)
		a := r.mustAppend(batch(values...))
		if a.BaseOffset != record.Offset(len(want)) || a.EndOffset != record.Offset(len(want)+len(values)) || !a.Durable || a.Acked != AcksAll {
			t.Fatalf("append %d after %d records: %+v", i, len(want), a)
		}
		want = append(want, values...)
	}
	if got := r.values(); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	r.restart()
	if got := r.values(); !slices.Equal(got, want) {
		t.Fatalf("after a restart: got %v, want %v", got, want)
	}
	if a := r.mustAppend(batch("x")); a.BaseOffset != record.Offset(len(want)) {
		t.Fatalf("after a restart: %+v", a)
	}
}

func TestEveryAcksAnswersWithWhatItReached(t *testing.T) {
	r := simRig(t)
	for _, acks := range []Acks{AcksAll, AcksQuorum, AcksLeader, AcksNone} {
		a, err := r.append(Append{Batch: batch("v"), Acks: acks})
		if err != nil || a.Acked != acks {
			t.Fatalf("acks %d: %+v, %v", acks, a, err)
		}
		if acks == AcksNone {
			if a.BaseOffset != -1 || a.Durable {
				t.Fatalf("acks none knows too much: %+v", a)
			}
		} else if !a.Durable || a.Epoch != r.View().Epoch || a.LogAppendTime != -1 {
			t.Fatalf("acks %d: %+v", acks, a)
		}
	}
	r.mustAppend(batch("v")) // what came without acks may still have been queued
	if err := r.Linearize(t.Context()); err != nil || r.View().HighWatermark != 5 {
		t.Fatalf("high watermark %d, %v", r.View().HighWatermark, err)
	}
}

func TestABatchThatCannotBeAppendedIsRefusedAtOnce(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	r := simRig(t, withClock(clock.NewManual(now)), withTopic(func(c *TopicConfig) {
		c.MaxBatchBytes, c.TimestampAfter, c.TimestampBefore = 2000, time.Hour, time.Hour
	}))
	stamped := func(ms int64) record.Raw {
		b := record.NewBuilder(record.BuilderConfig{})
		b.Append(record.Record{Timestamp: ms, Value: []byte("v")})
		raw, _ := b.Build()
		return raw
	}
	good := stamped(now.UnixMilli())
	damaged := clone(good)
	damaged[len(damaged)-1] ^= 1
	appendTime := clone(good)
	appendTime.SetLogAppendTime(now.UnixMilli())
	seq := clone(good)
	seq.SetProducer(5, 0, -1)
	flag := func(bit byte) record.Raw {
		b := clone(good)
		b[22] |= bit
		b.SetProducer(5, 0, 0) // with the CRC
		return b
	}
	many := clone(good)
	many[22] |= 1 // gzip: the header's count cannot be compared with the size
	many[23], many[24], many[25], many[26] = 0x7f, 0xff, 0xff, 0xfe
	many[57], many[58], many[59], many[60] = 0x7f, 0xff, 0xff, 0xff
	many.SetProducer(-1, -1, -1)
	for name, x := range map[string]struct {
		a    Append
		want errs.Code
	}{
		"empty":            {Append{}, errs.CorruptMessage},
		"damaged":          {Append{Batch: damaged}, errs.CorruptMessage},
		"two batches":      {Append{Batch: append(clone(good), good...)}, errs.CorruptMessage},
		"too large":        {Append{Batch: batch(strings.Repeat("x", 3000))}, errs.MessageTooLarge},
		"too old":          {Append{Batch: stamped(now.Add(-2 * time.Hour).UnixMilli())}, errs.InvalidTimestamp},
		"from the future":  {Append{Batch: stamped(now.Add(2 * time.Hour).UnixMilli())}, errs.InvalidTimestamp},
		"append time":      {Append{Batch: appendTime}, errs.InvalidTimestamp},
		"no sequence":      {Append{Batch: seq}, errs.InvalidRecord},
		"control":          {Append{Batch: flag(0x20)}, errs.InvalidRecord},
		"transactional":    {Append{Batch: flag(0x10)}, errs.InvalidTxnState},
		"too many records": {Append{Batch: many}, errs.InvalidRecord},
		"negative offset":  {Append{Batch: good, Conditional: true, Expect: -1}, errs.InvalidRequest},
		"no room":          {Append{Batch: good[:10], Room: true}, errs.InvalidRequest},
	} {
		_, err := r.Append(t.Context(), x.a)
		if errs.CodeOf(err) != x.want || errs.OutcomeUnknown(err) {
			t.Errorf("%s: got %v (%v)", name, err, errs.CodeOf(err))
		}
	}
	if a := r.mustAppend(good); a.BaseOffset != 0 {
		t.Fatalf("something was appended: %+v", a)
	}
}

func TestRecordsOfACompactedTopicNeedAKey(t *testing.T) {
	r := simRig(t, withTopic(func(c *TopicConfig) { c.CleanupPolicy = "compact" }))
	if _, err := r.append(Append{Batch: batch("v")}); errs.CodeOf(err) != errs.InvalidRecord {
		t.Fatalf("got %v", err)
	}
	b := record.NewBuilder(record.BuilderConfig{Codec: record.CodecGzip})
	b.Append(record.Record{Key: []byte("k")})
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	r.mustAppend(raw)
	if _, err := r.Trim(t.Context(), -1); errs.CodeOf(err) != errs.PolicyViolation {
		t.Fatalf("trim: %v", err)
	}
}

func TestABatchWithRoomIsNotCopied(t *testing.T) {
	r := simRig(t)
	b := append(make([]byte, HeadRoom), batch("v")...)
	if _, err := r.append(Append{Batch: b, Room: true}); err != nil {
		t.Fatal(err)
	}
	if m, err := parseMeta(b); err != nil || m.verdict != log.Accepted {
		t.Fatalf("the batch was copied: %+v, %v", m, err)
	}
}

func TestOneOfManyExpectersWinsEachOffset(t *testing.T) {
	r := simRig(t)
	const racers, offsets = 8, 30
	wins := make([][]record.Offset, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			next := record.Offset(0)
			for next < offsets {
				a, err := r.append(Append{Batch: batch("v"), Conditional: true, Expect: next, Acks: AcksQuorum})
				var other *ExpectationError
				switch {
				case err == nil:
					wins[i] = append(wins[i], a.BaseOffset)
					next = a.EndOffset
				case errors.As(err, &other):
					next = other.Actual
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	all := slices.Concat(wins...)
	slices.Sort(all)
	for i, o := range all {
		if o != record.Offset(i) {
			t.Fatalf("offset %d was won by %v", i, all)
		}
	}
	if end := r.View().HighWatermark; int(end) != len(all) {
		t.Fatalf("%d wins, high watermark %d", len(all), end)
	}
}

func TestFiveBatchesInFlightStayInOrder(t *testing.T) {
	r := simRig(t)
	var flight []*Pending
	for i := range 500 {
		p, err := r.Append(t.Context(), Append{Batch: numbered(1, 0, int32(i), "v")})
		if err != nil {
			t.Fatal(err)
		}
		flight = append(flight, p)
		if len(flight) == 5 || i == 499 {
			for _, p := range flight {
				if _, err := p.Result(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			flight = nil
		}
	}
	// One is missing: those behind it must not be appended either.
	gap, err := r.Append(t.Context(), Append{Batch: numbered(1, 0, 501, "v")})
	if err != nil {
		t.Fatal(err)
	}
	next, err := r.Append(t.Context(), Append{Batch: numbered(1, 0, 502, "v")})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Pending{gap, next} {
		if _, err := p.Result(t.Context()); errs.CodeOf(err) != errs.OutOfOrderSequenceNumber {
			t.Fatalf("got %v", err)
		}
	}
	if r.View().HighWatermark != 500 {
		t.Fatalf("high watermark %d", r.View().HighWatermark)
	}
}

func TestADuplicateIsKnownAfterARestart(t *testing.T) {
	r := diskRig(t, withTopic(func(c *TopicConfig) { c.LogAppendTime = true }))
	first := r.mustAppend(numbered(4, 2, 0, "a", "b"))
	r.mustAppend(batch("c"))
	r.restart()
	again := r.mustAppend(numbered(4, 2, 0, "a", "b"))
	if !again.Duplicate || again.BaseOffset != first.BaseOffset || again.EndOffset != first.EndOffset ||
		again.Epoch != first.Epoch || again.LogAppendTime != first.LogAppendTime {
		t.Fatalf("first %+v, again %+v", first, again)
	}
	if _, err := r.append(Append{Batch: numbered(4, 1, 0, "a")}); errs.CodeOf(err) != errs.InvalidProducerEpoch {
		t.Fatalf("got %v", err)
	}
	if next := r.mustAppend(numbered(4, 2, 2, "d")); next.BaseOffset != 3 {
		t.Fatalf("got %+v", next)
	}
}

func TestTrimMovesTheLogStartForGood(t *testing.T) {
	r := diskRig(t)
	for range 10 {
		r.mustAppend(batch("a", "b"))
	}
	for _, x := range []struct{ before, want record.Offset }{{5, 5}, {3, 5}, {-1, 20}} {
		got, err := r.Trim(t.Context(), x.before)
		if err != nil || got != x.want || r.View().LogStart != x.want {
			t.Fatalf("trim to %d: %d, %v", x.before, got, err)
		}
		r.restart()
		if got := r.View().LogStart; got != x.want {
			t.Fatalf("log start %d after a restart", got)
		}
	}
	if _, err := r.Trim(t.Context(), 21); errs.CodeOf(err) != errs.OffsetOutOfRange {
		t.Fatalf("beyond the high watermark: %v", err)
	}
	if _, _, err := r.Read(19, 100); errs.CodeOf(err) != errs.OffsetOutOfRange {
		t.Fatalf("read below the log start: %v", err)
	}
	if a := r.mustAppend(batch("x")); a.BaseOffset != 20 || a.LogStart != 20 {
		t.Fatalf("got %+v", a)
	}
}

func TestTheLeaderEpochIsTheTerm(t *testing.T) {
	r := diskRig(t)
	var epochs []record.Epoch
	for range 3 {
		r.mustAppend(batch("a", "b"))
		epochs = append(epochs, r.View().Epoch)
		r.restart()
	}
	for i, e := range epochs {
		batches, _, err := r.Read(record.Offset(2*i), 1)
		if err != nil || batches[0].LeaderEpoch() != e {
			t.Fatalf("batch %d: %v, %v, want epoch %d", i, batches, err, e)
		}
		if got, end, err := r.EpochEnd(e); err != nil || got != e || end != record.Offset(2*i+2) {
			t.Fatalf("epoch %d ends at %d (%d), %v", e, end, got, err)
		}
		if i > 0 && e <= epochs[i-1] {
			t.Fatalf("epochs %v", epochs)
		}
	}
	now := r.View().Epoch
	if e, end, err := r.EpochEnd(now); err != nil || e != now || end != 6 {
		t.Fatalf("the present epoch ends at %d (%d), %v", end, e, err)
	}
	if e, end, err := r.EpochEnd(now + 1); err != nil || e != -1 || end != -1 {
		t.Fatalf("a future epoch: %d, %d, %v", e, end, err)
	}
}

func TestOffsetsForTimes(t *testing.T) {
	r := simRig(t)
	for _, x := range []int64{-1, -2, -3} {
		if o, _, _, err := r.OffsetForTime(x); err != nil || (x == -3) != (o == -1) {
			t.Fatalf("empty, %d: %d, %v", x, o, err)
		}
	}
	for _, ms := range []int64{100, 300, 200, 300} {
		b := record.NewBuilder(record.BuilderConfig{})
		b.Append(record.Record{Timestamp: ms})
		b.Append(record.Record{Timestamp: ms + 1})
		raw, _ := b.Build()
		r.mustAppend(raw)
	}
	if _, err := r.Trim(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for ts, want := range map[int64][2]int64{-1: {8, -1}, -2: {1, -1}, -3: {3, 301}, -4: {1, -1}, -5: {-1, -1}, 101: {1, 101}, 102: {2, 300}, 301: {3, 301}, 302: {-1, -1}} {
		o, at, _, err := r.OffsetForTime(ts)
		if err != nil || int64(o) != want[0] || at != want[1] {
			t.Errorf("time %d: offset %d, time %d, %v; want %v", ts, o, at, err, want)
		}
	}
	if _, _, _, err := r.OffsetForTime(math.MinInt64); errs.CodeOf(err) != errs.UnsupportedVersion {
		t.Errorf("got %v", err)
	}
}

func TestReadsEndAtTheHighWatermark(t *testing.T) {
	r := simRig(t)
	changed := make(chan struct{}, 1)
	cancel := r.Notify(changed)
	r.mustAppend(batch("a"))
	select {
	case <-changed:
	default:
		t.Fatal("the high watermark rose in silence")
	}
	cancel()
	if b, v, err := r.Read(1, 100); err != nil || len(b) != 0 || v.HighWatermark != 1 {
		t.Fatalf("at the end: %v, %+v, %v", b, v, err)
	}
	for _, from := range []record.Offset{2, -1, math.MaxInt64} {
		if _, _, err := r.Read(from, 100); errs.CodeOf(err) != errs.OffsetOutOfRange {
			t.Fatalf("read at %d: %v", from, err)
		}
	}
	r.mustAppend(batch("b"))
	select {
	case <-changed:
		t.Fatal("told after cancel")
	default:
	}
}

// followers is an ISR that the test moves.
type followers struct {
	mu      sync.Mutex
	size    int
	durable log.Index
}

func (f *followers) Size() int     { f.mu.Lock(); defer f.mu.Unlock(); return f.size }
func (f *followers) Majority() int { return 1 }
func (f *followers) Reached(index log.Index) (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, f.durable >= index
}
func (f *followers) set(size int, durable log.Index) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size, f.durable = size, durable
}

func TestAcksAllWaitsForEveryInSyncReplica(t *testing.T) {
	isr := &followers{size: 2}
	r := simRig(t, func(r *rig) { r.deps.ISR = isr; r.cfg.TopicConfig.MinInsync = 2 })
	all, err := r.Append(t.Context(), Append{Batch: batch("a")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.append(Append{Batch: batch("b"), Acks: AcksQuorum}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-all.Done():
		t.Fatal("answered before the last replica had it")
	default:
	}
	isr.set(2, r.log.LastIndex())
	r.InSync()
	if a, err := result(t, all); err != nil || a.Acked != AcksAll {
		t.Fatalf("got %+v, %v", a, err)
	}
	late, err := r.Append(t.Context(), Append{Batch: batch("c")})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Linearize(t.Context()); err != nil {
		t.Fatal(err)
	}
	isr.set(1, math.MaxInt64)
	r.InSync()
	if _, err := late.Result(t.Context()); errs.CodeOf(err) != errs.NotEnoughReplicasAfterAppend || !errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	if _, err := r.Append(t.Context(), Append{Batch: batch("d")}); errs.CodeOf(err) != errs.NotEnoughReplicas || errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	if _, err := r.append(Append{Batch: batch("d"), Acks: AcksQuorum}); err != nil {
		t.Fatalf("acks=quorum does not ask for min.insync.replicas: %v", err)
	}
}

func TestStopAnswersEverybody(t *testing.T) {
	fs := sim.New()
	r := newRig(t, fs, "/data")
	r.start()
	r.mustAppend(batch("a"))
	hang, hung := make(chan struct{}), make(chan struct{}, 8)
	fs.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpSync && strings.Contains(op.Name, ".log") {
			hung <- struct{}{}
			<-hang
		}
		return sim.Fault{}
	})
	var released sync.WaitGroup
	released.Add(2)
	stored, err := r.Append(t.Context(), Append{Batch: batch("stored"), Release: released.Done})
	if err != nil {
		t.Fatal(err)
	}
	<-hung
	queued, err := r.Append(t.Context(), Append{Batch: batch("queued"), Release: released.Done})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopping := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { stopping <- r.Stop(ctx) })
	for {
		if _, err := r.Append(t.Context(), Append{Batch: batch("late"), Enqueue: time.Millisecond}); errs.CodeOf(err) == errs.ShuttingDown {
			break
		}
	}
	cancel() // the deadline
	if _, err := stored.Result(t.Context()); errs.CodeOf(err) != errs.ShuttingDown || !errs.OutcomeUnknown(err) {
		t.Fatalf("stored: %v", err)
	}
	if _, err := queued.Result(t.Context()); errs.CodeOf(err) != errs.ShuttingDown || errs.OutcomeUnknown(err) {
		t.Fatalf("queued: %v", err)
	}
	released.Wait()
	close(hang)
	wg.Wait()
	if err := <-stopping; !errors.Is(err, context.Canceled) {
		t.Fatalf("stop did not keep its deadline: %v", err)
	}
	// Raft ends now that the disk answers; only then may the file system go.
	if err := r.stopGroup(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAFailedSyncEndsTheReplicaAndNothingIsClaimed(t *testing.T) {
	fs := sim.New()
	r := newRig(t, fs, "/data")
	r.start()
	r.mustAppend(batch("a"))
	fs.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpSync && strings.Contains(op.Name, ".log") {
			return sim.Fault{Err: errors.New("input/output error")}
		}
		return sim.Fault{}
	})
	_, err := r.append(Append{Batch: batch("b"), Acks: AcksLeader})
	if !errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	if err := <-r.died; errs.CodeOf(err) != errs.KafkaStorageError {
		t.Fatalf("fatal: %v", err)
	}
	if _, err := r.Append(t.Context(), Append{Batch: batch("c")}); err == nil || errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	if _, _, err := r.Read(0, 100); errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("read: %v", err)
	}
	if v := r.View(); v.Leader {
		t.Fatal("a failed replica leads")
	}
}

func TestAStalledDiskMutesTheReplica(t *testing.T) {
	r := simRig(t)
	r.store.began = clock.Mono{} // as if the clock had started long ago
	r.store.busy.Store(1)
	if r.View().Leader || r.Stalled() < 3*time.Second {
		t.Fatalf("leads while the disk hangs for %v", r.Stalled())
	}
	if _, err := r.Append(t.Context(), Append{Batch: batch("a")}); errs.CodeOf(err) != errs.KafkaStorageError || errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	r.store.busy.Store(0)
	r.store.began = clock.Monotonic()
	r.mustAppend(batch("a"))
}

func TestAppendsStopBeforeTheDiskIsFull(t *testing.T) {
	fs := sim.New()
	space, err := log.NewSpace(fs, "/", math.MaxInt64/2)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, fs, "/data", func(r *rig) { r.deps.Log.Space = space })
	r.start()
	if _, err := r.Append(t.Context(), Append{Batch: batch("a")}); errs.CodeOf(err) != errs.StorageLow {
		t.Fatalf("got %v", err)
	}
}

func TestAFormedReplicaThatLostItsLogIsNotMadeAgain(t *testing.T) {
	r := newRig(t, sim.New(), "/data")
	r.cfg.Voters = nil
	if err := r.tryStart(); errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("got %v", err)
	}
}

// The metadata may not know yet that it was formed, or not any more where the broker has just started and is behind.
func TestAReplicaThatVotedAndLostItsLogIsNotFormedAgain(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data")
	r.start()
	r.mustAppend(batch("a"))
	r.stop()
	if err := disk.RemoveAll(r.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if err := r.tryStart(); errs.CodeOf(err) != errs.ReplicaQuarantined { // with voters
		t.Fatalf("got %v", err)
	}
}

func TestConfigureTakesEffectWhileRunning(t *testing.T) {
	r := simRig(t)
	big := batch(strings.Repeat("x", 5000))
	r.mustAppend(clone(big))
	c := r.cfg.TopicConfig
	c.MaxBatchBytes = 1000
	r.Configure(c)
	if _, err := r.append(Append{Batch: clone(big)}); errs.CodeOf(err) != errs.MessageTooLarge {
		t.Fatalf("got %v", err)
	}
}

func TestLinearizeFailsWhereNobodyLeads(t *testing.T) {
	r := newRig(t, sim.New(), "/data")
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	defer r.tryStop()
	if err := r.Linearize(t.Context()); errs.CodeOf(err) != errs.NotLeaderOrFollower {
		t.Fatalf("got %v", err)
	}
	if _, err := r.Append(t.Context(), Append{Batch: batch("a")}); errs.CodeOf(err) != errs.NotLeaderOrFollower || errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	if _, err := r.Trim(t.Context(), -1); errs.CodeOf(err) != errs.NotLeaderOrFollower {
		t.Fatalf("got %v", err)
	}
	if _, _, _, err := r.OffsetForTime(-1); errs.CodeOf(err) != errs.NotLeaderOrFollower {
		t.Fatalf("got %v", err)
	}
}

func TestDamageBelowTheHighWatermarkIsNeverServed(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data", withTopic(func(c *TopicConfig) { c.SegmentBytes = 64 << 10 }))
	r.start()
	for range 20 {
		r.mustAppend(batch(strings.Repeat("x", 10_000)))
	}
	r.restart() // nothing is in the tail's memory any more
	files, err := disk.ReadDir("/data/p")
	if err != nil {
		t.Fatal(err)
	}
	first := ""
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".log") && first == "" {
			first = "/data/p/" + f.Name()
		}
	}
	if err := disk.Corrupt(first, func(b []byte) []byte { b[20000] ^= 1; return b }); err != nil {
		t.Fatal(err)
	}
	if b, _, err := r.Read(0, 1<<20); errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("read %d batches, %v", len(b), err)
	}
	if err := <-r.died; errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("got %v", err)
	}
	if r.View().Leader {
		t.Fatal("a damaged replica leads")
	}
	_ = r.tryStop()
	if err := r.tryStart(); errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("it starts again: %v", err)
	}
}

func TestTheFirstAckComesSoonAfterTheStart(t *testing.T) {
	r := newRig(t, sim.New(), "/data")
	began := clock.Monotonic()
	r.start()
	r.mustAppend(batch("a"))
	took := clock.Since(began)
	t.Logf("%v from opening an empty directory to the first acknowledgement", took)
	if took > 5*time.Second { // Raft's election timeout: it must not be waited for
		t.Fatalf("took %v", took)
	}
}

func TestLinearizeWaitsForWhatTheLeaderAcknowledgedAlone(t *testing.T) {
	r := simRig(t)
	busy, held := make(chan struct{}), make(chan struct{})
	// The state machine's goroutine is kept busy: nothing more is applied.
	if _, err := r.append(Append{Batch: batch("a"), Acks: AcksLeader, Release: func() { close(busy); <-held }}); err != nil {
		t.Fatal(err)
	}
	<-busy
	if _, err := r.append(Append{Batch: batch("b"), Acks: AcksLeader}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Linearize(ctx); errs.CodeOf(err) != errs.RequestTimedOut {
		t.Errorf("offset %d is acknowledged, the high watermark is %d: %v", 1, r.View().HighWatermark, err)
	}
	close(held)
	if err := r.Linearize(t.Context()); err != nil || r.View().HighWatermark != 2 {
		t.Fatalf("high watermark %d, %v", r.View().HighWatermark, err)
	}
}

func TestAFullQueueRefusesWhatItCannotTake(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data")
	r.start()
	hang, hung := make(chan struct{}), make(chan struct{}, 200)
	disk.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpSync && strings.Contains(op.Name, ".log") {
			hung <- struct{}{}
			<-hang
		}
		return sim.Fault{}
	})
	first, err := r.Append(t.Context(), Append{Batch: batch("first")})
	if err != nil {
		t.Fatal(err)
	}
	<-hung
	taken := []*Pending{first}
	for range queueSlots {
		p, err := r.Append(t.Context(), Append{Batch: batch("v"), Enqueue: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, p)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, x := range []struct {
		ctx  context.Context
		wait time.Duration
	}{{t.Context(), time.Millisecond}, {gone, time.Minute}} {
		if _, err := r.Append(x.ctx, Append{Batch: batch("v"), Enqueue: x.wait}); errs.CodeOf(err) != errs.RequestTimedOut || errs.OutcomeUnknown(err) {
			t.Fatalf("got %v", err)
		}
	}
	// Who waits for the answer no longer does not know it.
	if _, err := first.Result(gone); errs.CodeOf(err) != errs.RequestTimedOut || !errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	close(hang)
	for i, p := range taken {
		if a, err := p.Result(t.Context()); err != nil || a.BaseOffset != record.Offset(i) {
			t.Fatalf("append %d: %+v, %v", i, a, err)
		}
	}
	if r.View().HighWatermark != queueSlots+1 {
		t.Fatalf("high watermark %d", r.View().HighWatermark)
	}
}
