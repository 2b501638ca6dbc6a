package admin

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client"
)

// Option configures a Client.
type Option func(*client.Config)

// WithClientID names this client in the broker's logs. Default "tidemark-go".
func WithClientID(id string) Option { return func(c *client.Config) { c.ClientID = id } }

// WithLogger sets where the client reports retries. Default: nowhere.
func WithLogger(logger *slog.Logger) Option { return func(c *client.Config) { c.Logger = logger } }

// WithTLS turns on TLS. Default: plain text.
func WithTLS(t *tls.Config) Option { return func(c *client.Config) { c.TLS = t } }

// WithRequestTimeout bounds each call, retries included, where its context has no earlier
// deadline. Default 30 s.
func WithRequestTimeout(d time.Duration) Option {
	return func(c *client.Config) { c.RequestTimeout = d }
}
