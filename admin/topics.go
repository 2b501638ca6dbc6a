package admin

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// ChangeOption modifies a change.
type ChangeOption func(*changeOptions)

type changeOptions struct{ validateOnly, ifExists bool }

// ValidateOnly checks the request and changes nothing.
func ValidateOnly() ChangeOption { return func(o *changeOptions) { o.validateOnly = true } }

// IfExists makes deleting what is not there a success.
func IfExists() ChangeOption { return func(o *changeOptions) { o.ifExists = true } }

func changed(opts []ChangeOption) (o changeOptions) {
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// Topics lists topics by name: those named, or all (internal ones too). A named topic
// that does not exist is listed with its Err.
func (c *Client) Topics(ctx context.Context, names ...string) ([]Topic, error) {
	res, err := call(ctx, c.client, "list topics", client.Ask, &pb.GetMetadataRequest{Topics: names}, func(conn *grpc.ClientConn) func(context.Context, *pb.GetMetadataRequest, ...grpc.CallOption) (*pb.GetMetadataResponse, error) {
		return pb.NewTopicsClient(conn).GetMetadata
	})
	if err != nil {
		return nil, err
	}
	topics := make([]Topic, 0, len(res.GetTopics()))
	for _, info := range res.GetTopics() {
		topics = append(topics, topicOf(info))
	}
	slices.SortFunc(topics, byName(func(t Topic) string { return t.Name }))
	return topics, nil
}

// DescribeTopic tells everything about one topic.
func (c *Client) DescribeTopic(ctx context.Context, name string) (TopicDetail, error) {
	res, err := call(ctx, c.client, about("describe topic", name), client.Ask, &pb.DescribeTopicRequest{Name: name}, func(conn *grpc.ClientConn) func(context.Context, *pb.DescribeTopicRequest, ...grpc.CallOption) (*pb.DescribeTopicResponse, error) {
		return pb.NewTopicsClient(conn).DescribeTopic
	})
	if err != nil {
		return TopicDetail{}, err
	}
	d := TopicDetail{Topic: topicOf(res.GetTopic()), Configs: configs(res.GetConfigs())}
	for _, p := range res.GetPartitions() {
		d.Logs = append(d.Logs, PartitionLog{
			Partition: p.GetPartition(), LogStartOffset: record.Offset(p.GetLogStartOffset()), HighWatermark: record.Offset(p.GetHighWatermark()),
			LogEndOffset: record.Offset(p.GetLogEndOffset()), SizeBytes: p.GetSizeBytes(), Segments: int(p.GetSegments()), Err: client.FromProto(p.GetError()),
		})
	}
	return d, nil
}

// CreateTopic creates a topic and returns once each partition has a leader that serves.
// existed is true where IfNotExists found the topic.
func (c *Client) CreateTopic(ctx context.Context, t NewTopic) (topic Topic, existed bool, err error) {
	req := &pb.CreateTopicRequest{
		Name: t.Name, Partitions: int32(t.Partitions), ReplicationFactor: int32(t.ReplicationFactor), Configs: t.Configs,
		IfNotExists: t.IfNotExists, ValidateOnly: t.ValidateOnly,
	}
	res, err := call(ctx, c.client, about("create topic", t.Name), client.Change, req, func(conn *grpc.ClientConn) func(context.Context, *pb.CreateTopicRequest, ...grpc.CallOption) (*pb.CreateTopicResponse, error) {
		return pb.NewTopicsClient(conn).CreateTopic
	})
	if err != nil {
		return Topic{}, false, err
	}
	return topicOf(res.GetTopic()), res.GetExisted(), nil
}

// AlterTopic changes settings of a topic.
func (c *Client) AlterTopic(ctx context.Context, name string, change Change) error {
	req := &pb.AlterTopicRequest{Name: name, Set: change.Set, Unset: change.Unset, ValidateOnly: change.ValidateOnly}
	_, err := call(ctx, c.client, about("alter topic", name), client.Change, req, func(conn *grpc.ClientConn) func(context.Context, *pb.AlterTopicRequest, ...grpc.CallOption) (*pb.AlterTopicResponse, error) {
		return pb.NewTopicsClient(conn).AlterTopic
	})
	return err
}

// AddPartitions grows a topic to total partitions.
func (c *Client) AddPartitions(ctx context.Context, name string, total int, opts ...ChangeOption) (Topic, error) {
	req := &pb.AddPartitionsRequest{Name: name, Total: int32(total), ValidateOnly: changed(opts).validateOnly}
	res, err := call(ctx, c.client, about("add partitions to topic", name), client.Change, req, func(conn *grpc.ClientConn) func(context.Context, *pb.AddPartitionsRequest, ...grpc.CallOption) (*pb.AddPartitionsResponse, error) {
		return pb.NewTopicsClient(conn).AddPartitions
	})
	if err != nil {
		return Topic{}, err
	}
	return topicOf(res.GetTopic()), nil
}

// DeleteTopic deletes a topic and its records.
func (c *Client) DeleteTopic(ctx context.Context, name string, opts ...ChangeOption) error {
	o := changed(opts)
	req := &pb.DeleteTopicRequest{Name: name, IfExists: o.ifExists, ValidateOnly: o.validateOnly}
	_, err := call(ctx, c.client, about("delete topic", name), client.Change, req, func(conn *grpc.ClientConn) func(context.Context, *pb.DeleteTopicRequest, ...grpc.CallOption) (*pb.DeleteTopicResponse, error) {
		return pb.NewTopicsClient(conn).DeleteTopic
	})
	return err
}

// TrimTopic moves the log start offset of partitions forward: records below are gone.
// An offset of -1 means the high watermark.
func (c *Client) TrimTopic(ctx context.Context, name string, before map[int32]record.Offset, opts ...ChangeOption) ([]Trimmed, error) {
	req := &pb.TrimTopicRequest{Name: name, ValidateOnly: changed(opts).validateOnly}
	for _, p := range slices.Sorted(maps.Keys(before)) {
		req.Trims = append(req.Trims, &pb.TrimTopicRequest_Trim{Partition: p, Before: int64(before[p])})
	}
	// Trimming twice to the same offset is the same as once.
	res, err := call(ctx, c.client, about("trim topic", name), client.Repeat, req, func(conn *grpc.ClientConn) func(context.Context, *pb.TrimTopicRequest, ...grpc.CallOption) (*pb.TrimTopicResponse, error) {
		return pb.NewTopicsClient(conn).TrimTopic
	})
	if err != nil {
		return nil, err
	}
	var trimmed []Trimmed
	for _, r := range res.GetResults() {
		trimmed = append(trimmed, Trimmed{Partition: r.GetPartition(), LogStartOffset: record.Offset(r.GetLogStartOffset()), Err: client.FromProto(r.GetError())})
	}
	return trimmed, nil
}

// TopicOffsets tells which offsets each partition of a topic holds. A partition that has no leader for about a
// second has its Err, and holds no other up.
func (c *Client) TopicOffsets(ctx context.Context, name string) ([]Range, error) {
	n, err := c.partitions(ctx, name)
	if err != nil {
		return nil, err
	}
	var queries []client.OffsetQuery
	for p := range int32(n) {
		queries = append(queries, client.OffsetQuery{Topic: name, Partition: p, Timestamp: client.LogStart}, client.OffsetQuery{Topic: name, Partition: p, Timestamp: client.LogEnd})
	}
	answers := c.client.ListOffsets(ctx, queries, pb.Consistency_CONSISTENCY_LEADER)
	ranges := make([]Range, n)
	for p := range ranges {
		start, end := answers[2*p], answers[2*p+1]
		ranges[p] = Range{Partition: int32(p), Start: record.Offset(start.Offset), End: record.Offset(end.Offset), Err: firstOf(start.Err, end.Err)}
	}
	return ranges, nil
}

// TopicOffsetsAt finds the first record at or after a time, per partition. A partition that has no leader for
// about a second has its Err.
func (c *Client) TopicOffsetsAt(ctx context.Context, name string, t time.Time) ([]TimeOffset, error) {
	n, err := c.partitions(ctx, name)
	if err != nil {
		return nil, err
	}
	queries := make([]client.OffsetQuery, n)
	for p := range queries {
		queries[p] = client.OffsetQuery{Topic: name, Partition: int32(p), Timestamp: t.UnixMilli()}
	}
	found := make([]TimeOffset, n)
	for p, a := range c.client.ListOffsets(ctx, queries, pb.Consistency_CONSISTENCY_LEADER) {
		found[p] = TimeOffset{Partition: int32(p), Offset: record.Offset(a.Offset), Err: a.Err}
		if a.Timestamp >= 0 {
			found[p].Timestamp = time.UnixMilli(a.Timestamp)
		}
	}
	return found, nil
}

// partitions asks afresh: the topic may have grown or gone.
func (c *Client) partitions(ctx context.Context, name string) (int, error) {
	if err := c.client.Refresh(ctx, name); err != nil {
		return 0, err
	}
	t, err := c.client.Topic(ctx, name)
	if err != nil {
		return 0, err
	}
	return len(t.Partitions), nil
}

func firstOf(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}
