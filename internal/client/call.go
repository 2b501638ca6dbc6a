package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Kind says when a call may be tried again.
type Kind int

const (
	// Ask changes nothing: it is tried again after every passing error.
	Ask Kind = iota
	// Change is tried again only where the try before certainly did nothing.
	Change
	// Repeat changes it to the same however often it is done: it is tried again like Ask, but an
	// error says that the outcome is unknown once a try may have taken effect.
	Repeat
)

// Func is one try of a call over one connection.
type Func func(ctx context.Context, conn *grpc.ClientConn) error

// Any makes a call to any broker, all known addresses in turn, until it is
// answered, or ctx or the request timeout ends.
func (c *Client) Any(ctx context.Context, op string, kind Kind, f Func) error {
	return c.retry(ctx, op, kind, f, func(try int) (string, error) {
		all := c.addresses()
		return all[try%len(all)], nil
	}, nil)
}

// Coordinator makes a call to the coordinator of a group.
func (c *Client) Coordinator(ctx context.Context, op string, kind Kind, group string, f Func) error {
	return c.retry(ctx, op, kind, f, func(try int) (string, error) {
		if addr := c.coordinator(group); addr != "" {
			return addr, nil
		}
		all := c.addresses()
		return all[try%len(all)], nil
	}, func(err error) { c.learnCoordinator(group, err) })
}

// Leader makes a call to the leader of a partition.
func (c *Client) Leader(ctx context.Context, op string, kind Kind, topic string, partition int32, f Func) error {
	return c.retry(ctx, op, kind, f, func(try int) (string, error) {
		if try > 0 {
			if err := c.Refresh(ctx, topic); err != nil {
				return "", err
			}
		}
		return c.leaderAddress(ctx, topic, partition)
	}, nil)
}

func (c *Client) retry(ctx context.Context, op string, kind Kind, f Func, pick func(try int) (string, error), learn func(error)) error {
	ctx, cancel := context.WithDeadline(ctx, clock.Deadline(c.cfg.RequestTimeout))
	defer cancel()
	var last error
	maybe := false // an earlier try may have taken effect
	for try := 0; ; try++ {
		err := c.try(ctx, kind, f, pick, try)
		if err == nil {
			return nil
		}
		if maybe = maybe || kind == Repeat && errs.OutcomeUnknown(err); maybe && !errs.OutcomeUnknown(err) {
			err = WithOutcome(err, "an earlier try was not answered, and may have taken effect")
		}
		if learn != nil {
			learn(err)
		}
		if ctx.Err() == nil || last == nil || errs.OutcomeUnknown(err) {
			last = err
		}
		if !again(err, kind, try) || ctx.Err() != nil || Sleep(ctx, c.pause(try)) != nil {
			return giveUp(ctx, op, try, last)
		}
	}
}

// pause lets a first round over all addresses go by quickly.
func (c *Client) pause(try int) time.Duration {
	rounds := try / max(1, len(c.addresses()))
	return c.cfg.Backoff.Delay(rounds)
}

func (c *Client) try(ctx context.Context, kind Kind, f Func, pick func(int) (string, error), try int) error {
	addr, err := pick(try)
	if err != nil {
		return err
	}
	conn, err := c.conn(addr)
	if err != nil {
		return err
	}
	call, sent := TrackSent(ctx)
	if kind != Change {
		// A broker that does not answer must not use up the whole time.
		var cancel context.CancelFunc
		call, cancel = context.WithDeadline(call, clock.Deadline(c.cfg.AttemptTimeout))
		defer cancel()
	}
	err = f(call, conn)
	if err == nil {
		c.worked(addr)
		return nil
	}
	if errors.As(err, new(*errs.Error)) {
		return err // mapped by f
	}
	return FromCall(ctx, err, kind != Ask && sent.Happened())
}

// unknownTopicTries is how often a topic that does not exist is asked for: it may
// have been created a moment ago, but is more likely misspelt.
const unknownTopicTries = 5

func again(err error, kind Kind, try int) bool {
	if kind == Change && errs.OutcomeUnknown(err) {
		return false
	}
	if errs.CodeOf(err) == errs.UnknownTopicOrPartition && try >= unknownTopicTries {
		return false
	}
	return errs.Retriable(err)
}

func giveUp(ctx context.Context, op string, tries int, err error) error {
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		err = errors.Join(err, cause)
		return fmt.Errorf("%s: gave up after %d tries: %w", op, tries+1, oneLine{err})
	}
	return fmt.Errorf("%s: %w", op, err)
}

// oneLine prints joined errors in one line.
type oneLine struct{ err error }

func (o oneLine) Error() string {
	if j, ok := o.err.(interface{ Unwrap() []error }); ok {
		var s string
		for i, e := range j.Unwrap() {
			if i > 0 {
				s += "; "
			}
			s += e.Error()
		}
		return s
	}
	return o.err.Error()
}

func (o oneLine) Unwrap() error { return o.err }

func (c *Client) coordinator(group string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.groups[group]
	if !ok {
		return ""
	}
	return c.brokers[id].Address
}

// learnCoordinator follows a broker's word on who coordinates, as long as the
// metadata knows that broker, and else forgets what it knew.
func (c *Client) learnCoordinator(group string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var led *LeaderError
	if errs.CodeOf(err) == errs.NotCoordinator && errors.As(err, &led) {
		if _, known := c.brokers[led.LeaderID]; known {
			if len(c.groups) >= maxGroups {
				clear(c.groups)
			}
			c.groups[group] = led.LeaderID
			return
		}
	}
	if slices.Contains([]errs.Code{errs.NotCoordinator, errs.CoordinatorNotAvailable, errs.NetworkException, errs.RequestTimedOut}, errs.CodeOf(err)) {
		delete(c.groups, group)
	}
}
