package client

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Client is the connections to one cluster. It is safe for concurrent use.
type Client struct {
	cfg Config

	mu       sync.Mutex
	closed   bool                        // guarded by mu
	conns    map[string]*grpc.ClientConn // guarded by mu; by address
	lastGood string                      // guarded by mu; address that answered last
	brokers  map[int32]Broker            // guarded by mu
	topics   map[string]*Topic           // guarded by mu; values are never changed
	groups   map[string]int32            // guarded by mu; coordinator by group
}

// maxGroups bounds the cache of coordinators.
const maxGroups = 1024

// Open returns a client. It connects when it is first used.
func Open(cfg Config) (*Client, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.Brokers = slices.Clone(cfg.Brokers)
	return &Client{
		cfg:     cfg,
		conns:   make(map[string]*grpc.ClientConn),
		brokers: make(map[int32]Broker),
		topics:  make(map[string]*Topic),
		groups:  make(map[string]int32),
	}, nil
}

// Config is the configuration in use.
func (c *Client) Config() Config { return c.cfg }

// Close closes every connection; calls under way fail.
func (c *Client) Close() error {
	c.mu.Lock()
	conns := c.conns
	c.conns, c.closed = nil, true
	c.mu.Unlock()
	for _, conn := range conns {
		// Closing a ClientConn twice is the only error it has.
		_ = conn.Close()
	}
	return nil
}

var errClosed = errs.New(errs.InvalidRequest, "the client is closed")

// conn returns the connection to an address.
func (c *Client) conn(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if conn, ok := c.conns[addr]; ok {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, c.dialOptions()...)
	if err != nil {
		return nil, errs.Errorf(errs.BrokerNotAvailable, "broker %s: %w", addr, err)
	}
	c.conns[addr] = conn
	return conn, nil
}

func (c *Client) dialOptions() []grpc.DialOption {
	creds := insecure.NewCredentials()
	if c.cfg.TLS != nil {
		creds = credentials.NewTLS(c.cfg.TLS)
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent(c.cfg.ClientID),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithStatsHandler(sentTracker{}),
		// gRPC's own backoff grows to two minutes, which would make every
		// failover that slow.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(c.cfg.MaxRecvBytes), grpc.MaxCallSendMsgSize(c.cfg.MaxRecvBytes)),
	}
}

// Broker returns the connection to a broker that the metadata names.
func (c *Client) Broker(id int32) (*grpc.ClientConn, error) {
	c.mu.Lock()
	b, ok := c.brokers[id]
	c.mu.Unlock()
	if !ok || b.Address == "" {
		return nil, errs.Errorf(errs.BrokerNotAvailable, "broker %d is not in the cluster's metadata", id)
	}
	return c.conn(b.Address)
}

// Nudge makes a connection that waits in gRPC's backoff try again at once.
func (c *Client) Nudge(id int32) {
	if conn, err := c.Broker(id); err == nil {
		conn.ResetConnectBackoff()
	}
}

// addresses lists every address to try: the one that answered last, then the
// given ones, then those of the metadata.
func (c *Client) addresses() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	if c.lastGood != "" {
		all = append(all, c.lastGood)
	}
	all = append(all, c.cfg.Brokers...)
	ids := make([]int32, 0, len(c.brokers))
	for id := range c.brokers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if a := c.brokers[id].Address; a != "" {
			all = append(all, a)
		}
	}
	var unique []string
	for _, a := range all {
		if !slices.Contains(unique, a) {
			unique = append(unique, a)
		}
	}
	return unique
}

func (c *Client) worked(addr string) {
	c.mu.Lock()
	c.lastGood = addr
	c.mu.Unlock()
}

// String names the addresses, for errors.
func (c *Client) String() string { return fmt.Sprint(c.addresses()) }

// Sleep pauses for d or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
