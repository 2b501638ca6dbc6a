package grpcapi

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

var errShuttingDown = errs.New(errs.ShuttingDown, "the broker is shutting down; try another one, or this one later")

// internalText is all that a client learns about an error without a code.
const internalText = "internal error of the broker; its log says more"

// errPanicked stands for a panic, which is logged and counted already.
var errPanicked = errs.Unknown(errs.UnknownServerError, internalText)

// toError is the one place where errors become what clients see.
func (a *API) toError(api string, err error) *pb.Error {
	if err == nil {
		return nil
	}
	code, text, unknown := errs.CodeOf(err), err.Error(), errs.OutcomeUnknown(err)
	switch {
	case errors.Is(err, errPanicked):
	case code == errs.UnknownServerError && isContext(err):
		// The time was up within a service that does not say so itself. It
		// may have got further than we know.
		code, unknown = errs.RequestTimedOut, true
		text = "the request was not answered in time; it may have taken effect"
	case code == errs.UnknownServerError || code == errs.None:
		// One without a code is a bug: what it did is not known either.
		a.metrics.uncoded.Inc()
		a.logger.Error("error without a code", "api", api, "err", err)
		code, text, unknown = errs.UnknownServerError, internalText, true
	}
	// A message that is not UTF-8 could not be sent at all.
	text = strings.ToValidUTF8(text, "\uFFFD")
	e := &pb.Error{Code: int32(code), Name: code.Name(), Message: text, Retriable: code.Retriable(), OutcomeUnknown: unknown}
	if actual, ok := actualOffset(err); ok {
		e.ActualOffset = &actual
	}
	return e
}

// actualOffset is where the partition, or the history that it shares with the client, ends.
func actualOffset(err error) (int64, bool) {
	var at interface{ ActualOffset() record.Offset }
	if !errors.As(err, &at) {
		return 0, false
	}
	return int64(at.ActualOffset()), true
}

// partitionError is toError with a hint at the leader, where that helps.
func (a *API) partitionError(api, topic string, p int32, err error) *pb.Error {
	e := a.toError(api, err)
	if e == nil {
		return nil
	}
	switch errs.Code(e.Code) {
	case errs.NotLeaderOrFollower, errs.LeaderNotAvailable, errs.FencedLeaderEpoch, errs.UnknownLeaderEpoch:
		if t, ok := a.deps.Metadata.Topic(topic); ok && p >= 0 && int(p) < len(t.Partitions) {
			if l := t.Partitions[p]; l.Leader >= 0 {
				e.LeaderId, e.LeaderEpoch = &l.Leader, &l.LeaderEpoch
			}
		}
	}
	return e
}

// toStatus is what a call fails with: a status of gRPC with an Error in its details.
func (a *API) toStatus(api string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok && errs.CodeOf(err) == errs.UnknownServerError {
		return err // gRPC's own, such as a canceled stream
	}
	return statusOf(a.toError(api, err))
}

func statusOf(e *pb.Error) error {
	st := status.New(grpcCode(errs.Code(e.Code), e.Retriable), e.Message)
	if with, err := st.WithDetails(e); err == nil {
		st = with
	}
	return st.Err()
}

func isContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

var grpcCodes = map[errs.Code]codes.Code{
	errs.UnknownServerError:         codes.Internal,
	errs.OffsetOutOfRange:           codes.OutOfRange,
	errs.PositionOutOfRange:         codes.OutOfRange,
	errs.CorruptMessage:             codes.InvalidArgument,
	errs.UnknownTopicOrPartition:    codes.NotFound,
	errs.UnknownTopicID:             codes.NotFound,
	errs.GroupIDNotFound:            codes.NotFound,
	errs.ResourceNotFound:           codes.NotFound,
	errs.UnknownMemberID:            codes.NotFound,
	errs.TopicAlreadyExists:         codes.AlreadyExists,
	errs.DuplicateResource:          codes.AlreadyExists,
	errs.RequestTimedOut:            codes.DeadlineExceeded,
	errs.TopicAuthorizationFailed:   codes.PermissionDenied,
	errs.GroupAuthorizationFailed:   codes.PermissionDenied,
	errs.ClusterAuthorizationFailed: codes.PermissionDenied,
	errs.SaslAuthenticationFailed:   codes.Unauthenticated,
	errs.UnsupportedVersion:         codes.Unimplemented,
	errs.ThrottlingQuotaExceeded:    codes.ResourceExhausted,
	errs.StorageLow:                 codes.ResourceExhausted,
	errs.LimitExceeded:              codes.ResourceExhausted,
	errs.GroupMaxSizeReached:        codes.ResourceExhausted,
	errs.ShuttingDown:               codes.Unavailable,
	errs.ReplicaQuarantined:         codes.Unavailable,
	errs.TokenTruncated:             codes.DataLoss,

	errs.MessageTooLarge:             codes.InvalidArgument,
	errs.RecordListTooLarge:          codes.InvalidArgument,
	errs.OffsetMetadataTooLarge:      codes.InvalidArgument,
	errs.InvalidTopicException:       codes.InvalidArgument,
	errs.InvalidRequiredAcks:         codes.InvalidArgument,
	errs.InvalidGroupID:              codes.InvalidArgument,
	errs.InvalidSessionTimeout:       codes.InvalidArgument,
	errs.InvalidTimestamp:            codes.InvalidArgument,
	errs.InvalidPartitions:           codes.InvalidArgument,
	errs.InvalidReplicationFactor:    codes.InvalidArgument,
	errs.InvalidReplicaAssignment:    codes.InvalidArgument,
	errs.InvalidConfig:               codes.InvalidArgument,
	errs.InvalidRequest:              codes.InvalidArgument,
	errs.InvalidRecord:               codes.InvalidArgument,
	errs.UnsupportedForMessageFormat: codes.InvalidArgument,
	errs.UnsupportedCompressionType:  codes.InvalidArgument,
	errs.PolicyViolation:             codes.FailedPrecondition,
}

// grpcCode is for clients that look at nothing else; ours look at the details.
func grpcCode(code errs.Code, retriable bool) codes.Code {
	if c, ok := grpcCodes[code]; ok {
		return c
	}
	if retriable {
		return codes.Unavailable
	}
	return codes.FailedPrecondition
}
