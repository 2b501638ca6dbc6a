package admin

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// ResetScope says which partitions a reset covers.
type ResetScope struct {
	Topics     []string
	Partitions []TopicPartition
}

// PlanReset works out where a group's offsets would go: for topics (whole), for partitions, or with neither
// for everything that the group committed. It changes nothing.
func (c *Client) PlanReset(ctx context.Context, group string, to ResetTo, scope ResetScope) (ResetPlan, error) {
	committed, err := c.committed(ctx, group)
	if err != nil {
		return ResetPlan{}, err
	}
	tps, err := c.inScope(ctx, scope, committed)
	if err != nil {
		return ResetPlan{}, err
	}
	if len(tps) == 0 {
		return ResetPlan{}, errs.Errorf(errs.GroupIDNotFound, "group %q has committed nothing; name the topics to reset", group)
	}
	plan := ResetPlan{Group: group}
	at := int64(client.LogEnd)
	if to.kind == resetTime {
		at = to.n
	}
	var queries []client.OffsetQuery
	for _, tp := range tps {
		for _, ts := range []int64{client.LogStart, client.LogEnd, at} {
			queries = append(queries, client.OffsetQuery{Topic: tp.Topic, Partition: tp.Partition, Timestamp: ts})
		}
	}
	answers := c.client.ListOffsets(ctx, queries, pb.Consistency_CONSISTENCY_LEADER)
	for i, tp := range tps {
		from, ok := committed[tp]
		if !ok {
			from = -1
		}
		plan.Moves = append(plan.Moves, to.move(tp, from, answers[3*i], answers[3*i+1], answers[3*i+2]))
	}
	return plan, nil
}

// move computes where one partition goes, within what it holds.
func (to ResetTo) move(tp TopicPartition, from record.Offset, start, end, at client.OffsetAnswer) ResetMove {
	m := ResetMove{TopicPartition: tp, From: from, To: from, Err: firstOf(start.Err, end.Err, at.Err)}
	if m.Err != nil {
		return m
	}
	var o int64
	switch to.kind {
	case resetStart:
		o = start.Offset
	case resetEnd:
		o = end.Offset
	case resetOffset:
		o = to.n
	case resetTime:
		if o = at.Offset; o < 0 {
			o = end.Offset
		}
	default: // resetShift, resetCurrent
		if from < 0 {
			m.Err = errs.Errorf(errs.InvalidRequest, "the group has committed nothing for %s/%d, so there is nothing to move from; reset to start or end", tp.Topic, tp.Partition)
			return m
		}
		o = int64(from) + to.n
	}
	o = min(max(o, start.Offset), end.Offset)
	m.To, m.Lag = record.Offset(o), end.Offset-o
	return m
}

func (c *Client) committed(ctx context.Context, group string) (map[TopicPartition]record.Offset, error) {
	found := make(map[TopicPartition]record.Offset)
	err := c.client.Coordinator(ctx, about("fetch offsets of group", group), client.Ask, group, func(ctx context.Context, conn *grpc.ClientConn) error {
		res, err := pb.NewGroupsClient(conn).FetchOffsets(ctx, &pb.FetchOffsetsRequest{Group: group})
		if err != nil {
			return err
		}
		for _, r := range res.GetResults() {
			if o := r.GetCommit().GetOffset(); r.GetError() == nil && o >= 0 {
				found[TopicPartition{r.GetCommit().GetTopic(), r.GetCommit().GetPartition()}] = record.Offset(o)
			}
		}
		return nil
	})
	if errs.CodeOf(err) == errs.GroupIDNotFound {
		return found, nil // a reset may come before the first member
	}
	return found, err
}

func (c *Client) inScope(ctx context.Context, scope ResetScope, committed map[TopicPartition]record.Offset) ([]TopicPartition, error) {
	tps := slices.Clone(scope.Partitions)
	for _, name := range scope.Topics {
		n, err := c.partitions(ctx, name)
		if err != nil {
			return nil, err
		}
		for p := range int32(n) {
			tps = append(tps, TopicPartition{name, p})
		}
	}
	if len(scope.Topics)+len(scope.Partitions) == 0 {
		for tp := range committed {
			tps = append(tps, tp)
		}
	}
	slices.SortFunc(tps, compare)
	return slices.Compact(tps), nil
}

// ExecuteReset commits the plan. The group must have no members. Moves with an error are
// left out; the results have one entry for each move.
func (c *Client) ExecuteReset(ctx context.Context, plan ResetPlan) ([]PartitionResult, error) {
	req := &pb.CommitOffsetsRequest{Group: plan.Group}
	results := make([]PartitionResult, len(plan.Moves))
	for i, m := range plan.Moves {
		results[i] = PartitionResult{m.TopicPartition, m.Err}
		if m.Err == nil {
			req.Offsets = append(req.Offsets, &pb.OffsetCommit{Topic: m.Topic, Partition: m.Partition, Offset: int64(m.To), LeaderEpoch: -1})
		}
	}
	if len(req.Offsets) == 0 {
		return results, nil
	}
	var res *pb.CommitOffsetsResponse
	err := c.client.Coordinator(ctx, about("reset offsets of group", plan.Group), client.Repeat, plan.Group, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		res, err = pb.NewGroupsClient(conn).CommitOffsets(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, f := range failures(res.GetResults()) {
		for i := range results {
			if results[i].TopicPartition == f.TopicPartition {
				results[i].Err = f.Err
			}
		}
	}
	return results, nil
}
