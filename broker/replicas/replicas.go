// Package replicas hosts the replicas of this broker.
//
// One Manager makes what runs follow what the metadata says: it opens,
// bootstraps, configures, and puts into the trash, and one replica that cannot
// be opened keeps no other from serving. Bytes of appends that are not answered
// yet are bounded for the whole broker: callers wait, memory does not grow.
// A directory that the metadata does not know is never removed, a formed
// replica that is missing is never made again, and nothing is appended to a
// replica before the metadata knows durably that it was formed.
package replicas

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Config says what the replicas of a broker share.
type Config struct {
	Dir   string // the data directory: topics/, trash/ and pool/ are in it
	FS    fsx.FS
	Clock clock.Clock
	// InFlightBytes bounds the batches that wait for their answer.
	InFlightBytes int64
	// TailBytes bounds the memory of all logs' tails.
	TailBytes int64
	// OpenParallel is how many replicas are opened or stopped at once.
	OpenParallel int
	// RetentionInterval is how often old segments are looked for.
	RetentionInterval time.Duration
	// Space, Watchdog and Pool are of the data directory; the owner starts
	// and stops them. Nil: none.
	Space    *log.Space
	Watchdog *log.Watchdog
	Pool     *log.Pool
	// GroupMetrics is shared by all Raft groups of the broker. Nil: none.
	GroupMetrics *raftgroup.Metrics

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// OnFatal is told about an error after which the process must end.
	OnFatal func(error)
}

// DefaultConfig is what a broker uses unless told otherwise.
func DefaultConfig() Config {
	return Config{
		FS:                fsx.OS(),
		Clock:             clock.System(),
		InFlightBytes:     64 << 20,
		TailBytes:         64 << 20,
		OpenParallel:      8,
		RetentionInterval: 30 * time.Second,
	}
}

// Metadata is what the manager needs of the controller.
type Metadata interface {
	BrokerID() int32
	Topics() []controller.Topic
	Tombstones() []controller.Tombstone
	ReplicaConfig(controller.Topic) partition.TopicConfig
	Notify(chan<- struct{}) (cancel func())
	Formed(context.Context, []controller.FormedReplica) error
	Report(context.Context, []controller.Leadership) error
	Trashed(context.Context, controller.UUID) error
}

// Stable keeps term and vote of every group; raftgroup.StableStore is one.
type Stable interface {
	Slot(id [16]byte) (raft.StableStore, error)
	Forget(id [16]byte) error
	// Known tells whether a group has its slot still.
	Known(id [16]byte) bool
}

// Manager hosts the replicas of this broker. It is safe for concurrent use.
type Manager struct {
	cfg    Config
	meta   Metadata
	stable Stable
	open   opener
	tasks  *run.Group

	inFlight inFlight
	wake     chan struct{} // cap 1: something to reconcile
	flushers chan struct{} // cap 1: flush intervals may have changed
	recycle  chan struct{} // cap 1: something is in the trash
	ready    chan struct{} // closed after the first pass

	index atomic.Pointer[index] // written by the reconciler only

	mu     sync.Mutex
	hosted map[controller.UUID]*hosted // by replica; written by the reconciler only, guarded by mu
}

// replica is partition.Replica; tests put others in its place.
type replica interface {
	Start() error
	Configure(partition.TopicConfig)
	Retain() (int, error)
	Flush() error
	Stats() log.Stats
	View() partition.View
	Stop(context.Context) error
}

// index finds replicas by name. It is replaced, never changed.
type index struct{ topics map[string][]*hosted } // by partition; nil: not on this broker

// New checks the configuration; nothing starts before Start.
func New(cfg Config, meta Metadata, stable Stable) (*Manager, error) {
	return newManager(cfg, meta, stable, shareAmongReplicas)
}

func newManager(cfg Config, meta Metadata, stable Stable, share func(Config) opener) (*Manager, error) {
	if cfg.InFlightBytes <= 0 || cfg.TailBytes <= 0 || cfg.OpenParallel <= 0 || cfg.RetentionInterval <= 0 {
		return nil, fmt.Errorf("replicas: bytes in flight %d, tail bytes %d, parallel opens %d and retention interval %v must be positive",
			cfg.InFlightBytes, cfg.TailBytes, cfg.OpenParallel, cfg.RetentionInterval)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnFatal == nil {
		cfg.OnFatal = func(err error) { panic(err) }
	}
	m := &Manager{
		cfg: cfg, meta: meta, stable: stable,
		tasks: run.Owned("replicas"),
		wake:  make(chan struct{}, 1), flushers: make(chan struct{}, 1), recycle: make(chan struct{}, 1),
		ready:    make(chan struct{}),
		hosted:   map[controller.UUID]*hosted{},
		inFlight: inFlight{limit: cfg.InFlightBytes},
	}
	m.open = share(m.cfg)
	m.index.Store(&index{})
	register(cfg.Registerer, m)
	return m, nil
}

// Start begins to host. Ready tells when the replicas that were here before are open.
func (m *Manager) Start() error {
	for _, dir := range []string{topicsDir, trashDir} {
		if err := m.cfg.FS.MkdirAll(m.path(dir), 0o700); err != nil {
			return fmt.Errorf("replicas: %w", err)
		}
	}
	if err := m.cfg.FS.SyncDir(m.cfg.Dir); err != nil {
		return fmt.Errorf("replicas: %w", err)
	}
	m.tasks.Go("reconcile", m.reconcile)
	m.tasks.Go("retention", m.retain)
	m.tasks.Go("flush", m.flush)
	m.tasks.Go("trash", m.emptyTrash)
	return nil
}

// Ready is closed when every replica that was assigned here at the start is open, or known
// not to be.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Produce starts an append. It waits while too many bytes are in flight on the
// broker; the order of two appends of one caller is the order of the calls.
func (m *Manager) Produce(ctx context.Context, topic string, p int32, a partition.Append) (*partition.Pending, error) {
	r, err := m.Find(topic, p)
	if err != nil {
		return nil, err
	}
	n := int64(len(a.Batch))
	if err := m.inFlight.acquire(ctx, n); err != nil {
		return nil, err
	}
	callers := a.Release
	a.Release = func() {
		m.inFlight.release(n)
		if callers != nil {
			callers()
		}
	}
	pending, err := r.Append(ctx, a)
	if err != nil {
		m.inFlight.release(n)
		return nil, err
	}
	return pending, nil
}

// Find returns the replica of a partition that this broker hosts.
func (m *Manager) Find(topic string, p int32) (*partition.Replica, error) {
	h, err := m.find(topic, p)
	if err != nil {
		return nil, err
	}
	r, err := h.serving()
	if err != nil {
		return nil, err
	}
	return r.(*partition.Replica), nil
}

func (m *Manager) find(topic string, p int32) (*hosted, error) {
	partitions, ok := m.index.Load().topics[topic]
	if !ok {
		return nil, errs.Errorf(errs.UnknownTopicOrPartition, "no topic is called %q", topic)
	}
	if p < 0 || int(p) >= len(partitions) {
		return nil, errs.Errorf(errs.UnknownTopicOrPartition, "topic %q has partitions 0 to %d, and no partition %d", topic, len(partitions)-1, p)
	}
	if partitions[p] == nil {
		return nil, errs.Errorf(errs.NotLeaderOrFollower, "partition %d of topic %q is not on this broker: ask for the metadata again", p, topic)
	}
	return partitions[p], nil
}

// Close stops all replicas, each with a place in its log that a start finds again.
func (m *Manager) Close(ctx context.Context) error {
	err := m.tasks.StopWithin(ctx)
	m.mu.Lock()
	all := make([]*hosted, 0, len(m.hosted))
	for _, h := range m.hosted {
		all = append(all, h)
	}
	m.mu.Unlock()
	var mu sync.Mutex
	m.inParallel(ctx, len(all), func(i int) {
		if stopErr := all[i].stop(ctx); stopErr != nil {
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, fmt.Errorf("stop %s: %w", all[i], stopErr))
		}
	})
	return err
}

// inParallel calls f for 0 to n-1, at most OpenParallel at once, and waits for all.
func (m *Manager) inParallel(ctx context.Context, n int, f func(i int)) {
	workers := run.NewGroup(ctx, "replicas/parallel")
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, m.cfg.OpenParallel) {
		wg.Add(1)
		workers.Go("worker", func(context.Context) {
			defer wg.Done()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
	workers.Stop()
}

func poke(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
