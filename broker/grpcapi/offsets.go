package grpcapi

import (
	"context"
	"fmt"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// ListOffsets answers each query by itself.
func (a *API) ListOffsets(ctx context.Context, req *pb.ListOffsetsRequest) (*pb.ListOffsetsResponse, error) {
	if _, ok := pb.Consistency_name[int32(req.Consistency)]; !ok {
		return nil, errs.Errorf(errs.InvalidRequest, "consistency %d does not exist", int32(req.Consistency))
	}
	resp := &pb.ListOffsetsResponse{}
	for _, q := range req.Queries {
		r := &pb.ListOffsetsResponse_Result{Topic: q.GetTopic(), Partition: q.GetPartition(), Offset: record.None, TimestampMs: record.None, LeaderEpoch: record.None}
		if err := a.listOffset(ctx, q, req.Consistency, r); err != nil {
			r.Error = a.partitionError("ListOffsets", r.Topic, r.Partition, err)
		}
		resp.Results = append(resp.Results, r)
	}
	return resp, nil
}

func (a *API) listOffset(ctx context.Context, q *pb.ListOffsetsRequest_Query, c pb.Consistency, to *pb.ListOffsetsResponse_Result) error {
	if q.GetTimestampMs() < -3 {
		return errs.Errorf(errs.UnsupportedVersion, "timestamp %d means nothing: -1 is the log end, -2 the log start, -3 the largest timestamp", q.GetTimestampMs())
	}
	r, err := a.readable(ctx, q.GetTopic(), q.GetPartition(), c)
	if err != nil {
		return err
	}
	o, ts, e, err := r.OffsetForTime(q.GetTimestampMs())
	if err != nil {
		return err
	}
	to.Offset, to.TimestampMs, to.LeaderEpoch = int64(o), ts, int32(e)
	return nil
}

// readable finds a replica that may answer a read of the given level, now.
func (a *API) readable(ctx context.Context, topic string, p int32, c pb.Consistency) (Replica, error) {
	r, err := a.deps.Replicas.Find(topic, p)
	if err != nil {
		return nil, err
	}
	switch c {
	case pb.Consistency_CONSISTENCY_SESSION, pb.Consistency_CONSISTENCY_EVENTUAL:
		return r, nil
	case pb.Consistency_CONSISTENCY_LINEARIZABLE, pb.Consistency_CONSISTENCY_BOUNDED:
		if err := r.Linearize(ctx); err != nil {
			return nil, err
		}
	}
	if !r.View().Leader {
		return nil, errNotLeader
	}
	return r, nil
}

// OffsetsForEpochs answers each query by itself.
func (a *API) OffsetsForEpochs(ctx context.Context, req *pb.OffsetsForEpochsRequest) (*pb.OffsetsForEpochsResponse, error) {
	resp := &pb.OffsetsForEpochsResponse{}
	for _, q := range req.Queries {
		r := &pb.OffsetsForEpochsResponse_Result{Topic: q.GetTopic(), Partition: q.GetPartition(), LeaderEpoch: record.None, EndOffset: record.None}
		e, end, err := a.epochEnd(ctx, q)
		if err != nil {
			r.Error = a.partitionError("OffsetsForEpochs", r.Topic, r.Partition, err)
		} else {
			r.LeaderEpoch, r.EndOffset = int32(e), int64(end)
		}
		resp.Results = append(resp.Results, r)
	}
	return resp, nil
}

func (a *API) epochEnd(ctx context.Context, q *pb.OffsetsForEpochsRequest_Query) (record.Epoch, record.Offset, error) {
	r, err := a.readable(ctx, q.GetTopic(), q.GetPartition(), pb.Consistency_CONSISTENCY_LEADER)
	if err != nil {
		return 0, 0, err
	}
	return r.EpochEnd(record.Epoch(q.GetLeaderEpoch()))
}

// InitProducer hands out a producer id.
func (a *API) InitProducer(ctx context.Context, _ *pb.InitProducerRequest) (*pb.InitProducerResponse, error) {
	id, epoch, err := a.deps.Topics.InitProducer(ctx)
	if err != nil {
		return nil, fmt.Errorf("init producer: %w", err)
	}
	return &pb.InitProducerResponse{ProducerId: id, ProducerEpoch: int32(epoch)}, nil
}
