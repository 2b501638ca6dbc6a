package fakeserver

import (
	"context"
	"maps"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

const brokerID = 1

type topicsService struct {
	pb.UnimplementedTopicsServer
	s *Server
}

func (t *topicsService) GetMetadata(_ context.Context, req *pb.GetMetadataRequest) (*pb.GetMetadataResponse, error) {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enterLocked("GetMetadata"); err != nil {
		return nil, err
	}
	res := &pb.GetMetadataResponse{ClusterId: "fake", ControllerId: brokerID, Brokers: append([]*pb.Broker{{Id: brokerID, GrpcAddress: s.addr}}, s.extra...)}
	names := req.GetTopics()
	if len(names) == 0 && !req.GetOnlyBrokers() {
		names = slices.Sorted(maps.Keys(s.topics))
	}
	for _, name := range names {
		res.Topics = append(res.Topics, s.infoLocked(name))
	}
	return res, nil
}

func (s *Server) infoLocked(name string) *pb.TopicInfo {
	top := s.topics[name]
	if top == nil {
		return &pb.TopicInfo{Name: name, Error: Error(errs.UnknownTopicOrPartition, "no such topic")}
	}
	info := &pb.TopicInfo{Name: name, Id: top.id[:], ReplicationFactor: 1}
	for i, p := range top.parts {
		leader := int32(brokerID)
		if p.leaderless {
			leader = -1
		}
		info.Partitions = append(info.Partitions, &pb.PartitionInfo{Partition: int32(i), LeaderId: leader, LeaderEpoch: p.epoch, Replicas: []int32{brokerID}, Isr: []int32{brokerID}})
	}
	return info
}

func (t *topicsService) CreateTopic(_ context.Context, req *pb.CreateTopicRequest) (*pb.CreateTopicResponse, error) {
	s := t.s
	s.mu.Lock()
	err := s.enterLocked("CreateTopic")
	_, existed := s.topics[req.GetName()]
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if existed && !req.GetIfNotExists() {
		return nil, Status(Error(errs.TopicAlreadyExists, "it exists"))
	}
	s.AddTopic(req.GetName(), max(1, int(req.GetPartitions())))
	s.mu.Lock()
	defer s.mu.Unlock()
	return &pb.CreateTopicResponse{Topic: s.infoLocked(req.GetName()), Existed: existed}, nil
}

func (t *topicsService) DescribeTopic(_ context.Context, req *pb.DescribeTopicRequest) (*pb.DescribeTopicResponse, error) {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	top := s.topics[req.GetName()]
	if top == nil {
		return nil, Status(Error(errs.UnknownTopicOrPartition, "no such topic"))
	}
	res := &pb.DescribeTopicResponse{Topic: s.infoLocked(req.GetName()), Configs: []*pb.ConfigEntry{{Name: "retention.ms", Value: "1", DefaultValue: "2", Origin: "topic"}}}
	for i, p := range top.parts {
		res.Partitions = append(res.Partitions, &pb.PartitionDetail{Partition: int32(i), LogStartOffset: p.start, HighWatermark: p.end, LogEndOffset: p.end, Segments: 1})
	}
	return res, nil
}

func (t *topicsService) AlterTopic(context.Context, *pb.AlterTopicRequest) (*pb.AlterTopicResponse, error) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if err := t.s.enterLocked("AlterTopic"); err != nil {
		return nil, err
	}
	return &pb.AlterTopicResponse{}, nil
}

func (t *topicsService) AddPartitions(_ context.Context, req *pb.AddPartitionsRequest) (*pb.AddPartitionsResponse, error) {
	t.s.AddTopic(req.GetName(), int(req.GetTotal()))
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return &pb.AddPartitionsResponse{Topic: t.s.infoLocked(req.GetName())}, nil
}

func (t *topicsService) DeleteTopic(_ context.Context, req *pb.DeleteTopicRequest) (*pb.DeleteTopicResponse, error) {
	t.s.mu.Lock()
	_, ok := t.s.topics[req.GetName()]
	t.s.mu.Unlock()
	if !ok && !req.GetIfExists() {
		return nil, Status(Error(errs.UnknownTopicOrPartition, "no such topic"))
	}
	t.s.RemoveTopic(req.GetName())
	return &pb.DeleteTopicResponse{}, nil
}

func (t *topicsService) TrimTopic(_ context.Context, req *pb.TrimTopicRequest) (*pb.TrimTopicResponse, error) {
	res := &pb.TrimTopicResponse{}
	for _, trim := range req.GetTrims() {
		t.s.Trim(req.GetName(), trim.GetPartition(), trim.GetBefore())
		res.Results = append(res.Results, &pb.TrimTopicResponse_Result{Partition: trim.GetPartition(), LogStartOffset: trim.GetBefore()})
	}
	return res, nil
}

type adminService struct {
	pb.UnimplementedAdminServer
	s *Server
}

func (a *adminService) DescribeCluster(context.Context, *pb.DescribeClusterRequest) (*pb.DescribeClusterResponse, error) {
	return &pb.DescribeClusterResponse{ClusterId: "fake", ControllerId: brokerID, AnsweringBroker: brokerID, Brokers: []*pb.Broker{{Id: brokerID, GrpcAddress: a.s.addr}}}, nil
}

func (a *adminService) DescribeConfig(_ context.Context, req *pb.DescribeConfigRequest) (*pb.DescribeConfigResponse, error) {
	return &pb.DescribeConfigResponse{Entries: []*pb.ConfigEntry{{Name: "name-of-" + req.GetTopic()}}}, nil
}
