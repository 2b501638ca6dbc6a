package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/tidemarkhq/tidemark/proto/errs"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// caused is a coded error with a cause that errors.Is still finds.
type caused struct {
	coded *errs.Error
	cause error
}

func (c *caused) Error() string   { return c.coded.Error() }
func (c *caused) Unwrap() []error { return []error{c.coded, c.cause} }

// WithOutcome says of err, keeping its code, cause and words, that its outcome is unknown.
func WithOutcome(err error, why string) error {
	if errs.OutcomeUnknown(err) {
		return err
	}
	return &caused{errs.Unknown(errs.CodeOf(err), fmt.Sprintf("outcome unknown: %s: %v", why, err)), err}
}

// Sent tells whether a call left this process. Without it every lost connection
// would have to count as outcome unknown.
type Sent struct{ flag atomic.Bool }

// Happened tells whether any part of the call was written to a connection.
func (s *Sent) Happened() bool { return s != nil && s.flag.Load() }

type sentKey struct{}

// TrackSent returns a context whose gRPC call reports to the result.
func TrackSent(ctx context.Context) (context.Context, *Sent) {
	s := &Sent{}
	return context.WithValue(ctx, sentKey{}, s), s
}

// sentTracker is the stats handler behind TrackSent.
type sentTracker struct{}

func (sentTracker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (sentTracker) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutHeader); ok {
		if sent, ok := ctx.Value(sentKey{}).(*Sent); ok {
			sent.flag.Store(true)
		}
	}
}

func (sentTracker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentTracker) HandleConn(context.Context, stats.ConnStats)                       {}

// FromCall turns the error of a gRPC call into a coded one. ctx is the
// caller's: when it ended, its error is the cause. maybe says that the request
// may have reached the broker; a broker's own answer says so itself.
func FromCall(ctx context.Context, err error, maybe bool) error {
	if err == nil {
		return nil
	}
	st, _ := status.FromError(err)
	for _, d := range st.Details() {
		if e, ok := d.(*tidemarkv1.Error); ok {
			return FromProto(e)
		}
	}
	if cause := ctx.Err(); cause != nil {
		err = cause
	}
	code, text := explain(st, err)
	return &caused{&errs.Error{Code: code, Text: text, OutcomeUnknown: maybe}, err}
}

func explain(st *status.Status, err error) (errs.Code, string) {
	msg := strings.TrimPrefix(st.Message(), "connection error: desc = ")
	switch {
	case errors.Is(err, context.Canceled):
		return errs.RequestTimedOut, "canceled by the caller"
	case errors.Is(err, context.DeadlineExceeded), st.Code() == codes.DeadlineExceeded:
		return errs.RequestTimedOut, "the deadline passed before the broker answered"
	}
	switch st.Code() {
	case codes.Unavailable, codes.Aborted:
		return errs.NetworkException, "connection to the broker: " + msg
	case codes.Canceled:
		return errs.NetworkException, "the connection was closed: " + msg
	case codes.ResourceExhausted:
		return errs.MessageTooLarge, "the request or its answer is too large: " + msg
	case codes.Unimplemented:
		return errs.UnsupportedVersion, "the broker does not know this call; is it older than this client, or not a Tidemark gRPC listener? " + msg
	case codes.Unauthenticated:
		return errs.SaslAuthenticationFailed, msg
	case codes.PermissionDenied:
		return errs.ClusterAuthorizationFailed, msg
	case codes.InvalidArgument:
		return errs.InvalidRequest, msg
	}
	return errs.UnknownServerError, "the broker answered " + st.Code().String() + ": " + st.Message()
}
