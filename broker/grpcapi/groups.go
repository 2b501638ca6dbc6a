package grpcapi

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Heartbeat is the whole life of a member; the coordinator holds the answer back.
func (a *API) Heartbeat(ctx context.Context, req *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
	// A parked heartbeat must not hold up a shutdown.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := a.onStop(func() { cancel(errShuttingDown) })
	defer stop()
	resp, err := a.deps.Groups.Heartbeat(ctx, group.HeartbeatRequest{
		Group: req.Group, MemberID: req.MemberId, InstanceID: req.InstanceId, MemberEpoch: req.MemberEpoch,
		ClientID: req.ClientId, ClientHost: clientHost(ctx), SessionTimeout: ms(req.SessionTimeoutMs), RebalanceTimeout: ms(req.RebalanceTimeoutMs),
		Topics: req.Topics, TopicRegex: req.TopicRegex, Owned: toAssignments(req.Owned), MaxWait: ms(req.MaxWaitMs), Rack: req.Rack,
	})
	if err != nil {
		if isContext(err) && context.Cause(ctx) == errShuttingDown {
			return nil, errShuttingDown
		}
		return nil, err
	}
	return &pb.HeartbeatResponse{
		MemberEpoch: resp.MemberEpoch, Generation: resp.Generation, HeartbeatIntervalMs: uint32(resp.HeartbeatInterval.Milliseconds()),
		Assigned: fromAssignments(resp.Assigned),
	}, nil
}

func clientHost(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

func ms(v uint32) time.Duration { return time.Duration(v) * time.Millisecond }

func toAssignments(all []*pb.Assignment) []group.Assignment {
	out := make([]group.Assignment, 0, len(all))
	for _, as := range all {
		out = append(out, group.Assignment{Topic: as.GetTopic(), Partitions: as.GetPartitions()})
	}
	return out
}

func fromAssignments(all []group.Assignment) []*pb.Assignment {
	out := make([]*pb.Assignment, 0, len(all))
	for _, as := range all {
		out = append(out, &pb.Assignment{Topic: as.Topic, Partitions: as.Partitions})
	}
	return out
}

// LeaveGroup removes a member at once.
func (a *API) LeaveGroup(ctx context.Context, req *pb.LeaveGroupRequest) (*pb.LeaveGroupResponse, error) {
	err := a.deps.Groups.Leave(ctx, group.LeaveRequest{Group: req.Group, MemberID: req.MemberId, InstanceID: req.InstanceId, MemberEpoch: req.MemberEpoch})
	if err != nil {
		return nil, err
	}
	return &pb.LeaveGroupResponse{}, nil
}

// CommitOffsets answers with what failed.
func (a *API) CommitOffsets(ctx context.Context, req *pb.CommitOffsetsRequest) (*pb.CommitOffsetsResponse, error) {
	r := group.CommitRequest{Group: req.Group, MemberID: req.MemberId, MemberEpoch: req.MemberEpoch}
	for _, o := range req.Offsets {
		c := group.OffsetCommit{
			Topic: o.GetTopic(), Partition: o.GetPartition(), Offset: record.Offset(o.GetOffset()), LeaderEpoch: record.Epoch(o.GetLeaderEpoch()), Metadata: o.GetMetadata(),
		}
		if id := o.GetTopicId(); len(id) == len(c.TopicID) {
			c.TopicID = [16]byte(id)
		}
		r.Offsets = append(r.Offsets, c)
	}
	failed, err := a.deps.Groups.CommitOffsets(ctx, r)
	if err != nil {
		return nil, err
	}
	return &pb.CommitOffsetsResponse{Results: a.failures("CommitOffsets", failed)}, nil
}

func (a *API) failures(api string, failed []group.PartitionError) []*pb.CommitOffsetsResponse_Result {
	var out []*pb.CommitOffsetsResponse_Result
	for _, f := range failed {
		out = append(out, &pb.CommitOffsetsResponse_Result{Topic: f.Topic, Partition: f.Partition, Error: a.toError(api, f.Err)})
	}
	return out
}

// FetchOffsets returns what a group has committed.
func (a *API) FetchOffsets(ctx context.Context, req *pb.FetchOffsetsRequest) (*pb.FetchOffsetsResponse, error) {
	committed, err := a.deps.Groups.FetchOffsets(ctx, req.Group, toTopicPartitions(req.Partitions))
	if err != nil {
		return nil, err
	}
	resp := &pb.FetchOffsetsResponse{}
	for _, c := range committed {
		resp.Results = append(resp.Results, &pb.FetchOffsetsResponse_Result{Commit: fromCommit(c.OffsetCommit), CommittedAtMs: c.CommittedAt})
	}
	return resp, nil
}

func toTopicPartitions(all []*pb.TopicPartition) []group.TopicPartition {
	var out []group.TopicPartition
	for _, tp := range all {
		out = append(out, group.TopicPartition{Topic: tp.GetTopic(), Partition: tp.GetPartition()})
	}
	return out
}

func fromCommit(c group.OffsetCommit) *pb.OffsetCommit {
	return &pb.OffsetCommit{Topic: c.Topic, Partition: c.Partition, Offset: int64(c.Offset), LeaderEpoch: int32(c.LeaderEpoch), Metadata: c.Metadata}
}

// ListGroups lists the groups that are coordinated here.
func (a *API) ListGroups(ctx context.Context, _ *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	all, err := a.deps.Groups.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.ListGroupsResponse{}
	for _, g := range all {
		resp.Groups = append(resp.Groups, &pb.ListGroupsResponse_Group{Name: g.Name, State: g.State, Protocol: g.Protocol, Members: int32(g.Members), CoordinatorId: g.Coordinator})
	}
	return resp, nil
}

// DescribeGroup tells about a group's members, offsets and lag.
func (a *API) DescribeGroup(ctx context.Context, req *pb.DescribeGroupRequest) (*pb.DescribeGroupResponse, error) {
	d, err := a.deps.Groups.Describe(ctx, req.Group)
	if err != nil {
		return nil, err
	}
	resp := &pb.DescribeGroupResponse{Name: d.Name, State: d.State, Protocol: d.Protocol, Generation: d.Generation, CoordinatorId: d.Coordinator}
	for _, m := range d.Members {
		resp.Members = append(resp.Members, &pb.DescribeGroupResponse_Member{
			MemberId: m.MemberID, InstanceId: m.InstanceID, ClientId: m.ClientID, Host: m.Host, MemberEpoch: m.MemberEpoch,
			Assigned: fromAssignments(m.Assigned), Owned: fromAssignments(m.Owned), Topics: m.Topics,
		})
	}
	for _, p := range d.Partitions {
		resp.Partitions = append(resp.Partitions, a.groupPartition(p))
	}
	return resp, nil
}

func (a *API) groupPartition(p group.PartitionDescription) *pb.DescribeGroupResponse_Partition {
	lagMs := p.LagTime.Milliseconds()
	if p.LagTime < 0 {
		lagMs = -1
	}
	return &pb.DescribeGroupResponse_Partition{
		Commit: fromCommit(p.OffsetCommit), LogStartOffset: int64(p.LogStart), HighWatermark: int64(p.HighWatermark),
		Lag: p.Lag, LagMs: lagMs, MemberId: p.MemberID, CommittedAtMs: p.CommittedAt, Error: a.toError("DescribeGroup", p.Err),
	}
}

// DeleteGroup removes a group without members.
func (a *API) DeleteGroup(ctx context.Context, req *pb.DeleteGroupRequest) (*pb.DeleteGroupResponse, error) {
	if err := a.deps.Groups.Delete(ctx, req.Group); err != nil {
		return nil, err
	}
	return &pb.DeleteGroupResponse{}, nil
}

// DeleteOffsets removes committed offsets and answers with what failed.
func (a *API) DeleteOffsets(ctx context.Context, req *pb.DeleteOffsetsRequest) (*pb.DeleteOffsetsResponse, error) {
	failed, err := a.deps.Groups.DeleteOffsets(ctx, req.Group, toTopicPartitions(req.Partitions))
	if err != nil {
		return nil, err
	}
	return &pb.DeleteOffsetsResponse{Results: a.failures("DeleteOffsets", failed)}, nil
}
