package admin

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Groups lists the consumer groups by name.
func (c *Client) Groups(ctx context.Context) ([]GroupSummary, error) {
	res, err := call(ctx, c.client, "list groups", client.Ask, &pb.ListGroupsRequest{}, func(conn *grpc.ClientConn) func(context.Context, *pb.ListGroupsRequest, ...grpc.CallOption) (*pb.ListGroupsResponse, error) {
		return pb.NewGroupsClient(conn).ListGroups
	})
	if err != nil {
		return nil, err
	}
	groups := make([]GroupSummary, 0, len(res.GetGroups()))
	for _, g := range res.GetGroups() {
		groups = append(groups, GroupSummary{Name: g.GetName(), State: g.GetState(), Protocol: g.GetProtocol(), Members: int(g.GetMembers()), Coordinator: g.GetCoordinatorId()})
	}
	slices.SortFunc(groups, byName(func(g GroupSummary) string { return g.Name }))
	return groups, nil
}

// DescribeGroup tells members, offsets and lag of a group.
func (c *Client) DescribeGroup(ctx context.Context, name string) (Group, error) {
	var res *pb.DescribeGroupResponse
	err := c.client.Coordinator(ctx, about("describe group", name), client.Ask, name, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		res, err = pb.NewGroupsClient(conn).DescribeGroup(ctx, &pb.DescribeGroupRequest{Group: name})
		return err
	})
	if err != nil {
		return Group{}, err
	}
	g := Group{
		GroupSummary: GroupSummary{Name: res.GetName(), State: res.GetState(), Protocol: res.GetProtocol(), Members: len(res.GetMembers()), Coordinator: res.GetCoordinatorId()},
		Generation:   res.GetGeneration(),
	}
	for _, m := range res.GetMembers() {
		g.MemberList = append(g.MemberList, Member{
			ID: m.GetMemberId(), InstanceID: m.GetInstanceId(), ClientID: m.GetClientId(), Host: m.GetHost(), Epoch: m.GetMemberEpoch(),
			Assigned: flat(m.GetAssigned()), Owned: flat(m.GetOwned()), Topics: m.GetTopics(),
		})
	}
	for _, p := range res.GetPartitions() {
		g.Partitions = append(g.Partitions, groupPartition(p))
	}
	slices.SortFunc(g.Partitions, func(a, b GroupPartition) int { return compare(a.TopicPartition, b.TopicPartition) })
	return g, nil
}

func groupPartition(p *pb.DescribeGroupResponse_Partition) GroupPartition {
	g := GroupPartition{
		TopicPartition: TopicPartition{p.GetCommit().GetTopic(), p.GetCommit().GetPartition()},
		Committed:      record.Offset(p.GetCommit().GetOffset()), Metadata: p.GetCommit().GetMetadata(),
		LogStartOffset: record.Offset(p.GetLogStartOffset()), HighWatermark: record.Offset(p.GetHighWatermark()),
		Lag: p.GetLag(), LagTime: -1, Member: p.GetMemberId(), Err: client.FromProto(p.GetError()),
	}
	if p.GetLagMs() >= 0 {
		g.LagTime = time.Duration(p.GetLagMs()) * time.Millisecond
	}
	if p.GetCommittedAtMs() > 0 {
		g.CommittedAt = time.UnixMilli(p.GetCommittedAtMs())
	}
	return g
}

func flat(all []*pb.Assignment) (tps []TopicPartition) {
	for _, a := range all {
		for _, n := range a.GetPartitions() {
			tps = append(tps, TopicPartition{a.GetTopic(), n})
		}
	}
	slices.SortFunc(tps, compare)
	return tps
}

func compare(a, b TopicPartition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// DeleteGroup deletes a group without members, and its offsets.
func (c *Client) DeleteGroup(ctx context.Context, name string) error {
	return c.client.Coordinator(ctx, about("delete group", name), client.Change, name, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewGroupsClient(conn).DeleteGroup(ctx, &pb.DeleteGroupRequest{Group: name})
		return err
	})
}

// DeleteOffsets forgets committed offsets. The results name the partitions that failed.
func (c *Client) DeleteOffsets(ctx context.Context, group string, partitions ...TopicPartition) ([]PartitionResult, error) {
	req := &pb.DeleteOffsetsRequest{Group: group}
	for _, tp := range partitions {
		req.Partitions = append(req.Partitions, &pb.TopicPartition{Topic: tp.Topic, Partition: tp.Partition})
	}
	var res *pb.DeleteOffsetsResponse
	err := c.client.Coordinator(ctx, about("delete offsets of group", group), client.Repeat, group, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		res, err = pb.NewGroupsClient(conn).DeleteOffsets(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return failures(res.GetResults()), nil
}

func failures(results []*pb.CommitOffsetsResponse_Result) (all []PartitionResult) {
	for _, r := range results {
		if err := client.FromProto(r.GetError()); err != nil {
			all = append(all, PartitionResult{TopicPartition{r.GetTopic(), r.GetPartition()}, err})
		}
	}
	return all
}
