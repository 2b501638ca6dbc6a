package consumer

import (
	"context"
	"crypto/tls"
	"log/slog"
	"regexp"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/session"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Consistency is what a consumer asks of its reads.
type Consistency int32

const (
	// Leader reads what is committed, as the leader knows it.
	Leader = Consistency(tidemarkv1.Consistency_CONSISTENCY_LEADER)
	// Linearizable misses nothing that was acknowledged before the read began.
	Linearizable = Consistency(tidemarkv1.Consistency_CONSISTENCY_LINEARIZABLE)
	// Session waits until the token of WithNotBefore is reached.
	Session = Consistency(tidemarkv1.Consistency_CONSISTENCY_SESSION)
	// Bounded reads from a replica that is at most WithMaxStaleness behind.
	Bounded = Consistency(tidemarkv1.Consistency_CONSISTENCY_BOUNDED)
	// Eventual reads from any replica.
	Eventual = Consistency(tidemarkv1.Consistency_CONSISTENCY_EVENTUAL)
)

// ResetPolicy says what happens when a position does not exist any more: below the log
// start, beyond the end, or cut off by a truncation.
type ResetPolicy int

const (
	// ResetError stops the partition; Poll returns an *OutOfRangeError or
	// *TruncatedError, and Seek starts the partition again.
	ResetError ResetPolicy = iota
	// ResetEarliest goes on at the log start (after a truncation: where the histories part).
	ResetEarliest
	// ResetLatest goes on at the end (after a truncation: where the histories part).
	ResetLatest
)

// Option configures a Consumer.
type Option func(*config)

type config struct {
	client            client.Config
	group             string
	topics            []string
	topicRegex        string
	instanceID        string
	rack              string
	start             Position
	reset             ResetPolicy
	autoCommit        time.Duration // 0: off
	consistency       Consistency
	maxStaleness      time.Duration
	notBefore         session.Token
	prefetchBytes     int64
	maxPartitionBytes int
	minBytes          int
	maxWait           time.Duration
	sessionTimeout    time.Duration
	rebalanceTimeout  time.Duration
	maxPollInterval   time.Duration
	onAssigned        func(context.Context, []TopicPartition)
	onRevoked         func(context.Context, []TopicPartition)
	onLost            func(context.Context, []TopicPartition)
}

func defaults() config {
	return config{
		client:            client.DefaultConfig(),
		start:             AtStart(),
		autoCommit:        5 * time.Second,
		prefetchBytes:     16 << 20,
		maxPartitionBytes: 1 << 20,
		minBytes:          1,
		maxWait:           500 * time.Millisecond,
		sessionTimeout:    10 * time.Second,
		rebalanceTimeout:  time.Minute,
		maxPollInterval:   5 * time.Minute,
	}
}

// WithGroup makes the consumer a member of a consumer group: it commits offsets
// there, and with WithTopics or WithTopicRegex the group shares out the partitions.
func WithGroup(name string) Option { return func(c *config) { c.group = name } }

// WithTopics subscribes to topics. With a group its members share the partitions; without
// one, the consumer reads all partitions of the topics.
func WithTopics(topics ...string) Option { return func(c *config) { c.topics = topics } }

// WithTopicRegex subscribes to every topic whose whole name matches (RE2). Needs a group.
func WithTopicRegex(re string) Option { return func(c *config) { c.topicRegex = re } }

// WithInstanceID makes the member static: when it comes back within the session
// timeout under the same id, it gets its partitions back without a rebalance.
func WithInstanceID(id string) Option { return func(c *config) { c.instanceID = id } }

// WithRack tells where the consumer runs, so that assignment and reads can stay near.
func WithRack(rack string) Option { return func(c *config) { c.rack = rack } }

// WithClientID names this client in the broker's logs. Default "tidemark-go".
func WithClientID(id string) Option { return func(c *config) { c.client.ClientID = id } }

// WithLogger sets where the consumer reports reconnects and rebalances. Default: nowhere.
func WithLogger(logger *slog.Logger) Option { return func(c *config) { c.client.Logger = logger } }

// WithTLS turns on TLS. Default: plain text.
func WithTLS(t *tls.Config) Option { return func(c *config) { c.client.TLS = t } }

// WithStart is where a partition is read from when nothing is committed for
// it. Default AtStart.
func WithStart(p Position) Option { return func(c *config) { c.start = p } }

// WithReset says what happens when a position does not exist any more. Default ResetError.
func WithReset(p ResetPolicy) Option { return func(c *config) { c.reset = p } }

// WithAutoCommit commits every interval. Only records that Poll returned, and
// that a later Poll call showed to be finished, are committed: each record is
// processed at least once. This is the default, with 5 s, for consumers with a group.
func WithAutoCommit(interval time.Duration) Option {
	return func(c *config) { c.autoCommit = interval }
}

// WithManualCommit leaves committing to Commit and CommitRecords.
func WithManualCommit() Option { return func(c *config) { c.autoCommit = 0 } }

// WithConsistency sets the read level. Default Leader.
func WithConsistency(l Consistency) Option { return func(c *config) { c.consistency = l } }

// WithMaxStaleness bounds how old reads may be, with level Bounded.
func WithMaxStaleness(d time.Duration) Option { return func(c *config) { c.maxStaleness = d } }

// WithNotBefore sets level Session: reads wait until they see everything that the
// token has seen. Results of a producer and consumers give tokens.
func WithNotBefore(t session.Token) Option {
	return func(c *config) { c.notBefore, c.consistency = t.Clone(), Session }
}

// WithPrefetchBytes bounds the bytes that are fetched ahead of Poll, over all
// partitions; one batch per broker may come on top. Default 16 MiB.
func WithPrefetchBytes(n int64) Option { return func(c *config) { c.prefetchBytes = n } }

// WithMaxPartitionBytes bounds one response of one partition; a larger batch
// comes alone. Default 1 MiB.
func WithMaxPartitionBytes(n int) Option { return func(c *config) { c.maxPartitionBytes = n } }

// WithMinBytes lets the broker wait until it has n bytes for a response, at
// most as long as WithMaxWait. Default 1.
func WithMinBytes(n int) Option { return func(c *config) { c.minBytes = n } }

// WithMaxWait is how long the broker gathers WithMinBytes. Default 500 ms.
func WithMaxWait(d time.Duration) Option { return func(c *config) { c.maxWait = d } }

// WithSessionTimeout is how long a member may be silent before the group goes on without it.
// Default 10 s.
func WithSessionTimeout(d time.Duration) Option { return func(c *config) { c.sessionTimeout = d } }

// WithRebalanceTimeout is how long a member may take to give up a partition. Default 1 min.
func WithRebalanceTimeout(d time.Duration) Option {
	return func(c *config) { c.rebalanceTimeout = d }
}

// WithMaxPollInterval is how long a member may go without calling Poll; then it
// leaves the group, and joins again at the next Poll. Default 5 min.
func WithMaxPollInterval(d time.Duration) Option { return func(c *config) { c.maxPollInterval = d } }

// OnAssigned is called from Poll when partitions were added, before any record of theirs
// is returned. It may Seek.
func OnAssigned(f func(ctx context.Context, added []TopicPartition)) Option {
	return func(c *config) { c.onAssigned = f }
}

// OnRevoked is called from Poll or Close before partitions are given up. It may commit:
// no other member has them yet. Records that Poll returned earlier count as processed.
func OnRevoked(f func(ctx context.Context, revoked []TopicPartition)) Option {
	return func(c *config) { c.onRevoked = f }
}

// OnLost is called from Poll or Close when the group went on without this member: others may
// have the partitions already, and commits for them fail.
func OnLost(f func(ctx context.Context, lost []TopicPartition)) Option {
	return func(c *config) { c.onLost = f }
}

// WithRetryBackoff sets the pause before a retry: it doubles from min to max,
// with jitter. Default 20 ms to 1 s.
func WithRetryBackoff(min, max time.Duration) Option {
	return func(c *config) { c.client.Backoff = client.Backoff{Min: min, Max: max} }
}

func (c *config) validate() error {
	switch {
	case c.topicRegex != "" && c.group == "":
		return errs.Errorf(errs.InvalidConfig, "a subscription by regular expression needs a group; use WithGroup")
	case c.instanceID != "" && c.group == "":
		return errs.Errorf(errs.InvalidConfig, "an instance id belongs to a group; use WithGroup")
	case c.prefetchBytes <= 0, c.maxPartitionBytes <= 0, c.minBytes < 0, c.maxWait < 0, c.autoCommit < 0:
		return errs.Errorf(errs.InvalidConfig, "consumer: prefetch and partition bytes must be above zero; min bytes, max wait and the commit interval not below")
	case c.sessionTimeout <= 0, c.rebalanceTimeout <= 0, c.maxPollInterval <= 0:
		return errs.Errorf(errs.InvalidConfig, "consumer: the session timeout, rebalance timeout and poll interval must be above zero")
	case c.consistency < Leader || c.consistency > Eventual:
		return errs.Errorf(errs.InvalidConfig, "consistency %d is unknown; use one of the constants", c.consistency)
	}
	if c.topicRegex != "" {
		if _, err := regexp.Compile(c.topicRegex); err != nil {
			return errs.Errorf(errs.InvalidConfig, "topic regex: %w", err)
		}
	}
	return nil
}
