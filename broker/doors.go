package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/tidemarkhq/tidemark/broker/grpcapi"
	"github.com/tidemarkhq/tidemark/broker/httpapi"
	"github.com/tidemarkhq/tidemark/internal/clock"
)

// doors are the listeners and what serves them.
type doors struct {
	addresses Addresses
	listeners struct{ grpc, admin net.Listener }
	grpc      *grpcapi.API
	admin     *httpapi.API
}

// bindDoors takes the ports early: one that is taken is found out before data is touched,
// and the broker registers with the ports it got. The admin door
// answers at once, to say that the broker is starting.
func (b *Broker) bindDoors(ctx context.Context) error {
	registerMetrics(b)
	l, err := b.listen(ctx, "listeners.grpc.address", b.cfg.Listeners.GRPC.Address, "grpc")
	if err != nil {
		return err
	}
	b.doors.listeners.grpc, b.doors.addresses.GRPC = l, l.Addr().String()
	if b.cfg.Listeners.Admin.Address == "" {
		return nil
	}
	if l, err = b.listen(ctx, "listeners.admin.address", b.cfg.Listeners.Admin.Address, "http"); err != nil {
		return err
	}
	b.doors.listeners.admin, b.doors.addresses.Admin = l, l.Addr().String()
	b.doors.admin = httpapi.New(httpapi.Deps{
		Live: b.live(), Ready: b.ready(), Health: b.healthy(), Startup: b.started(),
		Gatherer: b.deps.Registry, Logger: b.logger,
	})
	b.onStop("the admin door", b.doors.admin.Stop)
	b.tasks.Go("admin", func(context.Context) {
		if err := b.doors.admin.Serve(l); err != nil {
			b.logger.Error("the admin door closed", "err", err)
		}
	})
	return nil
}

func (b *Broker) listen(ctx context.Context, setting, address, protocol string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use by another process; stop it, or choose another address (port 0 takes a free one): %w", setting, address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: cannot listen on %s: %w", setting, address, err)
	}
	b.onStop(setting, func(context.Context) error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil // by the door that served it
	})
	return newBounded(l, b.cfg.Limits.Connections, protocol, b.deps.Registry), nil
}

// openDoors lets clients in.
func (b *Broker) openDoors(context.Context) error {
	api, err := grpcapi.New(grpcapi.DefaultConfig(), grpcapi.Deps{
		Replicas: grpcapi.Over(b.replicas), Metadata: b.controller, Topics: b.controller, Groups: b.groups,
		Settings: b.deps.Settings, Logger: b.logger, Registerer: b.deps.Registry,
	})
	if err != nil {
		return err
	}
	b.doors.grpc = api
	b.onStop("the gRPC door", func(ctx context.Context) error {
		ctx, cancel := half(ctx)
		defer cancel()
		return api.Stop(ctx)
	})
	b.tasks.Go("grpc", func(context.Context) {
		if err := api.Serve(b.doors.listeners.grpc); err != nil {
			b.onFatal(err)
		}
	})
	return nil
}

// half leaves half of the time that is left to those who come after.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, deadline.Sub(clock.System().Now())/2)
}
