// Package admin manages a Tidemark cluster: topics, consumer groups, settings.
//
// Calls that only ask are retried while the cluster cannot answer, until their context
// ends. Calls that change something are retried only where the first try
// certainly did nothing; else their error says that the outcome is unknown (errs.OutcomeUnknown).
// A Client is safe for concurrent use.
package admin

import (
	"time"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// Broker is one broker of the cluster.
type Broker struct {
	ID           int32
	UUID         string
	Rack         string
	GRPCAddress  string
	KafkaAddress string // empty while no Kafka listener runs
	Version      string
}

// Cluster tells about the cluster.
type Cluster struct {
	ID              string
	ControllerID    int32
	FeatureLevel    int32
	AnsweringBroker int32
	Brokers         []Broker
}

// Topic is one topic with its partitions.
type Topic struct {
	Name              string
	ID                [16]byte
	Internal          bool
	ReplicationFactor int
	Partitions        []Partition
	Err               error // why the topic could not be described
}

// Partition tells who holds a partition.
type Partition struct {
	Partition   int32
	Leader      int32 // -1: none known
	LeaderEpoch record.Epoch
	Replicas    []int32
	ISR         []int32
}

// TopicDetail is a topic with its logs and settings.
type TopicDetail struct {
	Topic
	Logs    []PartitionLog
	Configs []Config
}

// PartitionLog tells about the log of one partition.
type PartitionLog struct {
	Partition      int32
	LogStartOffset record.Offset
	HighWatermark  record.Offset
	LogEndOffset   record.Offset
	SizeBytes      int64
	Segments       int
	Err            error
}

// Config is one setting with its value and where that comes from.
type Config struct {
	Name, Value, Default string
	Origin               string // default, topic, cluster, file, env, flag
	ReadOnly             bool
	Sensitive            bool // the value is masked
	Documentation        string
}

// NewTopic describes a topic to create.
type NewTopic struct {
	Name              string
	Partitions        int               // 0: the broker's default
	ReplicationFactor int               // 0: the broker's default
	Configs           map[string]string // Kafka's names
	IfNotExists       bool
	ValidateOnly      bool
}

// Change is a change to a topic's settings.
type Change struct {
	Set          map[string]string
	Unset        []string // back to the default
	ValidateOnly bool
}

// Range is the offsets that a partition holds: [Start, End).
type Range struct {
	Partition  int32
	Start, End record.Offset
	Err        error
}

// TimeOffset is the first record at or after a time.
type TimeOffset struct {
	Partition int32
	Offset    record.Offset // -1: no such record
	Timestamp time.Time
	Err       error
}

// Trimmed is the log start offset of a partition after a trim.
type Trimmed struct {
	Partition      int32
	LogStartOffset record.Offset
	Err            error
}

// TopicPartition names one partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// GroupSummary is one consumer group in a list.
type GroupSummary struct {
	Name        string
	State       string // empty, stable, reconciling, preparing-rebalance, completing-rebalance, dead
	Protocol    string // native, classic
	Members     int
	Coordinator int32
}

// Group is one consumer group with members, offsets and lag.
type Group struct {
	GroupSummary
	Generation int32
	MemberList []Member
	Partitions []GroupPartition
}

// Lag is the sum of the known lags of the group's partitions, in records.
func (g Group) Lag() int64 {
	var sum int64
	for _, p := range g.Partitions {
		sum += max(p.Lag, 0)
	}
	return sum
}

// Member is one member of a group.
type Member struct {
	ID, InstanceID, ClientID, Host string
	Epoch                          int32
	Assigned, Owned                []TopicPartition // what it shall work on, and what it said it works on
	Topics                         []string
}

// GroupPartition is a group's place in one partition.
type GroupPartition struct {
	TopicPartition
	Committed      record.Offset // -1: nothing committed
	Metadata       string
	CommittedAt    time.Time
	LogStartOffset record.Offset
	HighWatermark  record.Offset
	Lag            int64         // records; -1 where nothing is committed
	LagTime        time.Duration // age of the first unread record; -1 unknown
	Member         string
	Err            error
}

// ResetTo says where a group's offsets go.
type ResetTo struct {
	kind resetKind
	n    int64
}

type resetKind int

const (
	resetStart resetKind = iota
	resetEnd
	resetOffset
	resetTime
	resetShift
	resetCurrent
)

// ToStart resets to the oldest records.
func ToStart() ResetTo { return ResetTo{kind: resetStart} }

// ToEnd resets to the end.
func ToEnd() ResetTo { return ResetTo{kind: resetEnd} }

// ToOffset resets to offset o, clamped to what the partition holds.
func ToOffset(o record.Offset) ResetTo { return ResetTo{resetOffset, int64(o)} }

// ToTime resets to the first record at or after t, or the end.
func ToTime(t time.Time) ResetTo { return ResetTo{resetTime, t.UnixMilli()} }

// Shift moves by n records, back where n is negative, clamped to what the partition holds.
func Shift(n int64) ResetTo { return ResetTo{resetShift, n} }

// ToCurrent keeps the offsets, clamped to what the partition holds.
func ToCurrent() ResetTo { return ResetTo{kind: resetCurrent} }

// ResetPlan is what a reset would do. ExecuteReset does it.
type ResetPlan struct {
	Group string
	Moves []ResetMove
}

// ResetMove is the move of one partition.
type ResetMove struct {
	TopicPartition
	From record.Offset // -1: nothing committed
	To   record.Offset
	Lag  int64 // afterwards
	Err  error // why this partition cannot be moved
}

// PartitionResult is the outcome for one partition where a call covers several.
type PartitionResult struct {
	TopicPartition
	Err error
}
