package grpcapi

import (
	"context"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Replicas are the replicas of this broker; Over makes them of a replicas.Manager.
type Replicas interface {
	Produce(ctx context.Context, topic string, p int32, a partition.Append) (Pending, error)
	Find(topic string, p int32) (Replica, error)
}

// Pending is an append on its way; *partition.Pending is one.
type Pending interface {
	Done() <-chan struct{}
	Result(ctx context.Context) (partition.Appended, error)
}

// Replica is what is asked of a replica; *partition.Replica is one.
type Replica interface {
	View() partition.View
	Read(from record.Offset, maxBytes int) ([]record.Raw, partition.View, error)
	Notify(ch chan<- struct{}) (cancel func())
	Linearize(ctx context.Context) error
	OffsetForTime(ts int64) (record.Offset, int64, record.Epoch, error)
	EpochEnd(e record.Epoch) (record.Epoch, record.Offset, error)
	Trim(ctx context.Context, before record.Offset) (record.Offset, error)
	Stats() log.Stats
}

// Metadata is what this broker knows about its cluster; *controller.Controller is one.
type Metadata interface {
	Topics() []controller.Topic
	Topic(name string) (controller.Topic, bool)
	TopicConfigs(name string) ([]controller.ConfigEntry, error)
	Brokers() []controller.Broker
	ClusterID() string
	BrokerID() int32
	ControllerID() int32
	FeatureLevel() int32
}

// Topics changes topics and hands out producer ids; *controller.Controller is one.
type Topics interface {
	CreateTopic(ctx context.Context, want controller.NewTopic) (t controller.Topic, existed bool, err error)
	DeleteTopic(ctx context.Context, name string, ifExists, validateOnly bool) error
	AlterTopic(ctx context.Context, name string, set map[string]string, unset []string, validateOnly bool) error
	AddPartitions(ctx context.Context, name string, total int32, validateOnly bool) (controller.Topic, error)
	InitProducer(ctx context.Context) (id int64, epoch int16, err error)
}

// Groups coordinates consumers; *group.Coordinator is one.
type Groups interface {
	Heartbeat(ctx context.Context, r group.HeartbeatRequest) (group.HeartbeatResponse, error)
	Leave(ctx context.Context, r group.LeaveRequest) error
	CommitOffsets(ctx context.Context, r group.CommitRequest) ([]group.PartitionError, error)
	FetchOffsets(ctx context.Context, name string, partitions []group.TopicPartition) ([]group.CommittedOffset, error)
	List(ctx context.Context) ([]group.Listing, error)
	Describe(ctx context.Context, name string) (group.Description, error)
	Delete(ctx context.Context, name string) error
	DeleteOffsets(ctx context.Context, name string, partitions []group.TopicPartition) ([]group.PartitionError, error)
}

// Setting is one setting of this broker, as DescribeConfig shows it.
type Setting struct {
	Name, Value, Default, Origin, Doc string
	ReadOnly, Sensitive               bool
}

// Over makes Replicas of a manager whose methods return its own types.
func Over[P Pending, R Replica](m interface {
	Produce(ctx context.Context, topic string, p int32, a partition.Append) (P, error)
	Find(topic string, p int32) (R, error)
}) Replicas {
	return over[P, R]{m}
}

type over[P Pending, R Replica] struct {
	m interface {
		Produce(ctx context.Context, topic string, p int32, a partition.Append) (P, error)
		Find(topic string, p int32) (R, error)
	}
}

func (o over[P, R]) Produce(ctx context.Context, topic string, p int32, a partition.Append) (Pending, error) {
	pending, err := o.m.Produce(ctx, topic, p, a)
	if err != nil {
		return nil, err
	}
	return pending, nil
}

func (o over[P, R]) Find(topic string, p int32) (Replica, error) {
	r, err := o.m.Find(topic, p)
	if err != nil {
		return nil, err
	}
	return r, nil
}
