package raftgroup

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/log"
)

const (
	// maxAppendEntries bounds a group commit and one AppendEntries request.
	maxAppendEntries = 64
	// keepAll makes Raft's own retention a no-op: topic policy trims data groups.
	keepAll = math.MaxUint64 / 2
	// maxCommit is the longest CommitTimeout: it is Raft's retry timer after a
	// failed append too, and cannot be changed while a group runs.
	maxCommit = time.Second
	// never is the interval of timers that shall not matter.
	never = 24 * time.Hour
)

// Config describes one group.
type Config struct {
	// Name stands in logs: "orders/3" or "meta".
	Name string
	// ID is this replica's identity in the group and, as an opaque name, its
	// address. It is new for each creation of a replica.
	ID     raft.ServerID
	Timing Timing // the zero Timing means DefaultTiming
	Logger *slog.Logger
	// Metrics may be shared by all groups of a broker, or nil.
	Metrics *Metrics
	// Stalled, when not nil, is how long the oldest disk call under way has been taking, of those that
	// the group does not make itself.
	Stalled func() time.Duration
	// Watchdog ends the process when a disk call of the group hangs; nil: nobody does.
	Watchdog *log.Watchdog
	// OnFailure is called once, on a goroutine of the group, when a disk error
	// has fenced the group. It must not wait for Stop. See Group.Failed.
	OnFailure func(error)
	// OnWedged, when not nil, is called once when a leadership transfer has left Raft refusing all entries. The owner stops the
	// group and starts it anew. It must not block, nor wait for Stop.
	OnWedged func()
	// trailing is how many entries Raft keeps behind a snapshot; 0 keeps all.
	trailing uint64
}

// Timing holds Raft's timers. They are long, because idle groups pay for short
// ones; failure hints, not timers, make elections quick.
type Timing struct {
	Heartbeat time.Duration // without contact for so long a follower campaigns
	Election  time.Duration // how long a candidate waits for votes
	Lease     time.Duration // without a majority's contact for so long a leader steps down
	Commit    time.Duration // an idle leader tells followers the commit index so often
}

// DefaultTiming suits a broker with many groups.
func DefaultTiming() Timing {
	return Timing{Heartbeat: 5 * time.Second, Election: 5 * time.Second, Lease: 3 * time.Second, Commit: time.Second}
}

// Validate checks what hashicorp/raft does not: with a lease that is short
// against the other timers every leader steps down for want of contact,
// although nothing is wrong.
func (t Timing) Validate() error {
	switch {
	case t.Heartbeat <= 0 || t.Election <= 0 || t.Lease <= 0 || t.Commit <= 0:
		return fmt.Errorf("raft timing: every timer must be positive, have %+v", t)
	case t.Commit > maxCommit:
		return fmt.Errorf("raft timing: commit %v is above %v, at which a failed append is retried too late", t.Commit, maxCommit)
	case t.Lease <= t.Heartbeat/5:
		return fmt.Errorf("raft timing: lease %v must be above a fifth of heartbeat %v, or leaders step down while idle", t.Lease, t.Heartbeat)
	case t.Lease <= 2*t.Commit:
		return fmt.Errorf("raft timing: lease %v must be above twice commit %v, or leaders step down while idle", t.Lease, t.Commit)
	case t.Lease > t.Heartbeat:
		return fmt.Errorf("raft timing: lease %v must not be above heartbeat %v, or two leaders overlap", t.Lease, t.Heartbeat)
	case t.Election < t.Heartbeat:
		return fmt.Errorf("raft timing: election %v must not be below heartbeat %v", t.Election, t.Heartbeat)
	}
	return nil
}

// prepare checks a configuration and fills in what was left out. The caller's
// copy is not changed.
func (c Config) prepare() (Config, error) {
	if c.ID == "" {
		return c, errors.New("raft group: no ID")
	}
	if c.Timing == (Timing{}) {
		c.Timing = DefaultTiming()
	}
	if err := c.Timing.Validate(); err != nil {
		return c, fmt.Errorf("group %s: %w", c.Name, err)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.trailing == 0 {
		c.trailing = keepAll
	}
	c.Logger = c.Logger.With("group", c.Name)
	return c, nil
}

// raft is the configuration that hashicorp/raft gets.
func (c Config) raft(notify chan<- bool) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = c.ID
	rc.HeartbeatTimeout = c.Timing.Heartbeat
	rc.ElectionTimeout = c.Timing.Election
	rc.LeaderLeaseTimeout = c.Timing.Lease
	rc.CommitTimeout = c.Timing.Commit
	rc.MaxAppendEntries = maxAppendEntries
	// Group commit: four times the throughput. A request may then be taken
	// into the queue and outlive the term, which the callers know.
	rc.BatchApplyCh = true
	rc.TrailingLogs = c.trailing
	// Snapshots are taken by their owner, never by Raft's own timer.
	rc.SnapshotThreshold = math.MaxUint64
	rc.SnapshotInterval = never
	// The owners restore their state before Start.
	rc.NoSnapshotRestoreOnStart = true
	rc.NoLegacyTelemetry = true
	// It blocks NewRaft when much is committed, and loses the configuration.
	rc.RestoreCommittedLogs = false
	rc.PreVoteDisabled = false
	// A shutdown that Raft starts by itself cannot be waited for: the second
	// call of Shutdown returns at once, and the log would be closed under
	// running goroutines. A removed replica becomes a quiet follower instead,
	// until its owner stops it.
	rc.ShutdownOnRemove = false
	rc.NotifyCh = notify
	rc.Logger = newRaftLogger(c.Logger)
	return rc
}
