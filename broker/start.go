package broker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/broker/replicas"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

const (
	metaGroup = "meta"
	// leadTimeout bounds how long a state group of one may take to lead: it
	// has nobody to ask, so more means that something is wrong.
	leadTimeout = 30 * time.Second
	// settleTimeout bounds how long a start waits for leaders of partitions.
	settleTimeout = 2 * time.Second
)

func (b *Broker) path(name ...string) string {
	return filepath.Join(append([]string{b.cfg.Node.DataDir}, name...)...)
}

// openDataDir makes the directory ours and finds out who we are.
func (b *Broker) openDataDir(context.Context) error {
	lock, err := lockDir(b.deps.FS, b.cfg.Node.DataDir)
	if err != nil {
		return err
	}
	b.onStop("the lock", func(context.Context) error { return lock.Close() })
	if b.identity, err = loadIdentity(b.deps.FS, b.cfg.Node.DataDir); err != nil {
		return err
	}
	if b.starts, err = countStart(b.deps.FS, b.cfg.Node.DataDir); err != nil {
		return err
	}
	if err := makeDir(b.deps.FS, b.path(stateDir)); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if b.starts > manyStarts {
		b.logger.Error("this broker has ended again and again without a graceful stop: look for the reason in the log before it ended", "starts", b.starts)
	}
	b.onStop("the start counter", func(context.Context) error {
		if b.phase.Load() == phaseStarting || b.failed.Load() != nil {
			return nil // this was no graceful stop
		}
		return writeStarts(b.deps.FS, b.cfg.Node.DataDir, 0)
	})
	b.tasks.Go("steady", func(ctx context.Context) {
		timer := time.NewTimer(steadyAfter)
		defer timer.Stop()
		select {
		case <-timer.C:
			if err := writeStarts(b.deps.FS, b.cfg.Node.DataDir, 0); err != nil {
				b.logger.Warn("the start counter cannot be reset", "err", err)
			}
		case <-ctx.Done():
		}
	})
	return nil
}

// openHelpers opens what all groups share.
func (b *Broker) openHelpers(context.Context) error {
	var err error
	if b.space, err = log.NewSpace(b.deps.FS, b.cfg.Node.DataDir, 0); err != nil {
		return fmt.Errorf("free space of %s: %w", b.cfg.Node.DataDir, err)
	}
	b.space.OnChange(b.onSpace)
	if b.cfg.Limits.PoolBytes > 0 {
		if b.pool, err = log.OpenPool(b.deps.FS, b.path(poolDir), b.cfg.Limits.PoolBytes); err != nil {
			return err
		}
	}
	b.watchdog = log.NewWatchdog(log.WatchdogConfig{
		OnStall: b.onStall,
		OnHang: func(name string, after time.Duration) {
			b.onFatal(fmt.Errorf("%s: a write or sync has not returned for %v; the disk hangs", name, after))
		},
	})
	b.watchdog.Start()
	b.onStop("the watchdog", func(context.Context) error { b.watchdog.Stop(); return nil })
	if b.stable, err = raftgroup.OpenStable(b.deps.FS, b.path(stableFile), b.logger); err != nil {
		return fmt.Errorf("stable store: %w", err)
	}
	b.onStop("the stable store", func(context.Context) error { return b.stable.Close() })
	b.groupMetrics = raftgroup.NewMetrics(b.deps.Registry)
	return nil
}

func (b *Broker) onSpace(low bool, free, reserve int64) {
	if low {
		b.logger.Warn("the disk is nearly full: appends are refused until a quarter more than the reserve is free; free space, or shorten the retention of topics",
			"dir", b.cfg.Node.DataDir, "free_bytes", free, "reserve_bytes", reserve)
		return
	}
	b.logger.Info("the disk has room again: appends are taken", "dir", b.cfg.Node.DataDir, "free_bytes", free, "reserve_bytes", reserve)
}

func (b *Broker) onStall(name string, stalled bool) {
	if stalled {
		b.stalled.Add(1)
		b.logger.Warn("the disk does not answer", "step", name)
		return
	}
	b.stalled.Add(-1)
	b.logger.Info("the disk answers again", "step", name)
}

// openState opens a state group of this broker alone. It is formed only while
// the identity says that none was.
func (b *Broker) openState(name string, sm raftgroup.StateMachine) (*raftgroup.StateGroup, error) {
	dir, slotID, id := b.path(stateDir, name), b.identity.slot(name), b.identity.serverID(name)
	var voters []raft.Server
	if b.identity.formed {
		there, err := exists(b.deps.FS, dir)
		if err == nil && (!there || !b.stable.Known(slotID)) {
			err = fmt.Errorf("%s or its vote is missing, and it may have held acknowledged changes: restore the data directory from a backup, or start with an empty one", dir)
		}
		if err != nil {
			return nil, fmt.Errorf("state group %s: %w", name, err)
		}
	} else {
		voters = []raft.Server{{Suffrage: raft.Voter, ID: id, Address: raft.ServerAddress(id)}}
	}
	slot, err := b.stable.Slot(slotID)
	if err != nil {
		return nil, fmt.Errorf("state group %s: vote slot: %w", name, err)
	}
	return raftgroup.OpenState(raftgroup.StateConfig{
		Name: name, Dir: dir, FS: b.deps.FS, ID: id, Stable: slot, Voters: voters,
		Transport: raftgroup.NewLoopback(raft.ServerAddress(id)),
		OnFailure: func(err error) { b.onFatal(fmt.Errorf("state group %s: %w", name, err)) },
		Watchdog:  b.watchdog,
		Metrics:   b.groupMetrics, Logger: b.logger,
	}, sm)
}

// awaitLead waits until a state group leads and has applied all that was acknowledged.
func awaitLead(ctx context.Context, name string, g *raftgroup.StateGroup) error {
	ctx, cancel := context.WithTimeout(ctx, leadTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if _, leads := g.Leading(); leads {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("state group %s has no leader: %w", name, ctx.Err())
		}
	}
	if err := g.Read(ctx); err != nil {
		return fmt.Errorf("state group %s: %w", name, err)
	}
	return nil
}

// openMeta opens the metadata, founds the cluster where there is none, and registers this broker.
func (b *Broker) openMeta(ctx context.Context) error {
	state := controller.NewState()
	var err error
	if b.meta, err = b.openState(metaGroup, state); err != nil {
		return err
	}
	b.onStop("the metadata", b.meta.Stop)
	if err := awaitLead(ctx, metaGroup, b.meta); err != nil {
		return err
	}
	cfg := controller.DefaultConfig()
	cfg.DefaultPartitions, cfg.DefaultReplication = b.cfg.Topics.Partitions, b.cfg.Topics.ReplicationFactor
	cfg.Logger = b.logger
	c, err := controller.New(cfg, state, b.meta)
	if err != nil {
		return err
	}
	if !b.identity.formed {
		if err := c.Bootstrap(ctx, b.identity.cluster, b.cfg.Cluster.CoordinatorGroups); err != nil {
			return fmt.Errorf("found a cluster: %w", err)
		}
	}
	if got := state.Cluster(); got != b.identity.cluster {
		return fmt.Errorf("the data directory belongs to cluster %v, its metadata to cluster %v: files of two brokers were mixed", b.identity.cluster, got)
	}
	grpc, _ := b.advertised()
	_, err = c.Register(ctx, controller.Self{
		UUID: b.identity.broker, Rack: b.cfg.Node.Rack, Version: b.deps.Version.Version, GRPCAddress: grpc, PartitionLimit: b.partitionLimit(),
	})
	if err != nil {
		return fmt.Errorf("register this broker: %w", err)
	}
	b.controller = c
	return nil
}

func (b *Broker) advertised() (grpc, admin string) {
	grpc, admin = b.doors.addresses.GRPC, b.doors.addresses.Admin
	if a := b.cfg.Listeners.GRPC.Advertised; a != "" {
		grpc = a
	}
	if a := b.cfg.Listeners.Admin.Advertised; a != "" {
		admin = a
	}
	return grpc, admin
}

// openReplicas returns when every replica that is assigned here is open, or known not to be.
func (b *Broker) openReplicas(ctx context.Context) error {
	cfg := replicas.DefaultConfig()
	cfg.Dir, cfg.FS, cfg.Clock = b.cfg.Node.DataDir, b.deps.FS, b.deps.Clock
	cfg.InFlightBytes, cfg.TailBytes = b.cfg.Limits.InFlightBytes, b.cfg.Limits.TailBytes
	cfg.Space, cfg.Watchdog, cfg.Pool, cfg.GroupMetrics = b.space, b.watchdog, b.pool, b.groupMetrics
	cfg.Logger, cfg.Registerer, cfg.OnFatal = b.logger, b.deps.Registry, b.onFatal
	m, err := replicas.New(cfg, b.controller, b.stable)
	if err != nil {
		return err
	}
	if err := m.Start(); err != nil {
		return err
	}
	b.replicas = m
	b.onStop("the replicas", m.Close)
	select {
	case <-m.Ready():
	case <-ctx.Done():
		return fmt.Errorf("recovery was interrupted: %w", ctx.Err())
	}
	// Groups of one lead within milliseconds. Whoever comes in right after "ready"
	// would otherwise be told to try again.
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	m.AwaitLeaders(ctx)
	return nil
}

// openGroups opens the coordinators of consumer groups, all at once.
func (b *Broker) openGroups(ctx context.Context) error {
	n := b.controller.CoordinatorGroups()
	c, err := group.New(group.Config{BrokerID: b.ID(), LagMetrics: true}, n, group.Deps{
		Metadata: groupTopics{b.controller}, Partitions: groupPartitions{b.replicas},
		Clock: b.deps.Clock, Logger: b.logger, Metrics: b.deps.Registry,
	})
	if err != nil {
		return err
	}
	states := make([]*raftgroup.StateGroup, n)
	failures := make([]error, n)
	starts := run.NewGroup(ctx, "broker/coordinators")
	var opened sync.WaitGroup
	for i := range n {
		opened.Add(1)
		starts.Go("open", func(ctx context.Context) {
			defer opened.Done()
			name := "coord-" + strconv.Itoa(i)
			if states[i], failures[i] = b.openState(name, c.StateMachine(i)); failures[i] == nil {
				failures[i] = awaitLead(ctx, name, states[i])
			}
		})
	}
	opened.Wait()
	starts.Stop()
	for i, s := range states {
		if s != nil {
			b.onStop("coordinator "+strconv.Itoa(i), s.Stop)
			c.Attach(i, s)
		}
	}
	if err := errors.Join(failures...); err != nil {
		return err
	}
	c.Start()
	b.groups = c
	b.onStop("the coordinators", func(context.Context) error { c.Stop(); return nil })
	b.tasks.Go("topic-changes", b.tellTopics)
	return nil
}

// tellTopics tells the coordinators when topics come, go or grow.
func (b *Broker) tellTopics(ctx context.Context) {
	changed := make(chan struct{}, 1)
	defer b.controller.Notify(changed)()
	known := map[controller.UUID]int{}
	for {
		now := map[controller.UUID]int{}
		differs := false
		for _, t := range b.controller.Topics() {
			now[t.ID] = len(t.Partitions)
			differs = differs || known[t.ID] != len(t.Partitions)
		}
		if differs || len(now) != len(known) {
			b.groups.TopicsChanged()
		}
		known = now
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// markFormed records, before any client is let in, that the state groups exist.
func (b *Broker) markFormed(context.Context) error {
	if b.identity.formed {
		return nil
	}
	// The groups' names must survive a power cut before the identity says that
	// the groups exist: otherwise they would count as lost.
	if err := b.deps.FS.SyncDir(b.path(stateDir)); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	b.identity.formed = true
	return b.identity.save(b.deps.FS, b.cfg.Node.DataDir)
}
