// Package testkit starts real brokers inside tests.
//
// A Broker listens on a loopback port of its own, which it keeps over a restart, and
// has its data in a temporary directory.
package testkit

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/broker"
)

// patience bounds starting and stopping on a loaded machine.
const patience = 30 * time.Second

// Broker is a broker in this process.
type Broker struct {
	fail   func(format string, args ...any)
	cfg    broker.Config
	broker *broker.Broker // nil while stopped
	own    string         // a directory to be removed, or empty
}

// Option changes the configuration of a broker before it starts.
type Option func(*broker.Config)

// StartBroker starts a broker on an empty directory; it stops with the test.
func StartBroker(t testing.TB, opts ...Option) *Broker {
	t.Helper()
	b := newBroker(t.TempDir(), opts)
	b.fail = t.Fatalf
	t.Cleanup(b.Stop)
	b.Start()
	return b
}

// NewBroker starts a broker for an example, which has no testing.TB: it panics
// when something fails, and its Stop removes the data.
func NewBroker(opts ...Option) *Broker {
	fail := func(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
	dir, err := os.MkdirTemp("", "tidemark-example-")
	if err != nil {
		fail("%v", err)
	}
	b := newBroker(dir, opts)
	b.fail, b.own = fail, dir
	b.Start()
	return b
}

func newBroker(dir string, opts []Option) *Broker {
	cfg := broker.DefaultConfig()
	cfg.Node.DataDir = dir
	cfg.Listeners.GRPC.Address = freeAddress()
	cfg.Listeners.Admin.Address = ""
	cfg.Limits.PoolBytes = 0
	for _, o := range opts {
		o(&cfg)
	}
	return &Broker{cfg: cfg}
}

// Address is where clients reach the broker. It stays the same over Restart.
func (b *Broker) Address() string { return b.cfg.Listeners.GRPC.Address }

// Start starts the broker, on the data that it left when it was stopped.
func (b *Broker) Start() {
	started, err := broker.New(b.cfg, broker.Deps{Logger: slog.New(slog.DiscardHandler), OnFatal: func(err error) { panic(err) }})
	if err != nil {
		b.fail("%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := started.Start(ctx); err != nil {
		b.fail("%v", err)
	}
	b.broker = started
}

// Stop stops the broker gracefully.
func (b *Broker) Stop() {
	if b.broker == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.broker.Stop(ctx); err != nil {
		b.fail("stop the broker: %v", err)
	}
	b.broker = nil
	if b.own != "" {
		if err := os.RemoveAll(b.own); err != nil {
			b.fail("%v", err)
		}
	}
}

// Restart stops the broker and starts it again.
func (b *Broker) Restart() {
	b.Stop()
	b.Start()
}

// freeAddress finds a port that is free now and can be bound again after a restart.
func freeAddress() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
