package replicas

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// house is a broker with real replicas on a disk that forgets what was not
// synced. Its metadata outlives the power cuts: it stands for a cluster that goes on.
type house struct {
	t      testing.TB
	fs     *sim.FS
	ctl    *controller.Controller
	stable *raftgroup.StableStore
	m      *Manager
	logged *lines
	fatal  chan error
}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{t: t, fs: sim.New(), logged: &lines{}, fatal: make(chan error, 64)}
	g := &group{state: controller.NewState()}
	ctl, err := controller.New(controller.DefaultConfig(), g.state, g)
	h.must(err)
	h.ctl = ctl
	h.must(h.fs.MkdirAll("/data", 0o700))
	h.must(h.fs.SyncDir("/"))
	h.must(ctl.Bootstrap(context.Background(), controller.NewUUID(), 8))
	_, err = ctl.Register(context.Background(), controller.Self{UUID: controller.NewUUID(), PartitionLimit: 1000})
	h.must(err)
	h.open()
	return h
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%v\n%s", err, h.logged)
	}
}

func (h *house) open() {
	h.t.Helper()
	stable, err := raftgroup.OpenStable(h.fs, "/data/stable", slog.New(slog.DiscardHandler))
	h.must(err)
	cfg := DefaultConfig()
	cfg.Dir, cfg.FS, cfg.RetentionInterval = "/data", h.fs, 2*time.Millisecond
	cfg.Logger = slog.New(slog.NewTextHandler(h.logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg.OnFatal = func(err error) {
		select {
		case h.fatal <- err:
		default:
		}
	}
	cfg.Pool, err = log.OpenPool(h.fs, "/data/pool", 8<<20)
	h.must(err)
	m, err := New(cfg, h.ctl, stable)
	h.must(err)
	h.must(m.Start())
	<-m.Ready()
	h.stable, h.m = stable, m
}

// close stops everything; after a power cut errors are what is expected.
func (h *house) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := h.m.Close(ctx)
	_ = h.stable.Close()
	return err
}

func (h *house) produce(ctx context.Context, topic string, p int32, value string) (partition.Appended, error) {
	b := record.NewBuilder(record.BuilderConfig{})
	b.Append(record.Record{Timestamp: time.Now().UnixMilli(), Value: []byte(value)})
	batch, err := b.Build()
	h.must(err)
	pending, err := h.m.Produce(ctx, topic, p, partition.Append{Batch: batch})
	if err != nil {
		return partition.Appended{}, err
	}
	return pending.Result(ctx)
}

func (h *house) mustProduce(topic string, p int32, value string) (a partition.Appended) {
	h.t.Helper()
	waitFor(h.t, func() bool {
		var err error
		if a, err = h.produce(context.Background(), topic, p, value); err != nil && !errs.Retriable(err) {
			h.t.Fatalf("%v\n%s", err, h.logged)
		}
		return err == nil
	})
	return a
}

func (h *house) read(topic string, p int32) map[record.Offset]string {
	h.t.Helper()
	var r *partition.Replica
	waitFor(h.t, func() bool {
		var err error
		r, err = h.m.Find(topic, p)
		return err == nil && r.View().Leader
	})
	h.must(r.Linearize(context.Background()))
	all := map[record.Offset]string{}
	for at := r.View().LogStart; at < r.View().HighWatermark; {
		batches, _, err := r.Read(at, 1<<20)
		h.must(err)
		for _, b := range batches {
			for rec, err := range b.Records(0) {
				h.must(err)
				all[rec.Offset] = string(rec.Value)
			}
			at = b.EndOffset()
		}
	}
	return all
}

func TestRetentionGivesUpOldSegments(t *testing.T) {
	h := newHouse(t)
	defer func() { h.must(h.close()) }()
	_, _, err := h.ctl.CreateTopic(t.Context(), controller.NewTopic{Name: "orders", Configs: map[string]string{"segment.bytes": "64KiB", "retention.bytes": "32KiB"}})
	h.must(err)
	for i := range 100 {
		h.mustProduce("orders", 0, fmt.Sprint(i, strings.Repeat("x", 1000)))
	}
	r, err := h.m.Find("orders", 0)
	h.must(err)
	waitFor(t, func() bool { return r.View().LogStart > 0 })
	if _, _, err := r.Read(0, 100); errs.CodeOf(err) != errs.OffsetOutOfRange {
		t.Errorf("what was given up is answered with %v", err)
	}
	if got := h.read("orders", 0); !strings.HasPrefix(got[99], "99 ") && !strings.HasPrefix(got[99], "99x") {
		t.Errorf("the newest record is %.10q", got[99])
	}
}

func TestBytesInFlightAreGivenBack(t *testing.T) {
	h := newHouse(t)
	defer func() { h.must(h.close()) }()
	_, _, err := h.ctl.CreateTopic(t.Context(), controller.NewTopic{Name: "orders", Partitions: 2})
	h.must(err)
	for i := range 50 {
		h.mustProduce("orders", int32(i%2), "x")
	}
	// One that is refused at once, and one whose caller is gone before the answer.
	if _, err := h.m.Produce(t.Context(), "orders", 0, partition.Append{Batch: []byte("nonsense")}); err == nil {
		t.Error("nonsense was accepted")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = h.produce(gone, "orders", 1, "y")
	waitFor(t, func() bool { return h.m.inFlight.bytes() == 0 })
}

// The power fails at a random step while topics are made, appended to and deleted. After each
// cut every replica that was formed is there, and so is what was acknowledged.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	h := newHouse(t)
	acked := map[string]map[record.Offset]string{}
	for round := range 12 {
		h.fs.CrashAt(1 + rng.IntN(400))
		h.work(rng, round, acked)
		_ = h.close()
		h.fs = h.fs.Reboot(rng, round%2 == 0)
		h.open()
		for name, records := range acked {
			got := h.read(name, 0)
			for offset, value := range records {
				if got[offset] != value {
					t.Fatalf("seed %d round %d: %s offset %d: acknowledged %.20q, found %.20q\n%s", seed, round, name, offset, value, got[offset], h.logged)
				}
			}
		}
		if err := h.m.Trouble(); err != nil {
			t.Fatalf("seed %d round %d: %v\n%s", seed, round, err, h.logged)
		}
	}
	h.must(h.close())
}

// work makes a topic and appends to all, until the power is gone.
func (h *house) work(rng *rand.Rand, round int, acked map[string]map[record.Offset]string) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	name := fmt.Sprintf("t%d", round)
	if _, _, err := h.ctl.CreateTopic(ctx, controller.NewTopic{Name: name, Configs: map[string]string{"segment.bytes": "64KiB"}}); err == nil || errs.OutcomeUnknown(err) {
		acked[name] = map[record.Offset]string{}
	}
	if old := fmt.Sprintf("t%d", round-3); acked[old] != nil {
		h.must(h.ctl.DeleteTopic(context.Background(), old, true, false))
		delete(acked, old)
	}
	var mu sync.Mutex
	var load sync.WaitGroup
	for topic, records := range acked {
		salt := rng.Int()
		load.Go(func() {
			for i := 0; ctx.Err() == nil && len(h.fatal) == 0; i++ {
				value := fmt.Sprint(topic, "-", salt, "-", i, strings.Repeat("x", 200))
				a, err := h.produce(ctx, topic, 0, value)
				if err != nil && !errs.Retriable(err) {
					return
				}
				if err == nil {
					mu.Lock()
					records[a.BaseOffset] = value
					mu.Unlock()
				}
			}
		})
	}
	load.Wait()
	for len(h.fatal) > 0 {
		<-h.fatal
	}
}

// A topic is deleted under its producers: every append is answered, and no bytes stay reserved.
func TestDeletionUnderLoadAnswersEverybody(t *testing.T) {
	h := newHouse(t)
	defer func() { h.must(h.close()) }()
	_, _, err := h.ctl.CreateTopic(t.Context(), controller.NewTopic{Name: "orders"})
	h.must(err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var load sync.WaitGroup
	warm := make(chan struct{}, 8)
	for range 8 {
		load.Go(func() {
			for i := 0; ; i++ {
				_, err := h.produce(ctx, "orders", 0, "x")
				if errs.CodeOf(err) == errs.UnknownTopicOrPartition {
					return
				}
				if err != nil && !errs.Retriable(err) {
					t.Errorf("a producer cannot go on after %v", err)
					return
				}
				if i == 5 {
					warm <- struct{}{}
				}
			}
		})
	}
	for range 8 {
		<-warm
	}
	h.must(h.ctl.DeleteTopic(t.Context(), "orders", false, false))
	load.Wait()
	if ctx.Err() != nil {
		t.Error("somebody was never answered")
	}
	waitFor(t, func() bool { return h.m.inFlight.bytes() == 0 })
	if len(h.fatal) > 0 {
		t.Errorf("the process would have ended: %v", <-h.fatal)
	}
}
