// Package group coordinates consumer groups: who is in a group, which
// partitions each member works on, and how far the group has read.
//
// The state of a group lives in a replicated state group (coord/0..N-1, by
// the hash of the group's name). Its state machine is a function of the
// commands in the log alone: it reads no clock, no configuration and no topic
// metadata; whatever of these it needs, a command carries. The Coordinator is
// the leader's side of it: sessions, deadlines and parked requests, all of them
// monotonic time in memory.
//
// One state machine has two faces. Members of the native protocol learn from the
// coordinator what to work on; those of Kafka's classic protocol agree among
// themselves. A group speaks one of the two at a time.
//
// Invariants:
//   - A partition has at most one holder among the native members of a group. It gets a
//     new one only after the old one said, under its newest member epoch, that it gave
//     the partition up, or after the old one was removed.
//   - A native member's epoch changes whenever its assignment does. Only a heartbeat
//     that carries the newest epoch gives anything up, so a delayed request cannot.
//   - A native member commits only what it holds, with an epoch not older than
//     the one under which it was given it; a classic member only in its generation.
//   - Nobody is expired before a leader has itself waited for a whole session timeout.
//   - A heartbeat that changes nothing writes nothing.
package group

import (
	"context"
	"hash/fnv"
	"time"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// State names, as DescribeGroup and ListGroups show them.
const (
	StateEmpty       = "empty"
	StateStable      = "stable"
	StateReconciling = "reconciling"
	StatePreparing   = "preparing-rebalance"
	StateCompleting  = "completing-rebalance"
	StateDead        = "dead"
)

// Protocol names.
const (
	ProtocolNone    = "" // only offsets, never a member
	ProtocolNative  = "native"
	ProtocolClassic = "classic"
)

// Config says how groups behave. A zero field means its default.
type Config struct {
	// BrokerID is shown as the coordinator of the groups led here.
	BrokerID int32
	// MinSessionTimeout and MaxSessionTimeout bound what a member may ask for (6 s, 30 min).
	MinSessionTimeout, MaxSessionTimeout time.Duration
	// DefaultSessionTimeout (45 s) and DefaultRebalanceTimeout (60 s) are for native members that ask for none.
	DefaultSessionTimeout, DefaultRebalanceTimeout time.Duration
	// HeartbeatInterval is told to native members (3 s); never more than a third of their session.
	HeartbeatInterval time.Duration
	// InitialRebalanceDelay lets the members of a new classic group gather; below zero: none (3 s).
	InitialRebalanceDelay time.Duration
	// MaxGroupSize bounds the members of a group (1000), MaxGroups the groups of one shard (10000).
	MaxGroupSize, MaxGroups int
	// MaxGroupPartitions bounds the partitions with a committed offset in one group (100000).
	MaxGroupPartitions int
	// OffsetRetention is how long an empty group keeps its offsets (7 days); below zero: for ever.
	OffsetRetention time.Duration
	// MaxMetadataBytes bounds the text of a committed offset (4096).
	MaxMetadataBytes int
	// SweepInterval is how often retention and topic changes are looked at (1 min).
	SweepInterval time.Duration
	// LagMetrics adds tidemark_group_lag and tidemark_group_lag_seconds per partition,
	// for at most LagMetricsPartitions partitions (1000) per scrape.
	LagMetrics           bool
	LagMetricsPartitions int
}

// Topic is what the coordinator needs to know of a topic.
type Topic struct {
	Name       string
	ID         [16]byte
	Partitions int32
	Internal   bool
}

// Metadata tells which topics exist. Both methods answer at once from local state.
type Metadata interface {
	Topics() []Topic
	Topic(name string) (Topic, bool)
}

// PartitionState is what lag is computed from.
type PartitionState struct {
	LogStart      record.Offset
	HighWatermark record.Offset
	// UnreadTimestamp is the timestamp (ms) of the first record at or after
	// the asked offset, -1 where there is none or it is not known.
	UnreadTimestamp int64
}

// Partitions asks a partition for its state; from is the committed offset.
type Partitions interface {
	State(ctx context.Context, topic string, partition int32, from record.Offset) (PartitionState, error)
}

// StateGroup is one replicated state machine, coord/i. *raftgroup.StateGroup is one.
type StateGroup interface {
	// Propose returns what Apply returned, or a refusal (NotLeaderOrFollower),
	// or an error whose outcome is unknown.
	Propose(ctx context.Context, command []byte) (result any, err error)
	// Read returns when everything acknowledged before the call has been applied here.
	Read(ctx context.Context) error
	// Leading answers at once; ok after an entry of the own term has committed.
	Leading() (term uint64, ok bool)
}

// StateMachine is what a state group replicates; raftgroup.StateMachine has the same methods.
type StateMachine interface {
	Apply(index uint64, command []byte) any
	Snapshot() ([]byte, error)
	Restore(snapshot []byte) error
}

// Shard returns which of n state groups coordinates a group. Changing it, or n, is a migration.
func Shard(group string, n int) int {
	h := fnv.New64a()
	h.Write([]byte(group))
	return int(h.Sum64() % uint64(n))
}
