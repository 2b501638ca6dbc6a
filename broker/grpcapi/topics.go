package grpcapi

import (
	"context"
	"math"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// GetMetadata answers from this broker's copy. Topics that do not exist are in
// the answer with an error each.
func (a *API) GetMetadata(_ context.Context, req *pb.GetMetadataRequest) (*pb.GetMetadataResponse, error) {
	m := a.deps.Metadata
	resp := &pb.GetMetadataResponse{ClusterId: m.ClusterID(), ControllerId: m.ControllerID(), Brokers: a.brokers()}
	switch {
	case req.OnlyBrokers:
	case len(req.Topics) == 0:
		for _, t := range m.Topics() {
			resp.Topics = append(resp.Topics, toTopicInfo(t))
		}
	default:
		for _, name := range req.Topics {
			info := &pb.TopicInfo{Name: name}
			if t, ok := m.Topic(name); ok {
				info = toTopicInfo(t)
			} else {
				info.Error = a.toError("GetMetadata", unknownTopic(name))
			}
			resp.Topics = append(resp.Topics, info)
		}
	}
	return resp, nil
}

func unknownTopic(name string) error {
	return errs.Errorf(errs.UnknownTopicOrPartition, "topic %q does not exist; create it first", name)
}

func (a *API) brokers() []*pb.Broker {
	var all []*pb.Broker
	for _, b := range a.deps.Metadata.Brokers() {
		all = append(all, &pb.Broker{Id: b.ID, Uuid: b.UUID.String(), Rack: b.Rack, GrpcAddress: b.GRPCAddress, KafkaAddress: b.KafkaAddress, Version: b.Version})
	}
	return all
}

func toTopicInfo(t controller.Topic) *pb.TopicInfo {
	info := &pb.TopicInfo{Name: t.Name, Id: t.ID[:], Internal: t.Internal, ReplicationFactor: int32(t.ReplicationFactor())}
	for _, p := range t.Partitions {
		part := &pb.PartitionInfo{Partition: p.Partition, LeaderId: p.Leader, LeaderEpoch: p.LeaderEpoch, Isr: p.ISR}
		for _, r := range p.Replicas {
			part.Replicas = append(part.Replicas, r.Broker)
		}
		info.Partitions = append(info.Partitions, part)
	}
	return info
}

// CreateTopic returns once every partition has a leader that serves.
func (a *API) CreateTopic(ctx context.Context, req *pb.CreateTopicRequest) (*pb.CreateTopicResponse, error) {
	if req.ReplicationFactor < 0 || req.ReplicationFactor > math.MaxInt16 {
		return nil, errs.Errorf(errs.InvalidReplicationFactor, "replication factor %d is not between 1 and %d (0: the default)", req.ReplicationFactor, math.MaxInt16)
	}
	t, existed, err := a.deps.Topics.CreateTopic(ctx, controller.NewTopic{
		Name: req.Name, Partitions: req.Partitions, ReplicationFactor: int16(req.ReplicationFactor), Configs: req.Configs,
		IfNotExists: req.IfNotExists, ValidateOnly: req.ValidateOnly,
	})
	if err != nil {
		return nil, err
	}
	return &pb.CreateTopicResponse{Topic: toTopicInfo(t), Existed: existed}, nil
}

// DescribeTopic tells about a topic; figures of partitions come from the replicas of this broker.
func (a *API) DescribeTopic(_ context.Context, req *pb.DescribeTopicRequest) (*pb.DescribeTopicResponse, error) {
	t, ok := a.deps.Metadata.Topic(req.Name)
	if !ok {
		return nil, unknownTopic(req.Name)
	}
	entries, err := a.deps.Metadata.TopicConfigs(req.Name)
	if err != nil {
		return nil, err
	}
	resp := &pb.DescribeTopicResponse{Topic: toTopicInfo(t), Configs: toConfigEntries(entries)}
	for _, p := range t.Partitions {
		resp.Partitions = append(resp.Partitions, a.partitionDetail(t.Name, p.Partition))
	}
	return resp, nil
}

func (a *API) partitionDetail(topic string, p int32) *pb.PartitionDetail {
	r, err := a.deps.Replicas.Find(topic, p)
	if err != nil {
		return &pb.PartitionDetail{
			Partition: p, LogStartOffset: record.None, HighWatermark: record.None, LogEndOffset: record.None, SizeBytes: record.None, Segments: record.None,
			Error: a.partitionError("DescribeTopic", topic, p, err),
		}
	}
	v, s := r.View(), r.Stats()
	return &pb.PartitionDetail{
		Partition: p, LogStartOffset: int64(v.LogStart), HighWatermark: int64(v.HighWatermark), LogEndOffset: int64(v.LogEnd),
		SizeBytes: s.SizeBytes, Segments: int32(s.Segments),
	}
}

func toConfigEntries(entries []controller.ConfigEntry) []*pb.ConfigEntry {
	var all []*pb.ConfigEntry
	for _, e := range entries {
		all = append(all, &pb.ConfigEntry{Name: e.Name, Value: e.Value, DefaultValue: e.Default, Origin: e.Origin, Documentation: e.Doc})
	}
	return all
}

// AlterTopic changes a topic's settings.
func (a *API) AlterTopic(ctx context.Context, req *pb.AlterTopicRequest) (*pb.AlterTopicResponse, error) {
	if err := a.deps.Topics.AlterTopic(ctx, req.Name, req.Set, req.Unset, req.ValidateOnly); err != nil {
		return nil, err
	}
	return &pb.AlterTopicResponse{}, nil
}

// AddPartitions returns once the new partitions have leaders.
func (a *API) AddPartitions(ctx context.Context, req *pb.AddPartitionsRequest) (*pb.AddPartitionsResponse, error) {
	t, err := a.deps.Topics.AddPartitions(ctx, req.Name, req.Total, req.ValidateOnly)
	if err != nil {
		return nil, err
	}
	return &pb.AddPartitionsResponse{Topic: toTopicInfo(t)}, nil
}

// DeleteTopic deletes a topic.
func (a *API) DeleteTopic(ctx context.Context, req *pb.DeleteTopicRequest) (*pb.DeleteTopicResponse, error) {
	if err := a.deps.Topics.DeleteTopic(ctx, req.Name, req.IfExists, req.ValidateOnly); err != nil {
		return nil, err
	}
	return &pb.DeleteTopicResponse{}, nil
}

// TrimTopic answers each partition by itself.
func (a *API) TrimTopic(ctx context.Context, req *pb.TrimTopicRequest) (*pb.TrimTopicResponse, error) {
	if _, ok := a.deps.Metadata.Topic(req.Name); !ok {
		return nil, unknownTopic(req.Name)
	}
	resp := &pb.TrimTopicResponse{}
	for _, t := range req.Trims {
		r := &pb.TrimTopicResponse_Result{Partition: t.GetPartition(), LogStartOffset: record.None}
		start, err := a.trim(ctx, req.Name, t, req.ValidateOnly)
		if err != nil {
			r.Error = a.partitionError("TrimTopic", req.Name, r.Partition, err)
		} else {
			r.LogStartOffset = int64(start)
		}
		resp.Results = append(resp.Results, r)
	}
	return resp, nil
}

func (a *API) trim(ctx context.Context, topic string, t *pb.TrimTopicRequest_Trim, validateOnly bool) (record.Offset, error) {
	r, err := a.deps.Replicas.Find(topic, t.GetPartition())
	if err != nil {
		return 0, err
	}
	v, before := r.View(), record.Offset(t.GetBefore())
	switch {
	case before < -1 || before > v.HighWatermark:
		return 0, errs.Errorf(errs.OffsetOutOfRange, "trim before %d: the partition's records are %d to %d", before, v.LogStart, v.HighWatermark)
	case !validateOnly:
		return r.Trim(ctx, before)
	case !v.Leader:
		return 0, errNotLeader
	case before == -1:
		return v.HighWatermark, nil
	}
	return max(before, v.LogStart), nil
}
