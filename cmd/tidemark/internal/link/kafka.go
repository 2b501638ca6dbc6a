package link

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/format"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func kafkaOptions(c Config, more ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.ClientID(clientID), kgo.RetryTimeout(c.Timeout)}, more...)
}

// coded gives an error of the Kafka client our code, which has the same number.
func coded(err error) error {
	var ke *kerr.Error
	if errors.As(err, &ke) {
		return errs.Errorf(errs.Code(ke.Code), "%s", strings.TrimSpace(ke.Description))
	}
	return err
}

type kafkaProducer struct{ *kgo.Client }

func newKafkaProducer(c Config, p ProducerConfig) (Producer, error) {
	opts := []kgo.Opt{
		kgo.RecordDeliveryTimeout(p.DeliveryTimeout), kgo.ProducerLinger(p.Linger),
		kgo.RecordPartitioner(keptPartitions{kgo.StickyKeyPartitioner(nil)}),
		kgo.UnknownTopicRetries(3),
	}
	switch p.Acks {
	case "all", "-1":
	case "1", "leader":
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	case "0", "none":
		opts = append(opts, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	default:
		return nil, fail.Usagef("--acks %s: with --protocol kafka want all, 1 or 0", p.Acks)
	}
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	codec, ok := codecs[p.Codec]
	if !ok {
		return nil, fail.Usagef("-z %s: want none, gzip, snappy, lz4 or zstd", p.Codec)
	}
	opts = append(opts, kgo.ProducerBatchCompression(codec))
	if p.BatchBytes > 0 {
		opts = append(opts, kgo.ProducerBatchMaxBytes(int32(min(p.BatchBytes, 64<<20))))
	}
	if p.BufferBytes > 0 {
		opts = append(opts, kgo.MaxBufferedBytes(p.BufferBytes))
	}
	if p.NotIdempotent && (p.Acks == "all" || p.Acks == "-1") {
		opts = append(opts, kgo.DisableIdempotentWrite())
	}
	cl, err := kgo.NewClient(kafkaOptions(c, opts...)...)
	return kafkaProducer{cl}, err
}

// keptPartitions takes the partition that a record names, else asks the other.
type keptPartitions struct{ other kgo.Partitioner }

func (k keptPartitions) ForTopic(topic string) kgo.TopicPartitioner {
	return keptPartition{k.other.ForTopic(topic)}
}

type keptPartition struct{ kgo.TopicPartitioner }

func (k keptPartition) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition != format.Unset || k.TopicPartitioner.RequiresConsistency(r)
}

func (k keptPartition) Partition(r *kgo.Record, n int) int {
	if r.Partition != format.Unset {
		return int(r.Partition)
	}
	return k.TopicPartitioner.Partition(r, n)
}

func (p kafkaProducer) Produce(ctx context.Context, r format.Record, done func(Result, error)) {
	out := &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
	if r.Timestamp != format.Unset {
		out.Timestamp = time.UnixMilli(r.Timestamp)
	}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	p.Client.Produce(ctx, out, func(res *kgo.Record, err error) {
		done(Result{Topic: res.Topic, Partition: res.Partition, Offset: res.Offset, Timestamp: res.Timestamp.UnixMilli()}, coded(err))
	})
}

func (p kafkaProducer) Close(ctx context.Context) error {
	err := p.Flush(ctx)
	p.Client.Close()
	return err
}

type kafkaConsumer struct {
	*kgo.Client
	group bool
	next  map[TP]int64 // without a group: the next offset of each partition
}

func newKafkaConsumer(c Config, o ConsumerConfig) (Consumer, error) {
	var opts []kgo.Opt
	next := map[TP]int64{}
	if o.Group != "" {
		start, err := kafkaStart(o.Start)
		if err != nil {
			return nil, err
		}
		given := func(lost bool) func(context.Context, *kgo.Client, map[string][]int32) {
			return func(ctx context.Context, _ *kgo.Client, gone map[string][]int32) {
				var tps []TP
				for topic, ps := range gone {
					for _, p := range ps {
						tps = append(tps, TP{topic, p})
						delete(next, TP{topic, p})
					}
				}
				o.Revoked(ctx, tps, lost)
			}
		}
		opts = append(opts, kgo.ConsumerGroup(o.Group), kgo.ConsumeTopics(o.Topics...), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(start),
			kgo.BlockRebalanceOnPoll(), kgo.OnPartitionsRevoked(given(false)), kgo.OnPartitionsLost(given(true)))
	} else {
		at := map[string]map[int32]kgo.Offset{}
		for tp, offset := range o.Assigned {
			if at[tp.Topic] == nil {
				at[tp.Topic] = map[int32]kgo.Offset{}
			}
			at[tp.Topic][tp.Partition] = kgo.NewOffset().At(offset)
			next[tp] = offset
		}
		opts = append(opts, kgo.ConsumePartitions(at))
	}
	cl, err := kgo.NewClient(kafkaOptions(c, opts...)...)
	return &kafkaConsumer{cl, o.Group != "", next}, err
}

func kafkaStart(p offsets.Point) (kgo.Offset, error) {
	switch p.Kind {
	case offsets.Start, offsets.Committed:
		return kgo.NewOffset().AtStart(), nil
	case offsets.End:
		return kgo.NewOffset().AtEnd(), nil
	case offsets.Exact:
		return kgo.NewOffset().At(p.N), nil
	case offsets.AfterStart:
		return kgo.NewOffset().AtStart().Relative(p.N), nil
	case offsets.BeforeEnd:
		return kgo.NewOffset().AtEnd().Relative(-p.N), nil
	default:
		return kgo.NewOffset().AfterMilli(p.T.UnixMilli()), nil
	}
}

func (c *kafkaConsumer) Poll(ctx context.Context) ([]format.Record, error) {
	if c.group {
		c.AllowRebalance() // callbacks run while this goroutine waits in Poll
	}
	fetches := c.PollRecords(ctx, 5000)
	if ctx.Err() != nil && fetches.NumRecords() == 0 {
		return nil, nil
	}
	for _, e := range fetches.Errors() {
		return nil, fmt.Errorf("%s/%d: %w", e.Topic, e.Partition, coded(e.Err))
	}
	var out []format.Record
	fetches.EachRecord(func(r *kgo.Record) {
		rec := format.Record{
			Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Epoch: r.LeaderEpoch,
			Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value,
		}
		for _, h := range r.Headers {
			rec.Headers = append(rec.Headers, record.Header{Key: h.Key, Value: h.Value})
		}
		c.next[TP{r.Topic, r.Partition}] = r.Offset + 1
		out = append(out, rec)
	})
	return out, nil
}

func (c *kafkaConsumer) Assigned() map[TP]int64 { return c.next }

func (c *kafkaConsumer) Commit(ctx context.Context, next map[TP]int64) error {
	if !c.group || len(next) == 0 {
		return nil
	}
	at := map[string]map[int32]kgo.EpochOffset{}
	for tp, o := range next {
		if at[tp.Topic] == nil {
			at[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		at[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: o}
	}
	var failed error
	c.CommitOffsetsSync(ctx, at, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failed = err
		if resp == nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				failed = errors.Join(failed, coded(kerr.ErrorForCode(p.ErrorCode)))
			}
		}
	})
	return failed
}

func (c *kafkaConsumer) Close(context.Context) error {
	if c.group {
		c.CloseAllowingRebalance()
	} else {
		c.Client.Close()
	}
	return nil
}

type kafkaTopics struct {
	*kgo.Client
	timeout time.Duration
}

func newKafkaTopics(c Config) (Topics, error) {
	cl, err := kgo.NewClient(kafkaOptions(c)...)
	return kafkaTopics{cl, c.Timeout}, err
}

func (k kafkaTopics) Close() error { k.Client.Close(); return nil }

func (k kafkaTopics) Topics(ctx context.Context, names ...string) ([]Topic, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, n := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(n)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, k.Client)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", coded(err))
	}
	var out []Topic
	for _, t := range resp.Topics {
		name := ""
		if t.Topic != nil {
			name = *t.Topic
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, fmt.Errorf("topic %s: %w", name, coded(err))
		}
		topic := Topic{Name: name, Internal: t.IsInternal}
		for _, p := range t.Partitions {
			topic.Replicas = len(p.Replicas)
			topic.Partitions = append(topic.Partitions, Partition{p.Partition, p.Leader, p.LeaderEpoch, p.Replicas, p.ISR})
		}
		out = append(out, topic)
	}
	return out, nil
}

func (k kafkaTopics) Create(ctx context.Context, t NewTopic) (Topic, bool, error) {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.ValidateOnly = t.ValidateOnly
	req.TimeoutMillis = int32(k.timeout.Milliseconds())
	one := kmsg.NewCreateTopicsRequestTopic()
	one.Topic, one.NumPartitions, one.ReplicationFactor = t.Name, -1, -1
	if t.Partitions > 0 {
		one.NumPartitions = int32(t.Partitions)
	}
	if t.Replicas > 0 {
		one.ReplicationFactor = int16(t.Replicas)
	}
	for name, value := range t.Configs {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = name, kmsg.StringPtr(value)
		one.Configs = append(one.Configs, c)
	}
	req.Topics = append(req.Topics, one)
	resp, err := req.RequestWith(ctx, k.Client)
	if err != nil {
		return Topic{}, false, fmt.Errorf("create topic %q: %w", t.Name, coded(err))
	}
	existed := false
	for _, r := range resp.Topics {
		err := kerr.ErrorForCode(r.ErrorCode)
		if errors.Is(err, kerr.TopicAlreadyExists) && t.IfNotExists {
			existed, err = true, nil
		}
		if err != nil {
			return Topic{}, false, fmt.Errorf("create topic %q: %w", t.Name, coded(err))
		}
	}
	if t.ValidateOnly {
		return Topic{Name: t.Name, Replicas: t.Replicas, Partitions: make([]Partition, max(t.Partitions, 1))}, existed, nil
	}
	made, err := k.Topics(ctx, t.Name)
	if err != nil || len(made) == 0 {
		return Topic{Name: t.Name}, existed, err
	}
	return made[0], existed, nil
}

func (k kafkaTopics) Bounds(ctx context.Context, topic string) (map[int32]offsets.Bounds, error) {
	starts, noStart, err := k.list(ctx, topic, -2)
	if err != nil {
		return nil, err
	}
	ends, noEnd, err := k.list(ctx, topic, -1)
	if err != nil {
		return nil, err
	}
	all := map[int32]offsets.Bounds{}
	for p, start := range starts {
		all[p] = offsets.Bounds{Start: start, End: ends[p]}
	}
	for _, failed := range []map[int32]error{noStart, noEnd} {
		for p, err := range failed {
			all[p] = offsets.Bounds{Err: err}
		}
	}
	return all, nil
}

func (k kafkaTopics) AtTime(ctx context.Context, topic string, at time.Time, bounds map[int32]offsets.Bounds) (map[int32]int64, error) {
	found, failed, err := k.list(ctx, topic, at.UnixMilli())
	if err != nil {
		return nil, err
	}
	for p, b := range bounds {
		if err := failed[p]; err != nil && b.Err == nil {
			return nil, err
		}
	}
	for p, o := range found {
		if o < 0 {
			found[p] = bounds[p].End
		}
	}
	return found, nil
}

// list asks for one offset of each partition, and says why it has some not.
func (k kafkaTopics) list(ctx context.Context, topic string, ts int64) (all map[int32]int64, failed map[int32]error, err error) {
	topics, err := k.Topics(ctx, topic)
	if err != nil {
		return nil, nil, err
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	for _, t := range topics {
		rt := kmsg.NewListOffsetsRequestTopic()
		rt.Topic = t.Name
		for _, p := range t.Partitions {
			rp := kmsg.NewListOffsetsRequestTopicPartition()
			rp.Partition, rp.Timestamp = p.Partition, ts
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
	}
	all, failed = map[int32]int64{}, map[int32]error{}
	for _, shard := range k.RequestSharded(ctx, req) {
		if asked, ok := shard.Req.(*kmsg.ListOffsetsRequest); ok && shard.Err != nil && len(asked.Topics) > 0 {
			for _, p := range asked.Topics[0].Partitions {
				failed[p.Partition] = fmt.Errorf("offsets of %s/%d: %w", topic, p.Partition, coded(shard.Err))
			}
			continue
		}
		if shard.Err != nil {
			return nil, nil, coded(shard.Err)
		}
		resp, ok := shard.Resp.(*kmsg.ListOffsetsResponse)
		if !ok {
			return nil, nil, errors.New("list offsets: the answer is of another kind: " + strconv.Itoa(int(shard.Resp.Key())))
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					failed[p.Partition] = fmt.Errorf("offsets of %s/%d: %w", topic, p.Partition, coded(err))
					continue
				}
				all[p.Partition] = p.Offset
			}
		}
	}
	return all, failed, nil
}
