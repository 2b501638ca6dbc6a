package group

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Deps is what a Coordinator works with. Metrics may be nil, and Logger and Clock too.
type Deps struct {
	Metadata   Metadata
	Partitions Partitions
	Clock      clock.Clock
	Logger     *slog.Logger
	Metrics    prometheus.Registerer
}

// Coordinator coordinates the groups whose state groups are led by this
// broker. Its methods are safe for concurrent use. Every method
// answers NOT_COORDINATOR for a group that is led elsewhere.
type Coordinator struct {
	cfg    Config
	deps   Deps
	shards []*shard   // immutable after New
	group  *run.Group // owns the timers of the shards and the watch over their leadership
}

// watchEvery is how soon a change of leadership is noticed where no request notices it first.
const watchEvery = time.Second

// New returns a coordinator of shards state groups. Open state group i with
// StateMachine(i), Attach it, then Start.
func New(cfg Config, shards int, deps Deps) (*Coordinator, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if shards < 1 || deps.Metadata == nil || deps.Partitions == nil {
		return nil, errs.Errorf(errs.InvalidConfig, "a coordinator needs a shard, topic metadata and partitions")
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Clock == nil {
		deps.Clock = clock.System()
	}
	c := &Coordinator{cfg: cfg, deps: deps, group: run.Owned("group")}
	m := newMetrics(c)
	for range shards {
		c.shards = append(c.shards, &shard{
			cfg: cfg, clock: deps.Clock, metadata: deps.Metadata, logger: deps.Logger, metrics: m,
			sg: unattached{}, poke: make(chan struct{}, 1), machine: newMachine(),
		})
	}
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(m); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// unattached is the state group of a shard before Attach.
type unattached struct{}

func (unattached) Propose(context.Context, []byte) (any, error) { return nil, errNotCoordinator }
func (unattached) Read(context.Context) error                   { return errNotCoordinator }
func (unattached) Leading() (uint64, bool)                      { return 0, false }

// StateMachine is the state machine of state group i.
func (c *Coordinator) StateMachine(i int) StateMachine { return c.shards[i] }

// Attach gives shard i its state group, before Start.
func (c *Coordinator) Attach(i int, sg StateGroup) { c.shards[i].sg = sg }

// Start starts the timers.
func (c *Coordinator) Start() {
	for i, s := range c.shards {
		c.group.Go("timers-"+strconv.Itoa(i), s.run)
	}
	c.group.Go("watch", c.watch)
}

// Stop answers parked requests with SHUTTING_DOWN and stops the timers. The
// state groups are to be stopped afterwards, by their owner.
func (c *Coordinator) Stop() {
	for _, s := range c.shards {
		s.mu.Lock()
		s.stopped = true
		s.abdicate()
		s.mu.Unlock()
	}
	c.group.Stop()
	if c.deps.Metrics != nil {
		c.deps.Metrics.Unregister(c.shards[0].metrics)
	}
}

// watch notices leaderships that begin or end while nobody asks for anything.
func (c *Coordinator) watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		for _, s := range c.shards {
			if s.lead() == nil {
				s.mu.Unlock()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// TopicsChanged says that topics were created, deleted or got partitions.
// It never blocks for long: it only wakes the timers.
func (c *Coordinator) TopicsChanged() {
	for _, s := range c.shards {
		s.mu.Lock()
		s.sweep = now()
		s.wakeTimers(s.sweep)
		s.mu.Unlock()
	}
}

func (c *Coordinator) shard(group string) *shard { return c.shards[Shard(group, len(c.shards))] }

// Coordinates returns nil when this broker coordinates the group, else NOT_COORDINATOR.
func (c *Coordinator) Coordinates(group string) error {
	s := c.shard(group)
	if err := s.lead(); err != nil {
		return err
	}
	s.mu.Unlock()
	return nil
}

// Heartbeat is the whole life of a native member; see HeartbeatRequest. Errors:
// UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH, FENCED_INSTANCE_ID (stop working at once;
// join again with epoch 0, but not after FENCED_INSTANCE_ID), UNRELEASED_INSTANCE_ID
// (the instance id belongs to a member that is alive, or was a moment ago:
// try again), GROUP_MAX_SIZE_REACHED, INCONSISTENT_GROUP_PROTOCOL.
func (c *Coordinator) Heartbeat(ctx context.Context, r HeartbeatRequest) (HeartbeatResponse, error) {
	return c.shard(r.Group).heartbeat(ctx, r)
}

// Leave removes a native member at once.
func (c *Coordinator) Leave(ctx context.Context, r LeaveRequest) error {
	return c.shard(r.Group).leave(ctx, r)
}

// CommitOffsets commits, and returns what could not be committed. STALE_MEMBER_EPOCH on a
// partition: the member does not hold it (any more) under this epoch; it heartbeats to learn
// what it holds. An error means that nothing was committed, unless its outcome is unknown.
func (c *Coordinator) CommitOffsets(ctx context.Context, r CommitRequest) ([]PartitionError, error) {
	return c.shard(r.Group).commitOffsets(ctx, r)
}

// FetchOffsets returns committed offsets; no partitions: all of them. A group that does not exist has none.
func (c *Coordinator) FetchOffsets(ctx context.Context, group string, partitions []TopicPartition) ([]CommittedOffset, error) {
	return c.shard(group).fetchOffsets(ctx, group, partitions)
}

// List returns the groups that are coordinated here, by name.
func (c *Coordinator) List(ctx context.Context) ([]Listing, error) {
	var all []Listing
	for _, s := range c.shards {
		part, err := s.list(ctx)
		if errs.CodeOf(err) == errs.NotCoordinator {
			continue // another broker lists these
		}
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	slices.SortFunc(all, func(a, b Listing) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Describe returns a group with its lag, or GROUP_ID_NOT_FOUND.
func (c *Coordinator) Describe(ctx context.Context, group string) (Description, error) {
	d, err := c.shard(group).describe(ctx, group)
	if err != nil {
		return Description{}, err
	}
	for i := range d.Partitions {
		c.measure(ctx, &d.Partitions[i])
	}
	return d, nil
}

// Delete removes a group without members, and its offsets: NON_EMPTY_GROUP, GROUP_ID_NOT_FOUND.
func (c *Coordinator) Delete(ctx context.Context, group string) error {
	return c.shard(group).deleteGroup(ctx, group)
}

// DeleteOffsets removes committed offsets; GROUP_SUBSCRIBED_TO_TOPIC for those in use.
func (c *Coordinator) DeleteOffsets(ctx context.Context, group string, partitions []TopicPartition) ([]PartitionError, error) {
	return c.shard(group).deleteOffsets(ctx, group, partitions)
}

// JoinGroup joins a classic group; it returns when the join phase is over.
func (c *Coordinator) JoinGroup(ctx context.Context, r JoinRequest) (JoinResponse, error) {
	return c.shard(r.Group).joinGroup(ctx, r)
}

// SyncGroup hands out the leader's assignments; it returns when they are there.
func (c *Coordinator) SyncGroup(ctx context.Context, r SyncRequest) (SyncResponse, error) {
	return c.shard(r.Group).syncGroup(ctx, r)
}

// ClassicHeartbeat keeps a classic member alive; REBALANCE_IN_PROGRESS tells it to join again.
func (c *Coordinator) ClassicHeartbeat(_ context.Context, r ClassicHeartbeatRequest) error {
	return c.shard(r.Group).classicHeartbeat(r)
}

// LeaveGroup removes classic members.
func (c *Coordinator) LeaveGroup(ctx context.Context, group string, members []MemberIdentity) ([]LeaveResult, error) {
	return c.shard(group).leaveGroup(ctx, group, members)
}
