package consumer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// membership is this consumer's place in its group. The heartbeat goroutine learns what
// the member shall work on (target); Poll moves there, calling back, and the
// next heartbeat says what the member owns.
type membership struct {
	id   string        // immutable
	beat chan struct{} // a heartbeat is due at once
	done chan struct{} // closed when the heartbeats have ended

	// These are guarded by Consumer.mu.
	epoch     int32 // 0: not a member
	target    map[TopicPartition]bool
	changed   bool // target differs from what is owned
	lost      []TopicPartition
	cancel    context.CancelFunc // ends the heartbeat under way; nil: none is
	lastGood  clock.Mono         // when a heartbeat was answered
	lastPoll  clock.Mono
	polling   bool
	suspended bool // left because Poll was not called
	// joined: the group may count this member, even where the answer to its
	// join never came. Close must leave then, or a ghost keeps partitions.
	joined   bool
	joining  bool // a join is on its way to the coordinator
	stopping bool // no heartbeat may begin
}

// releaseInstance as the member epoch of LeaveGroup says that a static member
// will be back: its partitions are kept for it.
const releaseInstance = -2

func newMemberID() string {
	var b [16]byte
	// It never fails (crypto/rand).
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// subscribed tells whether the group assigns partitions to this consumer.
func (c *Consumer) subscribed() bool {
	return c.cfg.group != "" && (len(c.cfg.topics) > 0 || c.cfg.topicRegex != "")
}

// heartbeats keeps the member in its group.
func (c *Consumer) heartbeats(ctx context.Context) {
	defer close(c.member.done)
	for failures := 0; !c.stopped(ctx); {
		if c.idleTooLong(ctx) {
			continue
		}
		began := clock.Monotonic()
		res, err := c.heartbeat(ctx)
		if err != nil && c.stopped(ctx) {
			return
		}
		pause := time.Duration(0)
		switch {
		case err == nil:
			failures = 0
			news := c.assigned(res)
			pause = c.untilNext(res, !news && clock.Since(began) < 5*time.Millisecond)
		case errs.CodeOf(err) == errs.UnknownMemberID || errs.CodeOf(err) == errs.FencedMemberEpoch:
			c.cfg.client.Logger.Warn("the group went on without this member, joining again", "group", c.cfg.group, "err", err)
			c.mu.Lock()
			c.member.joined = false
			c.mu.Unlock()
			c.lose(0)
		case errs.CodeOf(err) == errs.UnreleasedInstanceID || errs.Retriable(err):
			c.noteSilence(err)
			pause = c.cfg.client.Backoff.Delay(failures)
			if !errors.Is(err, context.Canceled) { // by ourselves
				failures++
			}
		default:
			c.ejected(err)
			pause = c.cfg.client.Backoff.Max
		}
		c.restBeat(ctx, pause)
	}
}

func (c *Consumer) stopped(ctx context.Context) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.member.stopping || ctx.Err() != nil
}

// endHeartbeats ends the heartbeats. A join that is on its way is waited for: one that took
// effect after the member has left would leave a ghost behind.
func (c *Consumer) endHeartbeats(ctx context.Context) {
	m := &c.member
	c.mu.Lock()
	m.stopping = true
	if m.cancel != nil && !m.joining {
		m.cancel()
	}
	c.mu.Unlock()
	select {
	case m.beat <- struct{}{}:
	default:
	}
	select {
	case <-m.done:
	case <-ctx.Done():
	}
}

// beginHeartbeat is false when no heartbeat may begin any more.
func (c *Consumer) beginHeartbeat(join bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.member.joining = join
	return !c.member.stopping
}

// restBeat waits for pause, or until a heartbeat is due at once.
func (c *Consumer) restBeat(ctx context.Context, pause time.Duration) {
	if pause <= 0 {
		return
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.member.beat:
	case <-ctx.Done():
	}
}

// heartbeat makes one call. Its answer may take the long-poll time; a change on our
// side ends the wait early, which is safe because a heartbeat is idempotent.
func (c *Consumer) heartbeat(ctx context.Context) (*tidemarkv1.HeartbeatResponse, error) {
	wait := min(c.cfg.sessionTimeout/3, c.cfg.client.RequestTimeout/2)
	c.mu.Lock()
	// Give up early enough to notice that the session is over, and no later than when it is.
	limit := wait + c.cfg.sessionTimeout/3
	if left := c.cfg.sessionTimeout - clock.Since(c.member.lastGood); c.member.epoch > 0 && left > 0 {
		limit = min(limit, left)
	}
	ctx, cancel := context.WithDeadline(ctx, clock.Deadline(limit))
	defer cancel()
	select {
	case <-c.member.beat: // what it is about is in this request
	default:
	}
	req := c.heartbeatRequestLocked(wait)
	c.member.cancel = cancel
	c.mu.Unlock()
	var res *tidemarkv1.HeartbeatResponse
	err := c.client.Coordinator(ctx, "heartbeat", client.Change, c.cfg.group, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		if !c.beginHeartbeat(req.GetMemberEpoch() == 0) {
			return ErrClosed
		}
		res, err = tidemarkv1.NewGroupsClient(conn).Heartbeat(ctx, req)
		return err
	})
	c.mu.Lock()
	c.member.cancel, c.member.joining = nil, false
	c.member.joined = c.member.joined || err == nil || errs.OutcomeUnknown(err)
	c.mu.Unlock()
	return res, err
}

func (c *Consumer) heartbeatRequestLocked(wait time.Duration) *tidemarkv1.HeartbeatRequest {
	req := &tidemarkv1.HeartbeatRequest{
		Group: c.cfg.group, MemberId: c.member.id, InstanceId: c.cfg.instanceID, MemberEpoch: c.member.epoch,
		ClientId: c.cfg.client.ClientID, SessionTimeoutMs: uint32(c.cfg.sessionTimeout.Milliseconds()),
		RebalanceTimeoutMs: uint32(c.cfg.rebalanceTimeout.Milliseconds()),
		Topics:             c.cfg.topics, TopicRegex: c.cfg.topicRegex, Rack: c.cfg.rack,
	}
	if c.member.epoch > 0 {
		req.MaxWaitMs = uint32(wait.Milliseconds())
	}
	for _, t := range c.order { // sorted, so that topics come together
		n := len(req.Owned)
		if n == 0 || req.Owned[n-1].GetTopic() != t.Topic {
			req.Owned = append(req.Owned, &tidemarkv1.Assignment{Topic: t.Topic})
			n++
		}
		req.Owned[n-1].Partitions = append(req.Owned[n-1].Partitions, t.Partition)
	}
	return req
}

// untilNext paces heartbeats while Poll has not moved yet, and where the broker
// answered without news and without holding the request (hasty).
func (c *Consumer) untilNext(res *tidemarkv1.HeartbeatResponse, hasty bool) time.Duration {
	interval := time.Duration(res.GetHeartbeatIntervalMs()) * time.Millisecond
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.member.changed || len(c.member.lost) > 0 || hasty {
		return min(max(interval, 10*time.Millisecond), c.cfg.sessionTimeout/3) // Poll wakes us when it has moved
	}
	return 0
}

// assigned notes what the member shall work on; it tells whether the epoch is new.
func (c *Consumer) assigned(res *tidemarkv1.HeartbeatResponse) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &c.member
	m.lastGood = clock.Monotonic()
	c.lastErr = nil
	news = m.epoch != res.GetMemberEpoch()
	m.epoch = res.GetMemberEpoch()
	m.target = make(map[TopicPartition]bool)
	for _, a := range res.GetAssigned() {
		for _, n := range a.GetPartitions() {
			m.target[TopicPartition{a.GetTopic(), n}] = true
		}
	}
	c.compareLocked()
	return news
}

// compare notes whether Poll has to move.
func (c *Consumer) compareLocked() {
	m := &c.member
	m.changed = len(m.target) != len(c.parts)
	for tp := range m.target {
		m.changed = m.changed || c.parts[tp] == nil
	}
	if m.changed {
		c.poke()
	}
}

// lose gives up all partitions at once: others may have them.
func (c *Consumer) lose(epoch int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &c.member
	m.epoch, m.target, m.changed = epoch, nil, false
	for _, t := range slices.Clone(c.order) {
		m.lost = append(m.lost, t.TopicPartition)
		c.takeLocked(t.TopicPartition)
	}
	if len(m.lost) > 0 {
		c.poke()
	}
}

// noteSilence gives up the partitions once the session must have ended at the coordinator.
func (c *Consumer) noteSilence(err error) {
	c.mu.Lock()
	silent := c.member.epoch > 0 && clock.Since(c.member.lastGood) >= c.cfg.sessionTimeout
	epoch := c.member.epoch
	c.lastErr = err
	c.mu.Unlock()
	if silent {
		c.lose(epoch)
	}
}

// ejected reports an error that joining again does not cure.
func (c *Consumer) ejected(err error) {
	c.lose(0)
	c.mu.Lock()
	c.err = fmt.Errorf("group %s: %w", c.cfg.group, err)
	c.mu.Unlock()
	c.poke()
}

// idleTooLong leaves the group when Poll is not called any more, and waits until it is.
func (c *Consumer) idleTooLong(ctx context.Context) bool {
	c.mu.Lock()
	m := &c.member
	idle := m.epoch > 0 && !m.polling && clock.Since(m.lastPoll) > c.cfg.maxPollInterval
	epoch := m.epoch
	m.suspended = idle
	c.mu.Unlock()
	if !idle {
		return false
	}
	c.cfg.client.Logger.Warn("poll was not called in time, leaving the group", "group", c.cfg.group, "max_poll_interval", c.cfg.maxPollInterval)
	c.lose(0)
	if err := c.leave(ctx, epoch); err != nil {
		c.cfg.client.Logger.Warn("leaving the group", "group", c.cfg.group, "err", err)
	}
	for {
		c.mu.Lock()
		waiting := m.suspended && !m.stopping
		c.mu.Unlock()
		if !waiting {
			return true
		}
		select {
		case <-ctx.Done():
			return true
		case <-m.beat:
		}
	}
}

func (c *Consumer) leave(ctx context.Context, epoch int32) error {
	err := c.client.Coordinator(ctx, "leave group", client.Repeat, c.cfg.group, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := tidemarkv1.NewGroupsClient(conn).LeaveGroup(ctx, &tidemarkv1.LeaveGroupRequest{
			Group: c.cfg.group, MemberId: c.member.id, InstanceId: c.cfg.instanceID, MemberEpoch: epoch,
		})
		return err
	})
	if errs.CodeOf(err) == errs.UnknownMemberID {
		return nil // it is out already
	}
	return err
}

// due makes a heartbeat go out at once. Consumer.mu is held.
func (m *membership) dueLocked() {
	select {
	case m.beat <- struct{}{}:
	default:
	}
	if m.cancel != nil {
		m.cancel()
	}
}

// rebalance moves to what the group assigned, calling back. Only Poll calls it, so
// the caller does not process records meanwhile.
func (c *Consumer) rebalance(ctx context.Context) {
	c.mu.Lock()
	m := &c.member
	lost := m.lost
	m.lost = nil
	var revoked, added []TopicPartition
	if m.changed {
		for _, t := range c.order {
			if !m.target[t.TopicPartition] {
				revoked = append(revoked, t.TopicPartition)
			}
		}
		for tp := range m.target {
			if c.parts[tp] == nil {
				added = append(added, tp)
			}
		}
		slices.SortFunc(added, compare)
		m.changed = false
	}
	c.mu.Unlock()
	if len(lost) > 0 && c.cfg.onLost != nil {
		c.cfg.onLost(ctx, lost)
	}
	if len(revoked) > 0 {
		c.revoke(ctx, revoked)
	}
	if len(added) > 0 {
		c.mu.Lock()
		for _, tp := range added {
			if m.target[tp] && c.parts[tp] == nil { // not lost meanwhile
				c.putLocked(newPart(tp, AtCommitted()))
			}
		}
		c.mu.Unlock()
		if c.cfg.onAssigned != nil {
			c.cfg.onAssigned(ctx, added)
		}
		c.refresh.Trigger()
		c.manage()
	}
	if len(lost)+len(revoked)+len(added) > 0 {
		c.mu.Lock()
		// The target may have changed during the callbacks, and may have looked
		// the same then: as when a partition comes back that was just being given up.
		c.compareLocked()
		m.dueLocked()
		c.mu.Unlock()
	}
}

// revoke gives partitions up: callback, commit, forget.
func (c *Consumer) revoke(ctx context.Context, revoked []TopicPartition) {
	if c.cfg.onRevoked != nil {
		c.cfg.onRevoked(ctx, revoked)
	}
	if c.cfg.autoCommit > 0 {
		// Not with the caller's context: a Poll that is called off in the middle would give up
		// partitions without their commit, and the next owner would read again
		// what was processed here. The session bounds it: behind that they are lost anyway.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.sessionTimeout)
		defer cancel()
		if err := c.commitDone(ctx, revoked); err != nil {
			c.cfg.client.Logger.Warn("commit before giving up partitions", "group", c.cfg.group, "err", err)
		}
	}
	c.mu.Lock()
	for _, tp := range revoked {
		c.takeLocked(tp)
	}
	c.mu.Unlock()
}
