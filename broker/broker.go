// Package broker is one server process: it puts the services together and opens
// the doors.
//
// Only this package sees all of them. It starts what others rest on first and
// stops it last: lock, identity, stable store, metadata, replicas,
// coordinators, doors. A disk error or a hung disk ends the process through
// Deps.OnFatal and is never survived. A state group that was formed is never
// formed again, and a data directory without its identity is not touched.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/broker/grpcapi"
	"github.com/tidemarkhq/tidemark/broker/replicas"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

// Deps is what a broker takes from its process. Zero fields get defaults.
type Deps struct {
	Logger   *slog.Logger
	Registry *prometheus.Registry
	FS       fsx.FS
	Clock    clock.Clock
	// OnFatal is called once, with the error after which the process must end
	// without any further write. main logs and exits; the default panics.
	OnFatal func(error)
	Version Version
	// Settings are those of this broker with their origins, for DescribeConfig.
	Settings func() []Setting
}

// Setting is one setting of a broker, as clients see it.
type Setting = grpcapi.Setting

// Version says which build runs.
type Version struct{ Version, Revision, GoVersion string }

// Addresses tells where the broker listens.
type Addresses struct {
	GRPC  string
	Admin string // empty where there is no admin listener
	Kafka string // empty while no Kafka listener runs
}

// Broker is one server process. Start and Stop are called once each; the rest is safe for concurrent use.
type Broker struct {
	cfg    Config
	deps   Deps
	logger *slog.Logger
	began  clock.Mono
	tasks  *run.Group

	// Set by Start, in this order, and not changed afterwards.
	identity     identity
	starts       int
	doors        doors
	stable       *raftgroup.StableStore
	groupMetrics *raftgroup.Metrics
	watchdog     *log.Watchdog
	space        *log.Space
	pool         *log.Pool // nil: none
	meta         *raftgroup.StateGroup
	controller   *controller.Controller
	replicas     *replicas.Manager
	groups       *group.Coordinator

	phase   atomic.Int32 // of the phases below
	fatal   sync.Once
	failed  atomic.Pointer[error] // what OnFatal was told
	stalled atomic.Int32          // disk steps that have been running for seconds

	closers []closer // by Start and Stop only; stopped from the last to the first
}

// The phases of a broker.
const (
	phaseStarting int32 = iota
	phaseServing
	phaseDraining
)

type closer struct {
	what  string
	close func(context.Context) error
}

// New checks the configuration; nothing starts before Start.
func New(cfg Config, deps Deps) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Registry == nil {
		deps.Registry = prometheus.NewRegistry()
	}
	if deps.FS == nil {
		deps.FS = fsx.OS()
	}
	if deps.Clock == nil {
		deps.Clock = clock.System()
	}
	if deps.OnFatal == nil {
		deps.OnFatal = func(err error) { panic(err) }
	}
	return &Broker{cfg: cfg, deps: deps, logger: deps.Logger, began: clock.Monotonic(), tasks: run.Owned("broker")}, nil
}

// Start returns when the broker serves, or with what kept it from serving; then
// everything that was started has been stopped again.
func (b *Broker) Start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		b.openDataDir, b.bindDoors, b.openHelpers, b.openMeta, b.openReplicas, b.openGroups, b.markFormed, b.openDoors,
	} {
		if err := step(ctx); err != nil {
			stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.ShutdownTimeout)
			defer cancel()
			return errors.Join(err, b.unwind(stopCtx))
		}
	}
	b.phase.Store(phaseServing)
	b.doors.grpc.SetReady(true)
	b.logger.Info("broker serves", "broker_id", b.ID(), "cluster", b.ClusterID(), "grpc", b.doors.addresses.GRPC,
		"admin", b.doors.addresses.Admin, "data_dir", b.cfg.Node.DataDir, "took", clock.Since(b.began).Round(time.Millisecond).String())
	return nil
}

// Stop drains and stops; ctx bounds how long it may take.
func (b *Broker) Stop(ctx context.Context) error {
	b.phase.Store(phaseDraining)
	if b.doors.grpc != nil {
		b.doors.grpc.SetReady(false)
	}
	b.logger.Info("broker stops")
	if err := b.unwind(ctx); err != nil {
		return err
	}
	b.logger.Info("broker stopped")
	return nil
}

// unwind closes what was opened, the last first. What fails to stop keeps nothing else from
// being stopped.
func (b *Broker) unwind(ctx context.Context) error {
	b.tasks.Cancel()
	var all error
	for len(b.closers) > 0 {
		last := b.closers[len(b.closers)-1]
		b.closers = b.closers[:len(b.closers)-1]
		if err := last.close(ctx); err != nil {
			all = errors.Join(all, fmt.Errorf("stop %s: %w", last.what, err))
		}
	}
	b.tasks.Stop()
	return all
}

func (b *Broker) onStop(what string, f func(context.Context) error) {
	b.closers = append(b.closers, closer{what, f})
}

// onFatal ends the process: whatever failed to write must not be tried again.
func (b *Broker) onFatal(err error) {
	b.fatal.Do(func() {
		b.failed.Store(&err)
		b.logger.Error("the process ends because it cannot trust its disk any more", "err", err)
		b.deps.OnFatal(err)
	})
}

// Addresses is known once Start has returned.
func (b *Broker) Addresses() Addresses { return b.doors.addresses }

// ID is the broker's id in its cluster; -1 before Start.
func (b *Broker) ID() int32 {
	if b.controller == nil {
		return -1
	}
	return b.controller.BrokerID()
}

// ClusterID names the cluster.
func (b *Broker) ClusterID() string { return b.identity.cluster.String() }
