// Package partition is one replicated log: a Raft group whose log is the
// partition's data log.
//
// A Replica appends, at the leader, and reads. What holds:
//
//   - LogStart <= HighWatermark <= LogEnd. What lies below the high watermark is
//     committed, is served, and never changes; offsets below it are dense.
//   - A verdict (appended, duplicate, refused) is taken when the entry is stored, in log order,
//     from state that is a function of the stored log alone. Every other replica
//     finds the same verdict for itself, and stops when it does not.
//   - Nobody is told anything that could still be undone, unless it asked for less: an
//     answer, a refusal too, waits until its entry has committed.
//   - acks=all waits for every in-sync replica, and asks for a majority and min.insync.replicas of them
//     before anything is appended. A follower that lags out of them holds nothing back any more.
//   - Every append is answered once: with the leader's ruling, as not done, or as
//     unknown when the term or the replica ends first.
//   - A start rereads what lies behind the last checkpoint, and retention keeps it.
//   - A follower that needs entries which the leader has given up is reset to the log's origin,
//     and gets everything that is retained. What it has acknowledged above is never taken from it.
//   - The first disk error ends the replica.
//
// docs/format/partition.md draws the envelope, the state and the checkpoint.
package partition

import (
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Config says which replica this is and where it lives.
type Config struct {
	Dir       string // of this replica alone
	Topic     log.UUID
	TopicName string // for messages and metrics only
	Partition int32
	// ID is broker/replica-UUID; it is the Raft address as well. The UUID is
	// new for each creation of a replica.
	ID raft.ServerID
	// Voters are the first members of the group. They are given only while the
	// assignment is new: Start forms the group with them. A replica that was
	// formed before is opened without them, and must find its log.
	Voters []raft.Server
	// Join says that the replica is new and becomes a member of a group that exists: it may be
	// without a log, and gets one from the leader. Once it has a vote it is opened without: a log
	// that is missing then has been lost, with what was acknowledged in it.
	Join        bool
	TopicConfig TopicConfig
}

// TopicConfig is the part of a topic's configuration that its replicas obey.
type TopicConfig struct {
	SegmentBytes    int64
	SegmentAge      time.Duration
	Retention       log.Retention
	MaxBatchBytes   int           // max.message.bytes; 0: Kafka's default
	LogAppendTime   bool          // message.timestamp.type
	TimestampBefore time.Duration // message.timestamp.before.max.ms; 0: no limit
	TimestampAfter  time.Duration // message.timestamp.after.max.ms; 0: no limit
	MinInsync       int           // min.insync.replicas; 0 means 1
	// Flush is commit (the default), interval or os. With commit an append is on disk
	// before it counts; with the others it is written, and the Flush method (interval) or the
	// operating system (os) brings it to the disk later.
	Flush         string
	FlushInterval time.Duration
	CleanupPolicy string // delete (the default), compact, or both
}

// Deps is what a replica depends on.
type Deps struct {
	FS     fsx.FS
	Clock  clock.Clock
	Logger *slog.Logger
	// Log is what the logs of a broker share: Budget, Files, Watchdog, Space,
	// Pool, Syncs, Metrics, IndexIntervalBytes. The replica sets the rest of it.
	Log log.Config
	// Stable keeps term and vote: one slot of the broker's store.
	Stable raft.StableStore
	// Transport of this group. Nil: the group has one member and needs none. Where it is a
	// raftgroup.Link the replica can be reset by its leader, see OnReset.
	Transport raft.Transport
	// Timing of the group; the zero Timing is raftgroup's default.
	Timing raftgroup.Timing
	// GroupMetrics is shared by the groups of a broker. Nil: none.
	GroupMetrics *raftgroup.Metrics
	// ISR knows the in-sync replicas. Nil: where Transport is a raftgroup.Link the replica finds out by
	// itself, and otherwise it is alone.
	ISR ISR
	// LagTimeMax is replica.lag.time.max.ms, for how long a follower that is behind counts as in sync; 0 means 2 s.
	LagTimeMax time.Duration
	// Metrics is shared by the replicas of a broker. Nil: none.
	Metrics *Metrics
	// OnLeadership, when not nil, is called each time this replica begins to lead (it has
	// committed in its term) or ceases to. It must not block, and must not call the replica.
	OnLeadership func(epoch record.Epoch, leads bool)
	// OnFatal is called once when this replica can no longer be trusted: the disk failed, the
	// log is damaged, or this replica and the leader decided differently.
	// It is called without locks, on a goroutine of its own; it must not wait for Stop.
	OnFatal func(error)
	// OnReset is called once when the leader has reset this replica: a new generation of it is on
	// disk, and this one answers nothing any more; or when a leadership transfer has wedged it. The
	// owner stops it, and opens and starts it again with the same Config without Voters. Called
	// like OnFatal, and instead of it; it may come before Start has returned.
	OnReset func()
}

// ISR is what the leader of a partition knows of its in-sync replicas. Its
// owner calls Replica.InSync when one of the answers has changed.
type ISR interface {
	// Size is how many replicas are in sync, the leader included.
	Size() int
	// Majority is how many make a majority of the voters, in sync or not.
	Majority() int
	// Reached tells how many replicas are in sync, and whether every one of them has stored all entries up to
	// index: on disk with flush=commit, and else as the topic wants it. Both are of one moment:
	// so many copies there are.
	Reached(index log.Index) (size int, all bool)
}

// alone is the ISR of a group of one.
type alone struct{}

func (alone) Size() int                     { return 1 }
func (alone) Majority() int                 { return 1 }
func (alone) Reached(log.Index) (int, bool) { return 1, true }

// The values of TopicConfig.Flush.
const (
	flushCommit   = "commit"
	flushInterval = "interval"
	flushOS       = "os"
)

const (
	// defaultMaxBatchBytes is Kafka's max.message.bytes.
	defaultMaxBatchBytes = 1048588
	// maxBatchBytes bounds what a topic may ask for: a frame of the log must hold it.
	maxBatchBytes = 64 << 20
)

func (c TopicConfig) withDefaults() *TopicConfig {
	if c.Flush != flushInterval && c.Flush != flushOS {
		c.Flush = flushCommit
	}
	if c.MaxBatchBytes <= 0 {
		c.MaxBatchBytes = defaultMaxBatchBytes
	}
	c.MaxBatchBytes = min(c.MaxBatchBytes, maxBatchBytes)
	c.MinInsync = max(c.MinInsync, 1)
	return &c
}

// retention is what the log may give up. What is only compacted keeps the newest
// record of each key for ever, so nothing goes by age or size.
func (c *TopicConfig) retention() log.Retention {
	if c.compacted() && !hasPolicy(c.CleanupPolicy, "delete") {
		return log.Retention{Age: -1, Bytes: -1}
	}
	return c.Retention
}

func (c *TopicConfig) compacted() bool { return hasPolicy(c.CleanupPolicy, "compact") }
