package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/tidemarkhq/tidemark/broker/httpapi"
)

// live: a restart helps where this fails, and only there.
func (b *Broker) live() []httpapi.Check {
	return []httpapi.Check{{Name: "disk-writer", Run: func(context.Context) error {
		if err := b.failed.Load(); err != nil {
			return *err
		}
		return nil
	}}}
}

// ready: facts of this process alone.
func (b *Broker) ready() []httpapi.Check {
	return append(b.started(),
		httpapi.Check{Name: "not-draining", Run: func(context.Context) error {
			if b.phase.Load() == phaseDraining {
				return errors.New("the broker stops")
			}
			return nil
		}},
		httpapi.Check{Name: "disk", Run: func(context.Context) error {
			if n := b.stalled.Load(); n > 0 {
				return fmt.Errorf("%d writes or syncs have been running for seconds", n)
			}
			return nil
		}},
	)
}

func (b *Broker) started() []httpapi.Check {
	return []httpapi.Check{{Name: "recovered", Run: func(context.Context) error {
		if b.phase.Load() == phaseStarting {
			return errors.New("the broker recovers its replicas; no client is let in yet")
		}
		return nil
	}}}
}

// healthy: what clients would notice. It may depend on other brokers.
func (b *Broker) healthy() []httpapi.Check {
	return append(b.ready(),
		httpapi.Check{Name: "metadata", Run: func(ctx context.Context) error {
			if b.phase.Load() != phaseServing {
				return errors.New("not there yet")
			}
			return b.controller.Linearize(ctx)
		}},
		httpapi.Check{Name: "partitions", Run: func(context.Context) error {
			if b.phase.Load() != phaseServing {
				return errors.New("not there yet")
			}
			return b.replicas.Trouble()
		}},
		httpapi.Check{Name: "disk-space", Run: func(context.Context) error {
			if b.phase.Load() == phaseServing && b.space.Low() {
				return errors.New("the disk is nearly full: appends are refused")
			}
			return nil
		}},
	)
}
