// Package client is what producer, consumer and admin share: connections to the
// brokers, a cache of who leads what, and the meaning of errors.
//
// Requests go to addresses that the user gave or that the cluster's metadata
// names, never to one that an error hints at. An error that it returns says
// whether the request was refused or its outcome is unknown; a request that
// never left this process was refused.
package client

import (
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Config says how to reach the cluster.
type Config struct {
	Brokers  []string // host:port of gRPC listeners, tried in turn
	ClientID string
	TLS      *tls.Config // nil: plain text
	Logger   *slog.Logger
	Backoff  Backoff
	// RequestTimeout bounds a unary call, retries included, whose context has no earlier deadline.
	RequestTimeout time.Duration
	// AttemptTimeout bounds one try of it, so that a dead broker does not use up the whole time.
	AttemptTimeout time.Duration
	// MetadataMaxAge is after which known metadata is asked for again, in passing.
	MetadataMaxAge time.Duration
	// MaxRecvBytes bounds one response.
	MaxRecvBytes int
}

// DefaultConfig has everything but the brokers.
func DefaultConfig() Config {
	return Config{
		ClientID:       "tidemark-go",
		Logger:         slog.New(slog.DiscardHandler),
		Backoff:        Backoff{Min: 20 * time.Millisecond, Max: time.Second},
		RequestTimeout: 30 * time.Second,
		AttemptTimeout: 10 * time.Second,
		MetadataMaxAge: 5 * time.Minute,
		MaxRecvBytes:   80 << 20,
	}
}

func (c *Config) validate() error {
	if len(c.Brokers) == 0 {
		return errs.Errorf(errs.InvalidConfig, "no broker address was given; name at least one gRPC listener as host:port")
	}
	for _, b := range c.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return errs.Errorf(errs.InvalidConfig, "broker address %q: %w; write host:port", b, err)
		}
	}
	if c.Backoff.Min <= 0 || c.Backoff.Max < c.Backoff.Min {
		return errs.Errorf(errs.InvalidConfig, "retry backoff from %v to %v: the first must be above zero and not above the second", c.Backoff.Min, c.Backoff.Max)
	}
	if c.RequestTimeout <= 0 || c.AttemptTimeout <= 0 {
		return errs.Errorf(errs.InvalidConfig, "request timeouts must be above zero")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Backoff is the pause before a retry.
type Backoff struct{ Min, Max time.Duration }

// Delay is the pause before retry number n, counted from 0: it doubles, and a
// random half is taken off so that many clients do not come back at once.
func (b Backoff) Delay(n int) time.Duration {
	d := b.Max
	if n < 30 {
		d = min(b.Min<<n, b.Max)
	}
	return d/2 + rand.N(d/2+1)
}
