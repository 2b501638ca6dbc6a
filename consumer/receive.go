package consumer

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

const (
	unknownTopicTries = 8 // answers before a partition counts as not existing
	corruptTries      = 3 // deliveries of a damaged batch before it is reported
)

// received takes over one response.
func (c *Consumer) received(s *stream, res *tidemarkv1.FetchResponse, batches []record.Raw, bad error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := s.link
	if s.failed {
		return
	}
	var n int64
	for _, b := range res.GetBatches() {
		n += int64(len(b))
	}
	l.credit -= n
	t := l.parts[TopicPartition{res.GetTopic(), res.GetPartition()}]
	if t == nil || t.session != res.GetSession() {
		l.topUpLocked() // left over from before a seek or a pause
		return
	}
	if hw := record.Offset(res.GetHighWatermark()); hw >= 0 {
		t.hw, t.logStart = hw, record.Offset(res.GetLogStartOffset())
	}
	if err := client.FromProto(res.GetError()); err != nil {
		c.failedLocked(t, err)
		l.topUpLocked()
		return
	}
	if bad != nil {
		c.damagedLocked(t, bad)
		l.topUpLocked()
		return
	}
	t.attempts, t.unknown, t.corrupt, t.trouble = 0, 0, 0, nil
	c.lastErr = nil
	if id := res.GetPosition().GetTopicId(); len(id) == 16 {
		if known := t.topicID; known != [16]byte{} && known != [16]byte(id) {
			c.remadeLocked(t)
			l.topUpLocked()
			return
		}
		t.topicID = [16]byte(id)
	}
	for _, b := range batches {
		t.bufferLocked(l, b)
	}
	l.topUpLocked()
	c.poke()
}

// buffer keeps a batch, unless it holds nothing new.
func (t *part) bufferLocked(l *link, b record.Raw) {
	if b.EndOffset() <= t.fetchAt {
		return
	}
	t.fetchAt, t.fetchEpoch = b.EndOffset(), b.LeaderEpoch()
	n := int64(len(b))
	l.held += n
	t.buffer = append(t.buffer, chunk{raw: b, link: l, bytes: n})
}

// failed decides what an error means for a partition. It has left the stream with it.
func (c *Consumer) failedLocked(t *part, err error) {
	l := t.link
	delete(l.parts, t.TopicPartition)
	t.link, t.session = nil, 0
	code := errs.CodeOf(err)
	switch {
	case code == errs.OffsetOutOfRange || code == errs.TokenTruncated:
		if t.buffered() {
			// The error is about what comes after the buffer. It comes again, for good,
			// once the buffer is gone.
			t.dropLocked()
			c.delayLocked(t)
			return
		}
		c.misplacedLocked(t, err)
	case code == errs.UnknownTopicOrPartition:
		if t.unknown++; t.unknown >= unknownTopicTries {
			c.haltLocked(t, err)
			return
		}
		c.delayLocked(t)
		c.refresh.Trigger()
	case errs.Retriable(err):
		t.trouble = &PartitionError{t.TopicPartition, err}
		c.delayLocked(t)
		var led *client.LeaderError
		if !errors.As(err, &led) || !c.client.LearnLeader(t.Topic, t.Partition, led) {
			c.refresh.Trigger()
		}
	default:
		c.haltLocked(t, err)
	}
}

func (c *Consumer) damagedLocked(t *part, err error) {
	t.detachLocked()
	if t.corrupt++; t.corrupt >= corruptTries {
		c.haltLocked(t, err)
		return
	}
	c.delayLocked(t)
}

// halt rests a partition until Seek.
func (c *Consumer) haltLocked(t *part, err error) {
	t.detachLocked()
	t.halted = true
	t.err = &PartitionError{TopicPartition: t.TopicPartition, Err: err}
	c.poke()
}

// delay keeps a partition off the streams for a moment.
func (c *Consumer) delayLocked(t *part) {
	if t.delayed {
		return
	}
	t.delayed = true
	pause := c.cfg.client.Backoff.Delay(t.attempts)
	t.attempts++
	time.AfterFunc(pause, func() {
		c.mu.Lock()
		t.delayed = false
		c.mu.Unlock()
		c.manage()
	})
}

// misplaced handles a position that does not exist. It may be one of a topic
// that was deleted, and whose name another topic has: the error does not say so,
// fresh metadata does.
func (c *Consumer) misplacedLocked(t *part, err error) {
	if t.topicID == [16]byte{} {
		c.judgeLocked(t, err)
		return
	}
	t.delayed = true // off the streams until the answer
	tp, moved := t.TopicPartition, t.moved
	c.group.Go("identify topic", func(ctx context.Context) {
		asked := c.client.Refresh(ctx, tp.Topic)
		known := c.client.Known(tp.Topic)
		c.mu.Lock()
		defer c.mu.Unlock()
		t.delayed = false
		switch {
		case t.moved != moved || c.parts[tp] != t:
		case asked != nil || known == nil:
			c.delayLocked(t)
		case known.ID != t.topicID:
			c.remadeLocked(t)
		default:
			c.judgeLocked(t, err)
		}
		c.manage()
	})
}

// judge handles a position that does not exist in the topic it is of.
func (c *Consumer) judgeLocked(t *part, err error) {
	var at *client.OffsetError
	switch {
	case errors.As(err, &at) && t.epoch >= 0:
		c.truncatedLocked(t, at.Offset, err)
	case t.epoch >= 0 && (errs.CodeOf(err) == errs.TokenTruncated || t.hw < 0 || t.position > t.hw):
		c.probeLocked(t, err)
	case errs.CodeOf(err) == errs.TokenTruncated:
		c.haltLocked(t, err) // the token of WithNotBefore is from a history that was cut off
	default:
		c.resetLocked(t, err)
	}
}

// truncated goes on, or reports, after the records before the position were cut off.
func (c *Consumer) truncatedLocked(t *part, diverged record.Offset, err error) {
	switch {
	case t.position <= diverged:
		t.epoch, t.fetchEpoch = -1, -1 // all that was returned is still there
		c.delayLocked(t)
	case c.cfg.reset == ResetError:
		c.haltLocked(t, &TruncatedError{Offset: t.position, Diverged: diverged, err: err})
	default:
		c.cfg.client.Logger.Warn("the log was truncated below this consumer's position", "topic", t.Topic, "partition", t.Partition, "offset", t.position, "diverged", diverged)
		t.placeLocked(diverged, -1)
		c.manage()
	}
}

// remade goes to the start of a topic that has the name of one that is gone. Nothing of it was read.
func (c *Consumer) remadeLocked(t *part) {
	c.cfg.client.Logger.Warn("the topic was deleted and made again, reading the new one from its start", "topic", t.Topic, "partition", t.Partition, "offset", t.position)
	t.placeLocked(none, -1)
	t.start, t.topicID = AtStart(), [16]byte{}
	t.done, t.doneAt, t.stored, t.hw, t.logStart = none, -1, none, none, none
	t.moved++
	c.manage()
}

func (c *Consumer) resetLocked(t *part, err error) {
	switch c.cfg.reset {
	case ResetEarliest:
		t.start, t.position = AtStart(), none
	case ResetLatest:
		t.start, t.position = AtEnd(), none
	default:
		c.haltLocked(t, &OutOfRangeError{Offset: t.position, Start: t.logStart, End: t.hw, err: err})
		return
	}
	c.cfg.client.Logger.Warn("position is out of range, resetting", "topic", t.Topic, "partition", t.Partition)
	t.moved++
	t.attempts = 0
	c.manage()
}

// probe asks where the epoch of the last record ends: a position beyond the
// log's end means that records were cut off.
func (c *Consumer) probeLocked(t *part, err error) {
	t.delayed = true // off the streams until the answer
	tp, epoch, moved := t.TopicPartition, int32(t.epoch), t.moved
	c.group.Go("probe", func(ctx context.Context) {
		end, asked := c.epochEnd(ctx, tp, epoch)
		c.mu.Lock()
		defer c.mu.Unlock()
		t.delayed = false
		switch {
		case t.moved != moved || c.parts[tp] != t:
		case asked != nil:
			c.delayLocked(t)
		case end >= 0 && end < t.position:
			c.truncatedLocked(t, end, err)
		default:
			c.resetLocked(t, err)
		}
		c.manage()
	})
}

func (c *Consumer) epochEnd(ctx context.Context, tp TopicPartition, epoch int32) (end record.Offset, err error) {
	err = c.client.Leader(ctx, "offsets for epochs", client.Ask, tp.Topic, tp.Partition, func(ctx context.Context, conn *grpc.ClientConn) error {
		res, err := tidemarkv1.NewLogClient(conn).OffsetsForEpochs(ctx, &tidemarkv1.OffsetsForEpochsRequest{
			Queries: []*tidemarkv1.OffsetsForEpochsRequest_Query{{Topic: tp.Topic, Partition: tp.Partition, LeaderEpoch: epoch}},
		})
		if err != nil {
			return err
		}
		if len(res.GetResults()) != 1 {
			return errs.Errorf(errs.UnknownServerError, "the broker answered %d of 1 epoch queries", len(res.GetResults()))
		}
		end = record.Offset(res.GetResults()[0].GetEndOffset())
		return client.FromProto(res.GetResults()[0].GetError())
	})
	return end, err
}

// errLeaderless says why nothing comes from a partition that no broker serves.
var errLeaderless = errs.New(errs.LeaderNotAvailable, "no broker leads the partition now: its replicas are starting, cut off, or damaged; the brokers' logs tell")

// supervise attaches partitions to streams as their leaders are known.
func (c *Consumer) supervise(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.work:
		}
		c.mu.Lock()
		c.attachLocked()
		c.mu.Unlock()
	}
}

func (c *Consumer) attachLocked() {
	if c.closed {
		return
	}
	resolve := false
	for _, t := range c.order {
		resolve = resolve || t.position == none && !t.halted
		if !t.fetchable() {
			continue
		}
		id, _ := c.client.LeaderOf(t.Topic, t.Partition)
		if id < 0 {
			t.trouble = &PartitionError{t.TopicPartition, errLeaderless}
			c.refresh.Trigger()
			continue
		}
		if errors.Is(t.trouble, errLeaderless) {
			t.trouble = nil
		}
		c.linkLocked(id).addLocked(t)
	}
	if resolve {
		select {
		case c.unresolved <- struct{}{}:
		default:
		}
	}
}

// manage asks the supervisor to look. It never blocks.
func (c *Consumer) manage() {
	select {
	case c.work <- struct{}{}:
	default:
	}
}

// poke asks Poll to look.
func (c *Consumer) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// refreshed looks again after the metadata came in.
func (c *Consumer) refreshed(err error) {
	if err != nil {
		c.refresh.Trigger()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.group == "" {
		c.followTopicsLocked()
	}
	for _, t := range c.order {
		if c.client.Known(t.Topic) != nil || t.halted {
			continue
		}
		if t.unknown++; t.unknown >= unknownTopicTries {
			c.haltLocked(t, errs.Errorf(errs.UnknownTopicOrPartition, "topic %q does not exist", t.Topic))
		}
	}
	c.manage()
}

// followTopics assigns all partitions of the subscribed topics, new ones as they come.
func (c *Consumer) followTopicsLocked() {
	for _, name := range c.cfg.topics {
		known := c.client.Known(name)
		if known == nil {
			if c.missing[name]++; c.missing[name] >= unknownTopicTries {
				c.missing[name] = 0
				c.err = errs.Errorf(errs.UnknownTopicOrPartition, "topic %q does not exist; create it first", name)
				c.poke()
			}
			c.refresh.Trigger()
			continue
		}
		c.missing[name] = 0
		for n := range known.Partitions {
			tp := TopicPartition{name, int32(n)}
			if c.parts[tp] == nil {
				c.putLocked(newPart(tp, c.cfg.start))
			}
		}
	}
}

func (c *Consumer) putLocked(t *part) {
	c.parts[t.TopicPartition] = t
	c.order = append(c.order, t)
	slices.SortFunc(c.order, func(a, b *part) int { return compare(a.TopicPartition, b.TopicPartition) })
}

func (c *Consumer) takeLocked(tp TopicPartition) {
	t := c.parts[tp]
	if t == nil {
		return
	}
	t.detachLocked()
	t.dropLocked()
	delete(c.parts, tp)
	c.order = slices.DeleteFunc(c.order, func(o *part) bool { return o == t })
}
