package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Config says how a broker takes part in the metadata group.
type Config struct {
	// DefaultPartitions and DefaultReplication are used where CreateTopic
	// names none; replication 0 means min(3, brokers).
	DefaultPartitions  int32
	DefaultReplication int16
	// ProposeTimeout bounds one change where the caller sets no deadline.
	ProposeTimeout time.Duration
	Logger         *slog.Logger
}

// DefaultConfig is what a broker uses unless told otherwise.
func DefaultConfig() Config {
	return Config{DefaultPartitions: 1, ProposeTimeout: 10 * time.Second}
}

// Group is the state group "meta" as the controller uses it; raftgroup.StateGroup is one.
type Group interface {
	Propose(ctx context.Context, command []byte) (any, error)
	Read(ctx context.Context) error
	Leading() (term uint64, ok bool)
}

// Self is what a broker says about itself when it registers.
type Self struct {
	UUID         UUID
	Rack         string
	Version      string
	GRPCAddress  string
	KafkaAddress string
	// PartitionLimit is how many replicas the broker hosts at most.
	PartitionLimit int32
}

// Controller answers questions about the cluster's metadata from this broker's
// copy and changes it through the metadata group. It is safe for concurrent use.
type Controller struct {
	cfg       Config
	state     *State
	group     Group
	self      atomic.Int32 // this broker's id; -1 before Register
	producers producerIDs
}

// New returns the controller on state, which is the state machine of group.
func New(cfg Config, state *State, group Group) (*Controller, error) {
	if cfg.DefaultPartitions < 1 || cfg.DefaultReplication < 0 || cfg.ProposeTimeout <= 0 {
		return nil, fmt.Errorf("controller: default partitions %d, replication %d and propose timeout %v make no sense",
			cfg.DefaultPartitions, cfg.DefaultReplication, cfg.ProposeTimeout)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Controller{cfg: cfg, state: state, group: group, producers: newProducerIDs()}
	c.self.Store(-1)
	return c, nil
}

// Bootstrap makes a new cluster out of an empty metadata group. It does nothing
// where this cluster exists already.
func (c *Controller) Bootstrap(ctx context.Context, cluster UUID, coordinatorGroups int) error {
	_, err := c.propose(ctx, bootstrap{cluster, int32(coordinatorGroups), FeatureLevel})
	return err
}

// Register tells the cluster that this broker has started, and where it is. It
// returns what the cluster knows it by.
func (c *Controller) Register(ctx context.Context, self Self) (Broker, error) {
	result, err := c.propose(ctx, registerBroker{self})
	if err != nil {
		return Broker{}, err
	}
	b := result.(Broker)
	c.self.Store(b.ID)
	return b, nil
}

// propose commits a command and returns what applying it gave.
func (c *Controller) propose(ctx context.Context, cmd command) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ProposeTimeout)
	defer cancel()
	result, err := c.group.Propose(ctx, encodeCommand(cmd))
	if err != nil {
		return nil, notController(err)
	}
	if err, failed := result.(error); failed {
		return nil, err
	}
	return result, nil
}

// notController says "not the controller" where the group said "not the leader".
// The outcome stays what it was.
func notController(err error) error {
	if !errors.Is(err, errs.New(errs.NotLeaderOrFollower, "")) {
		return err
	}
	if errs.OutcomeUnknown(err) {
		return errs.Unknown(errs.NotController, err.Error())
	}
	return errs.New(errs.NotController, err.Error())
}

// Topics lists the topics, by name. The slices and maps in it are shared: read only.
func (c *Controller) Topics() []Topic { return c.state.Topics() }

// Topic finds a topic by name.
func (c *Controller) Topic(name string) (Topic, bool) { return c.state.Topic(name) }

// TopicByID finds a topic by its id.
func (c *Controller) TopicByID(id UUID) (Topic, bool) { return c.state.TopicByID(id) }

// TopicConfigs lists every setting of a topic, by name.
func (c *Controller) TopicConfigs(name string) ([]ConfigEntry, error) {
	t, ok := c.state.Topic(name)
	if !ok {
		return nil, unknownTopic(name)
	}
	return entries(c.state.Configs(), t.Configs), nil
}

// Brokers lists the brokers, by id.
func (c *Controller) Brokers() []Broker { return c.state.Brokers() }

// ClusterID names the cluster.
func (c *Controller) ClusterID() string { return c.state.Cluster().String() }

// BrokerID is this broker's id; -1 until it has registered.
func (c *Controller) BrokerID() int32 { return c.self.Load() }

// ControllerID is the broker that leads the metadata group; -1 where none is known.
func (c *Controller) ControllerID() int32 {
	if _, ok := c.group.Leading(); ok {
		return c.BrokerID()
	}
	return -1
}

// FeatureLevel is what all brokers of the cluster understand.
func (c *Controller) FeatureLevel() int32 { return c.state.Feature() }

// CoordinatorGroups is how many coord/N groups the cluster has.
func (c *Controller) CoordinatorGroups() int { return c.state.Coordinators() }

// Linearize waits until this broker's copy holds every change that was
// acknowledged before the call.
func (c *Controller) Linearize(ctx context.Context) error { return notController(c.group.Read(ctx)) }

// Notify sends on ch, without blocking, after each change of the metadata, until
// cancel is called.
func (c *Controller) Notify(ch chan<- struct{}) (cancel func()) { return c.state.Notify(ch) }

// ReplicaConfig is what the replicas of t obey.
func (c *Controller) ReplicaConfig(t Topic) partition.TopicConfig {
	return ReplicaConfig(c.state.Configs(), t.Configs)
}

// Tombstones lists the deleted topics that are not cleared away everywhere.
func (c *Controller) Tombstones() []Tombstone { return c.state.Tombstones() }

// Formed records that replicas of this broker were bootstrapped durably.
func (c *Controller) Formed(ctx context.Context, replicas []FormedReplica) error {
	_, err := c.propose(ctx, formed{replicas})
	return err
}

// Report records who leads partitions.
func (c *Controller) Report(ctx context.Context, partitions []Leadership) error {
	_, err := c.propose(ctx, report{partitions})
	return err
}

// Trashed records that this broker has put away what it held of a deleted topic.
func (c *Controller) Trashed(ctx context.Context, topic UUID) error {
	_, err := c.propose(ctx, trashed{topic, c.BrokerID()})
	return err
}

func unknownTopic(name string) error {
	return errs.Errorf(errs.UnknownTopicOrPartition, "no topic is called %q", name)
}
