package partition

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// A group that is fenced while its new leader waits for a barrier leaves that wait behind:
// Raft does not answer futures that are in its queues when it shuts down.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/tidemarkhq/tidemark/partition/raftgroup.(*Group).barrier.func1"))
}

// rig is one replica of a group of one on some file system, and what belongs to it.
type rig struct {
	t      testing.TB
	fs     fsx.FS
	cfg    Config
	deps   Deps
	limits limits
	stable *raftgroup.StableStore
	*Replica
	died chan error
}

type option func(*rig)

func withTopic(change func(*TopicConfig)) option {
	return func(r *rig) { change(&r.cfg.TopicConfig) }
}

func withClock(c clock.Clock) option { return func(r *rig) { r.deps.Clock = c } }

var keepAll = log.Retention{Age: -1, Bytes: -1}

// newRig describes a replica in dir; nothing is opened.
func newRig(t testing.TB, fsys fsx.FS, dir string, opts ...option) *rig {
	id := raft.ServerID("1/replica")
	r := &rig{t: t, fs: fsys, limits: releaseLimits, died: make(chan error, 1)}
	r.cfg = Config{
		Dir: filepath.Join(dir, "p"), Topic: log.UUID{7}, TopicName: "orders", Partition: 3, ID: id,
		Voters:      []raft.Server{{Suffrage: raft.Voter, ID: id, Address: raft.ServerAddress(id)}},
		TopicConfig: TopicConfig{SegmentBytes: 1 << 20, Retention: keepAll},
	}
	r.deps = Deps{FS: fsys, OnFatal: func(err error) { r.died <- err }}
	for _, o := range opts {
		o(r)
	}
	return r
}

// diskRig is a started replica on the machine's disk.
func diskRig(t testing.TB, opts ...option) *rig {
	t.Helper()
	r := newRig(t, fsx.OS(), t.TempDir(), opts...)
	r.start()
	return r
}

// simRig is a started replica in memory.
func simRig(t testing.TB, opts ...option) *rig {
	t.Helper()
	r := newRig(t, sim.New(), "/data", opts...)
	r.start()
	return r
}

// open opens without starting.
func (r *rig) open() error {
	data := filepath.Dir(r.cfg.Dir)
	if err := errors.Join(r.fs.MkdirAll(data, 0o700), r.fs.SyncDir(filepath.Dir(data))); err != nil {
		return err
	}
	stable, err := raftgroup.OpenStable(r.fs, filepath.Join(filepath.Dir(r.cfg.Dir), "stable"), nil)
	if err != nil {
		return err
	}
	r.stable = stable
	if r.deps.Stable, err = stable.Slot([16]byte{9}); err != nil {
		return errors.Join(err, stable.Close())
	}
	replica, err := open(r.cfg, r.deps, r.limits)
	if err != nil {
		return errors.Join(err, stable.Close())
	}
	r.Replica = replica
	return nil
}

func (r *rig) tryStart() error {
	if err := r.open(); err != nil {
		return err
	}
	if err := r.Start(); err != nil {
		return errors.Join(err, r.tryStop())
	}
	return nil
}

// start opens, starts and waits until the replica leads; it is stopped with the test.
func (r *rig) start() {
	r.t.Helper()
	if err := r.tryStart(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = r.tryStop() })
	if err := r.awaitLeader(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) awaitLeader() error {
	changed := make(chan struct{}, 1)
	defer r.Notify(changed)()
	timeout := time.After(20 * time.Second)
	for !r.View().Leader {
		select {
		case <-changed:
		case err := <-r.died:
			r.died <- err
			return err
		case <-timeout:
			return errors.New("the replica does not lead")
		}
	}
	return nil
}

func (r *rig) tryStop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := r.Replica.Stop(ctx)
	return errors.Join(err, r.stable.Close())
}

// stop stops the replica as a broker does.
func (r *rig) stop() {
	r.t.Helper()
	if err := r.tryStop(); err != nil {
		r.t.Fatal(err)
	}
}

// restart stops it and starts it again from the same files.
func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.cfg.Voters = nil
	r.start()
}

func (r *rig) append(a Append) (Appended, error) {
	p, err := r.Append(context.Background(), a)
	if err != nil {
		return Appended{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return p.Result(ctx)
}

func (r *rig) mustAppend(b record.Raw) Appended {
	r.t.Helper()
	a, err := r.append(Append{Batch: b})
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

// values reads all committed records' values, with their offsets checked to be dense.
func (r *rig) values() []string {
	r.t.Helper()
	out, err := r.readAll()
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) readAll() ([]string, error) {
	var out []string
	next := r.View().LogStart
	for {
		batches, v, err := r.Read(next, 1<<20)
		if err != nil {
			return nil, err
		}
		if len(batches) == 0 {
			if next != v.HighWatermark {
				return nil, fmt.Errorf("reads end at %d, the high watermark is %d", next, v.HighWatermark)
			}
			return out, nil
		}
		for _, b := range batches {
			for rec, err := range b.Records(0) {
				if err != nil {
					return nil, err
				}
				if rec.Offset < next {
					continue
				}
				if rec.Offset != next {
					return nil, fmt.Errorf("offset %d follows %d", rec.Offset, next-1)
				}
				out = append(out, string(rec.Value))
				next++
			}
		}
	}
}

// batch is a batch of plain records.
func batch(values ...string) record.Raw {
	b := record.NewBuilder(record.BuilderConfig{})
	for _, v := range values {
		b.Append(record.Record{Timestamp: 1000, Value: []byte(v)})
	}
	raw, err := b.Build()
	if err != nil {
		panic(err)
	}
	return raw
}

// numbered is a batch of an idempotent producer.
func numbered(pid int64, epoch int16, seq int32, values ...string) record.Raw {
	b := batch(values...)
	b.SetProducer(pid, epoch, seq)
	return b
}

func clone(b record.Raw) record.Raw { return append(record.Raw(nil), b...) }

// seeded is a random source whose seed is printed, and may be given.
func seeded(t testing.TB) (*rand.Rand, uint64) {
	seed := rand.Uint64()
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed: TIDEMARK_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, seed)), seed
}

func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return out
}
