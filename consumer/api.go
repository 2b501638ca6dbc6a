package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	"github.com/tidemarkhq/tidemark/proto/session"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Consumer reads records. New makes one; Close ends it.
type Consumer struct {
	cfg        config
	client     *client.Client
	group      *run.Group // owns links, streams, heartbeats, commits, metadata
	refresh    *client.Refresher
	wake       chan struct{} // Poll shall look
	work       chan struct{} // the supervisor shall look
	unresolved chan struct{} // the resolver shall look

	polling sync.Mutex // held by Poll and Close: they alone call back
	commits sync.Mutex // held over a commit

	mu     sync.Mutex
	closed bool                     // guarded by mu
	parts  map[TopicPartition]*part // guarded by mu
	order  []*part                  // guarded by mu; parts, sorted
	turn   int                      // guarded by mu; whose turn it is in order
	// returned is what the last Poll returned records of, so that the next one
	// need not look at every partition.
	returned []*part         // guarded by mu
	links    map[int32]*link // guarded by mu; by broker
	session  uint64          // guarded by mu; last one given out
	member   membership      // see there
	err      error           // guarded by mu; for the next Poll
	lastErr  error           // guarded by mu; why nothing comes, where it is known
	missing  map[string]int  // guarded by mu; refreshes that did not know a topic
	token    session.Token   // guarded by mu
}

func compare(a, b TopicPartition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// New returns a consumer that finds the cluster through any of brokers
// (host:port of gRPC listeners, all tried in turn). It does not wait for a connection.
func New(brokers []string, opts ...Option) (*Consumer, error) {
	cfg := defaults()
	for _, o := range opts {
		o(&cfg)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.client.Brokers = brokers
	cl, err := client.Open(cfg.client)
	if err != nil {
		return nil, err
	}
	c := &Consumer{
		cfg: cfg, client: cl, group: run.Owned("consumer"),
		wake: make(chan struct{}, 1), work: make(chan struct{}, 1), unresolved: make(chan struct{}, 1),
		parts: make(map[TopicPartition]*part), links: make(map[int32]*link), missing: make(map[string]int),
		member: membership{id: newMemberID(), beat: make(chan struct{}, 1), done: make(chan struct{}), lastPoll: clock.Monotonic(), lastGood: clock.Monotonic()},
	}
	c.refresh = client.NewRefresher(cl, c.topicNames, c.refreshed)
	c.start()
	return c, nil
}

func (c *Consumer) start() {
	c.group.Go("metadata", c.refresh.Run)
	c.group.Go("supervise", c.supervise)
	c.group.Go("resolve", c.resolver)
	if c.subscribed() {
		c.group.Go("heartbeat", c.heartbeats)
	}
	if c.cfg.group != "" && c.cfg.autoCommit > 0 {
		c.group.Go("commit", c.autoCommit)
	}
	c.refresh.Trigger()
}

func (c *Consumer) topicNames() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[string]bool)
	var names []string
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	if c.cfg.group == "" {
		for _, name := range c.cfg.topics {
			add(name)
		}
	}
	for _, t := range c.order {
		add(t.Topic)
	}
	return names
}

// Assign sets the partitions to read and where each starts, in place of those assigned
// before. It does not go together with a subscription.
func (c *Consumer) Assign(_ context.Context, partitions map[TopicPartition]Position) error {
	if len(c.cfg.topics) > 0 || c.cfg.topicRegex != "" {
		return errs.Errorf(errs.InvalidRequest, "this consumer is subscribed to topics; assign partitions with a consumer that is not")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	for tp := range c.parts {
		if _, keep := partitions[tp]; !keep {
			c.takeLocked(tp)
		}
	}
	for tp, at := range partitions {
		c.takeLocked(tp)
		c.putLocked(newPart(tp, at))
	}
	c.refresh.Trigger()
	c.manage()
	return nil
}

// Assignment is the partitions that the consumer reads now, sorted.
func (c *Consumer) Assignment() []TopicPartition {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]TopicPartition, len(c.order))
	for i, t := range c.order {
		all[i] = t.TopicPartition
	}
	return all
}

// Seek moves the position of a partition that is assigned, and starts it again if
// an error had stopped it.
func (c *Consumer) Seek(ctx context.Context, tp TopicPartition, to Position) error {
	at := c.resolve(ctx, map[TopicPartition]Position{tp: to})[tp]
	if at.err != nil {
		return fmt.Errorf("seek %s: %w", tp, at.err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.parts[tp]
	if t == nil {
		return errs.Errorf(errs.InvalidRequest, "seek %s: the partition is not assigned to this consumer", tp)
	}
	t.moved++
	t.placeLocked(at.offset, at.epoch)
	t.done, t.doneAt = at.offset, -1 // worth committing: it was asked for
	c.manage()
	return nil
}

// Offsets finds the offsets of positions without moving there.
func (c *Consumer) Offsets(ctx context.Context, positions map[TopicPartition]Position) (map[TopicPartition]record.Offset, error) {
	found := make(map[TopicPartition]record.Offset, len(positions))
	for tp, at := range c.resolve(ctx, positions) {
		if at.err != nil {
			return nil, &PartitionError{tp, at.err}
		}
		found[tp] = at.offset
	}
	return found, nil
}

// Position is the offset of the next record that Poll returns of a partition;
// false when the partition is not assigned or its start is not known yet.
func (c *Consumer) Position(tp TopicPartition) (record.Offset, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.parts[tp]
	if t == nil || t.position == none {
		return none, false
	}
	return t.position, true
}

// Pause stops reading partitions; they stay assigned. What was fetched ahead is
// dropped and fetched again after Resume, so that it does not hold memory.
func (c *Consumer) Pause(partitions ...TopicPartition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, tp := range partitions {
		if t := c.parts[tp]; t != nil && !t.paused {
			t.paused = true
			t.detachLocked()
			if t.position != none {
				t.dropLocked()
			}
		}
	}
}

// Resume goes on with paused partitions.
func (c *Consumer) Resume(partitions ...TopicPartition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, tp := range partitions {
		if t := c.parts[tp]; t != nil {
			t.paused = false
		}
	}
	c.manage()
	c.poke()
}

// Lag tells how far the consumer is behind, per assigned partition.
func (c *Consumer) Lag() map[TopicPartition]Lag {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[TopicPartition]Lag, len(c.order))
	for _, t := range c.order {
		l := Lag{Position: t.position, HighWatermark: t.hw, Records: -1}
		if t.position != none && t.hw != none {
			l.Records = max(int64(t.hw-t.position), 0)
		}
		all[t.TopicPartition] = l
	}
	return all
}

// LastError is an error that the consumer is working around, such as a broker
// that does not answer; nil while all is well. Poll does not return such errors.
func (c *Consumer) LastError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastErr != nil {
		return c.lastErr
	}
	for _, t := range c.order {
		if t.trouble != nil {
			return t.trouble
		}
	}
	return nil
}

// Token has seen everything that Poll returned.
func (c *Consumer) Token() session.Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token.Clone()
}

// notBefore is what a session reader waits for: its token, and what it has read itself.
func (c *Consumer) notBeforeLocked(t *part) *tidemarkv1.Position {
	if c.cfg.consistency != Session {
		return nil
	}
	known := c.client.Known(t.Topic)
	if known == nil {
		return nil
	}
	want := c.cfg.notBefore.Clone()
	want.Merge(c.token)
	return want.ForPartition(session.Partition{TopicID: known.ID, Partition: t.Partition})
}

// Close revokes what is assigned (with OnRevoked), commits what automatic commit owes,
// leaves the group, and stops. Records of the last Poll count as processed only
// if they were committed. ctx bounds the talk with the broker; Close must not be called from a callback.
func (c *Consumer) Close(ctx context.Context) error {
	c.mu.Lock()
	again := c.closed
	c.closed = true
	c.mu.Unlock()
	c.poke()
	c.polling.Lock() // a Poll under way returns first
	defer c.polling.Unlock()
	var err error
	if !again && c.cfg.group != "" {
		err = c.quit(ctx)
	}
	c.mu.Lock()
	for _, tp := range c.assignmentLocked() {
		c.takeLocked(tp)
	}
	c.mu.Unlock()
	c.group.Stop()
	return errors.Join(err, c.client.Close())
}

func (c *Consumer) assignmentLocked() []TopicPartition {
	all := make([]TopicPartition, len(c.order))
	for i, t := range c.order {
		all[i] = t.TopicPartition
	}
	return all
}

// quit takes leave of the group.
func (c *Consumer) quit(ctx context.Context) error {
	owned := c.Assignment()
	c.mu.Lock()
	lost := c.member.lost
	c.member.lost = nil
	c.mu.Unlock()
	if len(lost) > 0 && c.cfg.onLost != nil {
		c.cfg.onLost(ctx, lost)
	}
	var err error
	if c.subscribed() && len(owned) > 0 && c.cfg.onRevoked != nil {
		c.cfg.onRevoked(ctx, owned)
	}
	if c.cfg.autoCommit > 0 {
		err = c.commitDone(ctx, nil)
	}
	if !c.subscribed() {
		return err
	}
	c.endHeartbeats(ctx) // none shall join again behind our back
	c.group.Stop()
	c.mu.Lock()
	epoch, joined := c.member.epoch, c.member.joined
	c.mu.Unlock()
	if !joined {
		return err
	}
	if c.cfg.instanceID != "" {
		epoch = releaseInstance
	}
	return errors.Join(err, c.leave(ctx, epoch))
}
