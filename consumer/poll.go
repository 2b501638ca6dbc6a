package consumer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/record"
	"github.com/tidemarkhq/tidemark/proto/session"
)

// defaultMax is how many records Poll returns when it is not told.
const defaultMax = 500

// Poll returns up to max records (0: 500), waiting until there is at
// least one. An error comes without records: a *PartitionError, ctx's error when it ended
// first, another error of the group or the topics, or ErrClosed; Poll may be
// called again after all but the last.
func (c *Consumer) Poll(ctx context.Context, max int) ([]Record, error) {
	if max <= 0 {
		max = defaultMax
	}
	c.polling.Lock()
	defer c.polling.Unlock()
	c.beginPoll()
	defer c.endPoll()
	for {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c.rebalance(ctx)
		records, err := c.collect(max)
		if len(records) > 0 || err != nil {
			return records, err
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
		case <-c.group.Context().Done():
			return nil, ErrClosed
		}
	}
}

// beginPoll notes that what was returned before is processed: the caller is back.
func (c *Consumer) beginPoll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.returned {
		t.done, t.doneAt, t.returned = t.position, t.epoch, false
	}
	c.returned = c.returned[:0]
	c.member.polling = true
	if c.member.suspended {
		c.member.suspended = false
		c.member.dueLocked()
	}
}

func (c *Consumer) endPoll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.member.polling, c.member.lastPoll = false, clock.Monotonic()
}

// collect takes what is buffered, the partitions in turn.
func (c *Consumer) collect(limit int) ([]Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if err := c.err; err != nil {
		c.err = nil
		return nil, err
	}
	var out []Record
	for range c.order {
		c.turn++
		t := c.order[c.turn%len(c.order)]
		if t.paused {
			continue
		}
		if t.err != nil && !t.buffered() {
			if len(out) > 0 {
				break // next time
			}
			err := t.err
			t.err = nil
			return nil, err
		}
		out = c.takeRecordsLocked(t, out, limit)
		if len(out) >= limit {
			if len(t.decoded) > 0 {
				c.turn-- // finish its batch first
			}
			break
		}
	}
	if len(out) > 0 {
		c.poke() // there may be more, or a rebalance
	}
	return out, nil
}

// takeRecords moves records of one partition to out, until limit.
func (c *Consumer) takeRecordsLocked(t *part, out []Record, limit int) []Record {
	for len(out) < limit {
		if len(t.decoded) == 0 && !c.decodeLocked(t) {
			break
		}
		n := min(limit-len(out), len(t.decoded))
		if len(out) == 0 {
			out = t.decoded[:n:n] // no copy; what is appended goes elsewhere
		} else {
			out = append(out, t.decoded[:n]...)
		}
		if n > 0 {
			last := &t.decoded[n-1]
			t.position, t.epoch = last.Offset+1, last.Epoch
			if t.done == none {
				t.done, t.doneAt = t.decoded[0].Offset, -1
			}
			if !t.returned {
				t.returned = true
				c.returned = append(c.returned, t)
			}
			t.decoded = t.decoded[n:]
		}
		if len(t.decoded) == 0 && t.current.raw != nil {
			t.position, t.epoch = t.current.raw.EndOffset(), t.current.raw.LeaderEpoch()
			t.decoded = nil
			t.current.release()
		}
	}
	c.seenLocked(t)
	return out
}

// decode makes records of the next batch; false when there is none.
func (c *Consumer) decodeLocked(t *part) bool {
	if len(t.buffer) == 0 {
		return false
	}
	t.current = t.buffer[0]
	t.buffer[0] = chunk{}
	t.buffer = t.buffer[1:]
	raw := t.current.raw
	if raw.Control() {
		return true // it has no records for users
	}
	t.decoded = make([]Record, 0, min(int(raw.Count()), 1<<16))
	for r, err := range raw.Records(0) {
		if err != nil {
			t.decoded = nil
			t.dropLocked()
			c.haltLocked(t, fmt.Errorf("record batch at offset %d: %w; seek beyond it to go on", raw.BaseOffset(), err))
			return false
		}
		if r.Offset < t.position {
			continue // a batch may begin below the offset that was asked for
		}
		t.decoded = append(t.decoded, Record{
			Topic: t.Topic, Partition: t.Partition, Offset: r.Offset, Epoch: raw.LeaderEpoch(),
			Timestamp: time.UnixMilli(r.Timestamp), AppendTime: raw.TimestampType() == record.LogAppendTime,
			Key: r.Key, Value: r.Value, Headers: r.Headers, topicID: t.topicID,
		})
	}
	return true
}

// seen adds the position to the token.
func (c *Consumer) seenLocked(t *part) {
	if t.topicID != [16]byte{} && t.epoch >= 0 {
		c.token.Advance(session.Partition{TopicID: t.topicID, Partition: t.Partition}, session.Position{Epoch: t.epoch, Offset: t.position})
	}
}

// Records iterates over records until ctx ends (which ends the iteration
// without an error) or the consumer is closed. Errors of Poll are yielded; the iteration goes on
// if the body does. Each step is a Poll for one record: Commit covers the
// record in hand and those before it, and whoever breaks off can go on later with the next.
func (c *Consumer) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			records, err := c.Poll(ctx, 1)
			if ctx.Err() != nil && err != nil || errors.Is(err, ErrClosed) {
				return
			}
			if err != nil && !yield(Record{}, err) {
				return
			}
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}
