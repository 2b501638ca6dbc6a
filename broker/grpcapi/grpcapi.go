// Package grpcapi is the door for native clients: it translates tidemark.v1 into
// calls of the services, and decides nothing.
//
// Its invariants:
//   - Requests of a produce stream are dispatched in their order and answered in
//     their order; what is unanswered is bounded in bytes and in number.
//   - A goroutine that reads a stream never waits for a send on it, so a
//     client that stops reading cannot wedge its own requests, and what it has not
//     read takes no memory beyond one response and the transport's window.
//   - A partition on a fetch stream that has nothing to deliver costs nothing.
//   - Every error that leaves carries a code of proto/errs; an error
//     without one is logged, counted, and told as UNKNOWN_SERVER_ERROR only.
package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/tidemarkhq/tidemark/internal/run"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Config bounds what clients may ask for.
type Config struct {
	// MaxBatchBytes bounds one record batch, whatever its topic allows.
	MaxBatchBytes int
	// MaxRequestBytes bounds every request that carries no batch. A request
	// takes up to a hundred times its size once it is decoded.
	MaxRequestBytes int
	// ProduceWindowBytes is how many bytes of batches one stream may have unanswered.
	ProduceWindowBytes int
	// ProduceWindowRequests is the same in requests.
	ProduceWindowRequests int
	// ProduceTimeout is for requests that name none; MaxProduceTimeout bounds those that do.
	ProduceTimeout    time.Duration
	MaxProduceTimeout time.Duration
	// MaxFetchBytes bounds one fetch response, unless one batch is larger.
	MaxFetchBytes int
	// MaxFetchPartitions is how many partitions one fetch stream may have.
	MaxFetchPartitions int
	// MaxFetchWait bounds how long a fetch gathers min_bytes.
	MaxFetchWait time.Duration
	// SessionWait is how long a fetch waits for a replica to reach the client's token.
	SessionWait time.Duration
	// MaxStreams bounds the calls of one connection.
	MaxStreams uint32
	// MaxHeaderBytes bounds the headers of one call.
	MaxHeaderBytes uint32
}

// DefaultConfig is what a broker uses unless told otherwise.
func DefaultConfig() Config {
	return Config{
		MaxBatchBytes:         8 << 20,
		MaxRequestBytes:       1 << 20,
		ProduceWindowBytes:    8 << 20,
		ProduceWindowRequests: 1024,
		ProduceTimeout:        30 * time.Second,
		MaxProduceTimeout:     10 * time.Minute,
		MaxFetchBytes:         8 << 20,
		MaxFetchPartitions:    4096,
		MaxFetchWait:          30 * time.Second,
		SessionWait:           30 * time.Second,
		MaxStreams:            256,
		MaxHeaderBytes:        16 << 10,
	}
}

func (c Config) check() error {
	if c.MaxBatchBytes <= 0 || c.MaxRequestBytes <= 0 || c.ProduceWindowBytes <= 0 || c.ProduceWindowRequests <= 0 ||
		c.ProduceTimeout <= 0 || c.MaxProduceTimeout <= 0 || c.MaxFetchBytes <= 0 || c.MaxFetchPartitions <= 0 ||
		c.MaxFetchWait <= 0 || c.SessionWait <= 0 || c.MaxStreams == 0 || c.MaxHeaderBytes == 0 {
		return fmt.Errorf("grpcapi: every limit must be above 0: %+v", c)
	}
	return nil
}

// Deps is what the door leads to. Topics and Metadata may be the same thing.
type Deps struct {
	Replicas Replicas
	Metadata Metadata
	Topics   Topics
	Groups   Groups
	// Settings are those of this broker, for DescribeConfig. Nil: none are shown.
	Settings func() []Setting

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// API implements the services of tidemark.v1. It is safe for concurrent use.
type API struct {
	pb.UnimplementedLogServer
	pb.UnimplementedTopicsServer
	pb.UnimplementedGroupsServer
	pb.UnimplementedAdminServer

	cfg     Config
	deps    Deps
	logger  *slog.Logger
	metrics *metrics
	health  *health.Server
	readers *run.Group // the goroutines that read streams; each ends with its stream

	// life ends when calls and streams shall end. It is the API's own, not a request's.
	life     *run.Group
	stopping <-chan struct{} // closed with life
	stopOnce sync.Once

	mu     sync.Mutex
	server *grpc.Server // guarded by mu; set by Serve
}

// New returns the door, closed.
func New(cfg Config, deps Deps) (*API, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if deps.Replicas == nil || deps.Metadata == nil || deps.Topics == nil || deps.Groups == nil {
		return nil, errors.New("grpcapi: a service is missing")
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	life := run.Owned("grpcapi-life")
	return &API{
		cfg:     cfg,
		deps:    deps,
		logger:  deps.Logger,
		metrics: newMetrics(deps.Registerer),
		health:  health.NewServer(),
		readers: run.Owned("grpcapi"),

		life:     life,
		stopping: life.Context().Done(),
	}, nil
}

// ServerOptions are the options without which a server must not carry the API.
func (a *API) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec(a.cfg)),
		grpc.ChainUnaryInterceptor(a.unary),
		grpc.ChainStreamInterceptor(a.stream),
		// Clients ping every ten seconds to find dead brokers; the default
		// of five minutes would end their connections for it.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.ConnectionTimeout(10 * time.Second),
		// The codec refuses with a clear error what is a little too large;
		// this bounds what reaches it.
		grpc.MaxRecvMsgSize(a.cfg.MaxBatchBytes + a.cfg.MaxRequestBytes),
		grpc.MaxSendMsgSize(1 << 30),
		grpc.MaxConcurrentStreams(a.cfg.MaxStreams),
		grpc.MaxHeaderListSize(a.cfg.MaxHeaderBytes),
	}
}

// Register puts the services, health and reflection on a server that was made
// with ServerOptions.
func (a *API) Register(s *grpc.Server) {
	pb.RegisterLogServer(s, a)
	pb.RegisterTopicsServer(s, a)
	pb.RegisterGroupsServer(s, a)
	pb.RegisterAdminServer(s, a)
	healthpb.RegisterHealthServer(s, a.health)
	reflection.Register(s)
}

// SetReady tells health checks whether clients should come here.
func (a *API) SetReady(ready bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		status = healthpb.HealthCheckResponse_SERVING
	}
	for _, name := range []string{"", "ready", pb.Log_ServiceDesc.ServiceName, pb.Topics_ServiceDesc.ServiceName, pb.Groups_ServiceDesc.ServiceName, pb.Admin_ServiceDesc.ServiceName} {
		a.health.SetServingStatus(name, status)
	}
	a.health.SetServingStatus("live", healthpb.HealthCheckResponse_SERVING)
}

// Serve accepts connections, ready from the start, until Stop. It returns nil after Stop.
func (a *API) Serve(l net.Listener) error {
	s := grpc.NewServer(a.ServerOptions()...)
	a.Register(s)
	a.mu.Lock()
	select {
	case <-a.stopping:
		a.mu.Unlock()
		return l.Close()
	default:
		a.server = s
		a.SetReady(true)
	}
	a.mu.Unlock()
	if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve gRPC on %v: %w", l.Addr(), err)
	}
	return nil
}

// Drain refuses new calls and ends the streams with SHUTTING_DOWN, after what
// they have in flight. It does not wait.
func (a *API) Drain() {
	a.stopOnce.Do(func() {
		a.health.Shutdown()
		a.life.Cancel()
	})
}

// Stop drains and closes. Calls that have not ended when ctx is done are cut off.
func (a *API) Stop(ctx context.Context) error {
	a.Drain()
	a.mu.Lock()
	s := a.server
	a.mu.Unlock()
	var err error
	if s != nil {
		err = stopServer(ctx, s)
	}
	a.readers.Stop()
	return err
}

func stopServer(ctx context.Context, s *grpc.Server) error {
	graceful := run.Owned("grpcapi-stop")
	done := make(chan struct{})
	graceful.Go("graceful", func(context.Context) {
		s.GracefulStop()
		close(done)
	})
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		s.Stop() // cuts off what is left, so that the graceful stop returns
		err = fmt.Errorf("stop gRPC: calls were cut off: %w", ctx.Err())
	}
	graceful.Stop()
	return err
}
