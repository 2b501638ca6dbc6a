// Package link is what the commands need of a cluster, over either protocol:
// the native one (the Go SDK) and Kafka's (franz-go, for any Kafka cluster).
//
// Both sides behave alike: a record handed to a Producer gets exactly one
// answer, and a Consumer reads each partition in offset order.
package link

import (
	"context"
	"log/slog"
	"time"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/format"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
)

// Config says how to reach the cluster.
type Config struct {
	Brokers  []string
	Protocol string // native, kafka
	Timeout  time.Duration
	Logger   *slog.Logger
}

// TP names a partition.
type TP struct {
	Topic     string
	Partition int32
}

// Result is where a record went.
type Result struct {
	Topic     string
	Partition int32
	Offset    int64
	Timestamp int64
	Duplicate bool
}

// ProducerConfig says how records are written.
type ProducerConfig struct {
	Acks            string
	Codec           string
	Linger          time.Duration
	BatchBytes      int
	BufferBytes     int // of records without an answer; 0: the default
	DeliveryTimeout time.Duration
	NotIdempotent   bool
}

// Producer writes records.
type Producer interface {
	// Produce hands a record over; it may wait for space until ctx ends. done is called
	// once, in order per partition, and must not block.
	Produce(ctx context.Context, r format.Record, done func(Result, error))
	// Close waits for every answer; when ctx ends first, the rest fail.
	Close(ctx context.Context) error
}

// ConsumerConfig says what is read.
type ConsumerConfig struct {
	Topics   []string
	Group    string // with a group its members share the partitions
	Start    offsets.Point
	Assigned map[TP]int64 // without a group: where each partition begins
	// Revoked is called inside Poll or Close before partitions are given up (lost:
	// after they were taken). It may commit.
	Revoked func(ctx context.Context, partitions []TP, lost bool)
}

// Consumer reads records.
type Consumer interface {
	// Poll waits for records until ctx ends, and then returns none.
	Poll(ctx context.Context) ([]format.Record, error)
	// Assigned is what the consumer reads now, and the next offset of each.
	Assigned() map[TP]int64
	// Commit stores offsets of the next records to read. Without a group it does nothing.
	Commit(ctx context.Context, next map[TP]int64) error
	Close(ctx context.Context) error
}

// Topic is one topic.
type Topic struct {
	Name       string
	Internal   bool
	Replicas   int
	Partitions []Partition
}

// Partition is who holds a partition.
type Partition struct {
	Partition, Leader, Epoch int32
	Replicas, ISR            []int32
}

// NewTopic is a topic to create.
type NewTopic struct {
	Name         string
	Partitions   int
	Replicas     int
	Configs      map[string]string
	IfNotExists  bool
	ValidateOnly bool
}

// Topics lists and creates topics and finds offsets.
type Topics interface {
	Topics(ctx context.Context, names ...string) ([]Topic, error)
	Create(ctx context.Context, t NewTopic) (topic Topic, existed bool, err error)
	// Bounds is what each partition of a topic holds. One without a leader has its error.
	Bounds(ctx context.Context, topic string) (map[int32]offsets.Bounds, error)
	// AtTime is the first offset at or after a time, the end where there is none, of each
	// partition whose bounds are known.
	AtTime(ctx context.Context, topic string, at time.Time, bounds map[int32]offsets.Bounds) (map[int32]int64, error)
	Close() error
}

// NewProducer returns a producer of the protocol in c.
func NewProducer(c Config, p ProducerConfig) (Producer, error) {
	if c.Protocol == "kafka" {
		return newKafkaProducer(c, p)
	}
	return newNativeProducer(c, p)
}

// NewConsumer returns a consumer of the protocol in c.
func NewConsumer(ctx context.Context, c Config, o ConsumerConfig) (Consumer, error) {
	if c.Protocol == "kafka" {
		return newKafkaConsumer(c, o)
	}
	return newNativeConsumer(ctx, c, o)
}

// NewTopics returns the topics of the protocol in c.
func NewTopics(c Config) (Topics, error) {
	if c.Protocol == "kafka" {
		return newKafkaTopics(c)
	}
	return newNativeTopics(c)
}
