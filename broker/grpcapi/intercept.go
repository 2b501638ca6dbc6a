package grpcapi

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// unary counts, refuses during a shutdown, and turns errors and panics into statuses.
func (a *API) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	api, ours := apiName(info.FullMethod)
	start := clock.Monotonic()
	defer func() {
		if p := recover(); p != nil {
			err = a.panicked(api, p)
		}
		if !ours {
			return
		}
		err = a.toStatus(api, err)
		a.metrics.answered(api, errorOf(err), since(start))
	}()
	if ours && a.isStopping() {
		return nil, errShuttingDown
	}
	return handler(ctx, req)
}

// stream does the same for streams, whose handlers count their requests themselves.
func (a *API) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	api, ours := apiName(info.FullMethod)
	if !ours {
		// Who watches the health must not hold up a shutdown.
		ctx, cancel := context.WithCancel(ss.Context())
		defer cancel()
		defer a.onStop(cancel)()
		return handler(srv, endingStream{ss, ctx})
	}
	open := a.metrics.streams.WithLabelValues(api)
	open.Inc()
	defer open.Dec()
	defer func() {
		if p := recover(); p != nil {
			err = a.panicked(api, p)
		}
		err = a.toStatus(api, err)
	}()
	if a.isStopping() {
		return errShuttingDown
	}
	return handler(srv, ss)
}

// endingStream is a stream with a context of its own.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s endingStream) Context() context.Context { return s.ctx }

// panicked keeps a bug in the handling of one request from ending the broker.
// The log's and the replica's own goroutines are not caught here: they fail stop.
func (a *API) panicked(api string, p any) error {
	a.metrics.panics.Inc()
	a.logger.Error("handler panicked", "api", api, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
	return errPanicked
}

func (a *API) isStopping() bool {
	select {
	case <-a.stopping:
		return true
	default:
		return false
	}
}

// apiName is the method's name, and whether it is one of tidemark.v1: labels
// must not come from clients.
func apiName(fullMethod string) (name string, ours bool) {
	rest, ok := strings.CutPrefix(fullMethod, "/tidemark.v1.")
	if !ok {
		return "other", false
	}
	_, name, _ = strings.Cut(rest, "/")
	return name, true
}

// errorOf finds what toStatus put into a status.
func errorOf(err error) *pb.Error {
	if err == nil {
		return nil
	}
	st, _ := status.FromError(err)
	for _, d := range st.Details() {
		if e, ok := d.(*pb.Error); ok {
			return e
		}
	}
	if st.Code() == codes.Canceled || st.Code() == codes.DeadlineExceeded {
		return &pb.Error{Code: int32(errs.RequestTimedOut), Name: errs.RequestTimedOut.Name()}
	}
	return &pb.Error{Code: int32(errs.UnknownServerError), Name: errs.UnknownServerError.Name()}
}

// onStop calls f when the API is told to stop, unless the returned function is called before.
func (a *API) onStop(f func()) (cancel func() bool) {
	return context.AfterFunc(a.life.Context(), f)
}
