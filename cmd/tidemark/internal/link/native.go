package link

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/format"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/producer"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const clientID = "tidemark-cli"

type nativeProducer struct{ *producer.Producer }

func newNativeProducer(c Config, p ProducerConfig) (Producer, error) {
	acks, err := producer.ParseAcks(p.Acks)
	if err != nil {
		return nil, fail.With(fail.Usage, "", fmt.Errorf("--acks: %w", err))
	}
	codec, err := record.ParseCodec(p.Codec)
	if err != nil {
		return nil, fail.With(fail.Usage, "", fmt.Errorf("-z: %w", err))
	}
	opts := []producer.Option{
		producer.WithAcks(acks), producer.WithCodec(codec), producer.WithClientID(clientID),
		producer.WithLogger(c.Logger), producer.WithDeliveryTimeout(p.DeliveryTimeout),
		producer.WithLinger(p.Linger), producer.WithPartitioner(&partitioner{other: producer.DefaultPartitioner()}),
	}
	if p.BatchBytes > 0 {
		opts = append(opts, producer.WithBatchBytes(p.BatchBytes))
	}
	if p.BufferBytes > 0 {
		opts = append(opts, producer.WithBufferBytes(max(p.BufferBytes, 2*p.BatchBytes)))
	}
	if p.NotIdempotent {
		opts = append(opts, producer.WithoutIdempotence())
	}
	made, err := producer.New(c.Brokers, opts...)
	if err != nil {
		return nil, err
	}
	return nativeProducer{made}, nil
}

// partitioner takes the partition that a record names, else asks the other.
type partitioner struct{ other producer.Partitioner }

func (p *partitioner) Partition(r *producer.Record, partitions int32) int32 {
	if r.Partition != format.Unset {
		return r.Partition
	}
	return p.other.Partition(r, partitions)
}

func (p nativeProducer) Produce(ctx context.Context, r format.Record, done func(Result, error)) {
	out := producer.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}
	if r.Timestamp != format.Unset {
		out.Timestamp = time.UnixMilli(r.Timestamp)
	}
	p.ProduceFunc(ctx, out, func(res producer.Result, err error) {
		done(Result{res.Topic, res.Partition, int64(res.Offset), res.Timestamp.UnixMilli(), res.Duplicate}, err)
	})
}

type nativeConsumer struct {
	*consumer.Consumer
	group bool
}

func newNativeConsumer(ctx context.Context, c Config, o ConsumerConfig) (Consumer, error) {
	opts := []consumer.Option{consumer.WithClientID(clientID), consumer.WithLogger(c.Logger)}
	if o.Group != "" {
		opts = append(opts, consumer.WithGroup(o.Group), consumer.WithTopics(o.Topics...), consumer.WithManualCommit(),
			consumer.WithStart(position(o.Start)),
			consumer.OnRevoked(func(ctx context.Context, tps []consumer.TopicPartition) { o.Revoked(ctx, partitions(tps), false) }),
			consumer.OnLost(func(ctx context.Context, tps []consumer.TopicPartition) { o.Revoked(ctx, partitions(tps), true) }))
	}
	made, err := consumer.New(c.Brokers, opts...)
	if err != nil {
		return nil, err
	}
	if o.Group == "" {
		at := map[consumer.TopicPartition]consumer.Position{}
		for tp, offset := range o.Assigned {
			at[consumer.TopicPartition(tp)] = consumer.AtOffset(record.Offset(offset))
		}
		if err := made.Assign(ctx, at); err != nil {
			_ = made.Close(ctx) // the first error tells more
			return nil, err
		}
	}
	return nativeConsumer{made, o.Group != ""}, nil
}

func partitions(in []consumer.TopicPartition) []TP {
	out := make([]TP, len(in))
	for i, tp := range in {
		out[i] = TP(tp)
	}
	return out
}

func position(p offsets.Point) consumer.Position {
	switch p.Kind {
	case offsets.End:
		return consumer.AtEnd()
	case offsets.Exact:
		return consumer.AtOffset(record.Offset(p.N))
	case offsets.AfterStart:
		return consumer.AfterStart(p.N)
	case offsets.BeforeEnd:
		return consumer.BeforeEnd(p.N)
	case offsets.Time:
		return consumer.AtTime(p.T)
	default:
		return consumer.AtStart()
	}
}

func (c nativeConsumer) Poll(ctx context.Context) ([]format.Record, error) {
	in, err := c.Consumer.Poll(ctx, 0)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	out := make([]format.Record, len(in))
	for i, r := range in {
		out[i] = format.Record{
			Topic: r.Topic, Partition: r.Partition, Offset: int64(r.Offset), Epoch: int32(r.Epoch),
			Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value, Headers: r.Headers,
		}
	}
	return out, nil
}

func (c nativeConsumer) Assigned() map[TP]int64 {
	all := map[TP]int64{}
	for _, tp := range c.Assignment() {
		if o, ok := c.Position(tp); ok {
			all[TP(tp)] = int64(o)
		}
	}
	return all
}

func (c nativeConsumer) Commit(ctx context.Context, next map[TP]int64) error {
	if !c.group || len(next) == 0 {
		return nil
	}
	at := map[consumer.TopicPartition]record.Offset{}
	for tp, o := range next {
		at[consumer.TopicPartition(tp)] = record.Offset(o)
	}
	return c.CommitOffsets(ctx, at)
}

type nativeTopics struct{ *admin.Client }

func newNativeTopics(c Config) (Topics, error) {
	a, err := NewAdmin(c)
	return nativeTopics{a}, err
}

// NewAdmin returns the native admin client.
func NewAdmin(c Config) (*admin.Client, error) {
	if c.Protocol == "kafka" {
		return nil, fail.Usagef("--protocol kafka works with produce, consume, topic list, topic create and topic offsets")
	}
	return admin.New(c.Brokers, admin.WithClientID(clientID), admin.WithLogger(c.Logger), admin.WithRequestTimeout(c.Timeout))
}

func (n nativeTopics) Topics(ctx context.Context, names ...string) ([]Topic, error) {
	in, err := n.Client.Topics(ctx, names...)
	if err != nil {
		return nil, err
	}
	out := make([]Topic, 0, len(in))
	for _, t := range in {
		if t.Err != nil {
			return nil, fmt.Errorf("topic %s: %w", t.Name, t.Err)
		}
		out = append(out, topicOf(t))
	}
	return out, nil
}

func topicOf(t admin.Topic) Topic {
	out := Topic{Name: t.Name, Internal: t.Internal, Replicas: t.ReplicationFactor}
	for _, p := range t.Partitions {
		out.Partitions = append(out.Partitions, Partition{p.Partition, p.Leader, int32(p.LeaderEpoch), p.Replicas, p.ISR})
	}
	return out
}

func (n nativeTopics) Create(ctx context.Context, t NewTopic) (Topic, bool, error) {
	made, existed, err := n.CreateTopic(ctx, admin.NewTopic{
		Name: t.Name, Partitions: t.Partitions, ReplicationFactor: t.Replicas, Configs: t.Configs,
		IfNotExists: t.IfNotExists, ValidateOnly: t.ValidateOnly,
	})
	return topicOf(made), existed, err
}

func (n nativeTopics) Bounds(ctx context.Context, topic string) (map[int32]offsets.Bounds, error) {
	ranges, err := n.TopicOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	if len(ranges) == 0 {
		return nil, errs.Errorf(errs.UnknownTopicOrPartition, "topic %s: there is no such topic", topic)
	}
	all := map[int32]offsets.Bounds{}
	for _, r := range ranges {
		b := offsets.Bounds{Start: int64(r.Start), End: int64(r.End)}
		if r.Err != nil {
			b = offsets.Bounds{Err: fmt.Errorf("offsets of %s/%d: %w", topic, r.Partition, r.Err)}
		}
		all[r.Partition] = b
	}
	return all, nil
}

func (n nativeTopics) AtTime(ctx context.Context, topic string, at time.Time, bounds map[int32]offsets.Bounds) (map[int32]int64, error) {
	found, err := n.TopicOffsetsAt(ctx, topic, at)
	if err != nil {
		return nil, err
	}
	all := map[int32]int64{}
	for _, f := range found {
		if b, ok := bounds[f.Partition]; !ok || b.Err != nil {
			continue
		}
		if f.Err != nil {
			return nil, fmt.Errorf("offsets of %s/%d: %w", topic, f.Partition, f.Err)
		}
		all[f.Partition] = int64(f.Offset)
		if f.Offset < 0 {
			all[f.Partition] = bounds[f.Partition].End
		}
	}
	return all, nil
}
