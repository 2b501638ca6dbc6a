package consumer

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// mark is a position to commit.
type mark struct {
	TopicPartition
	offset record.Offset
	epoch  record.Epoch
	// topicID is of the topic that the position is in; zero: not known. By now another may have its name.
	topicID [16]byte
}

// Commit commits the position after every record that Poll returned, and waits
// for the answer.
func (c *Consumer) Commit(ctx context.Context) error {
	return c.commit(ctx, func() []mark {
		var marks []mark
		for _, t := range c.order {
			if t.position != none && t.done != none && t.position != t.stored {
				marks = append(marks, mark{t.TopicPartition, t.position, t.epoch, t.topicID})
			}
		}
		return marks
	})
}

// CommitRecords commits the positions after records.
func (c *Consumer) CommitRecords(ctx context.Context, records ...Record) error {
	last := make(map[TopicPartition]mark)
	for i := range records {
		r := &records[i]
		if m, ok := last[r.TopicPartition()]; !ok || r.Offset >= m.offset {
			last[r.TopicPartition()] = mark{r.TopicPartition(), r.Offset + 1, r.Epoch, c.topicID(r)}
		}
	}
	return c.commit(ctx, func() []mark { return sorted(last) })
}

// CommitOffsets commits positions: offsets of the next records to read.
func (c *Consumer) CommitOffsets(ctx context.Context, offsets map[TopicPartition]record.Offset) error {
	marks := make(map[TopicPartition]mark, len(offsets))
	for tp, o := range offsets {
		marks[tp] = mark{TopicPartition: tp, offset: o, epoch: -1}
	}
	return c.commit(ctx, func() []mark { return sorted(marks) })
}

// topicID is of the topic that a record comes from; zero: not known. One that the caller made is
// taken to come from where the partition's records come from now.
func (c *Consumer) topicID(r *Record) [16]byte {
	if r.topicID != [16]byte{} {
		return r.topicID
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.parts[r.TopicPartition()]; t != nil {
		return t.topicID
	}
	return [16]byte{}
}

func sorted(marks map[TopicPartition]mark) []mark {
	all := make([]mark, 0, len(marks))
	for _, m := range marks {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b mark) int { return compare(a.TopicPartition, b.TopicPartition) })
	return all
}

// Committed is what the group committed; partitions without are missing.
func (c *Consumer) Committed(ctx context.Context, partitions ...TopicPartition) (map[TopicPartition]record.Offset, error) {
	if c.cfg.group == "" {
		return nil, errNoGroup
	}
	commits, err := c.fetchCommitted(ctx, partitions)
	if err != nil {
		return nil, err
	}
	found := make(map[TopicPartition]record.Offset, len(commits))
	for tp, commit := range commits {
		if commit.GetOffset() >= 0 {
			found[tp] = record.Offset(commit.GetOffset())
		}
	}
	return found, nil
}

var errNoGroup = errs.New(errs.InvalidGroupID, "committing needs a group; use WithGroup")

// staleTries is how often a commit is sent again under a newer member epoch.
const staleTries = 5

// commit commits what which returns. It is asked, with c.mu held, when it is this commit's turn:
// marks taken before a commit that went first would take that one back.
func (c *Consumer) commit(ctx context.Context, which func() []mark) error {
	if c.cfg.group == "" {
		return errNoGroup
	}
	c.commits.Lock() // an older commit must not overtake a newer one
	defer c.commits.Unlock()
	c.mu.Lock()
	marks := which()
	c.mu.Unlock()
	if len(marks) == 0 {
		return nil
	}
	var err error
	for try := range staleTries {
		var epoch int32
		if epoch, err = c.commitOnce(ctx, marks); errs.CodeOf(err) != errs.StaleMemberEpoch {
			break
		}
		c.mu.Lock()
		moved := c.member.epoch != epoch
		c.mu.Unlock()
		if !moved && client.Sleep(ctx, c.cfg.client.Backoff.Delay(try)) != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range marks {
		if t := c.parts[m.TopicPartition]; t != nil {
			t.stored = m.offset
			if t.done != none && t.done < m.offset && m.offset <= t.position {
				t.done, t.doneAt = m.offset, m.epoch // the caller said that it is processed
			}
		}
	}
	return nil
}

func (c *Consumer) commitOnce(ctx context.Context, marks []mark) (epoch int32, err error) {
	req := &tidemarkv1.CommitOffsetsRequest{Group: c.cfg.group}
	if c.subscribed() {
		c.mu.Lock()
		req.MemberId, req.MemberEpoch = c.member.id, c.member.epoch
		c.mu.Unlock()
	}
	for _, m := range marks {
		o := &tidemarkv1.OffsetCommit{Topic: m.Topic, Partition: m.Partition, Offset: int64(m.offset), LeaderEpoch: int32(m.epoch)}
		if m.topicID != [16]byte{} {
			o.TopicId = m.topicID[:]
		}
		req.Offsets = append(req.Offsets, o)
	}
	err = c.client.Coordinator(ctx, "commit offsets", client.Repeat, c.cfg.group, func(ctx context.Context, conn *grpc.ClientConn) error {
		res, err := tidemarkv1.NewGroupsClient(conn).CommitOffsets(ctx, req)
		if err != nil {
			return err
		}
		for _, r := range res.GetResults() {
			if err := client.FromProto(r.GetError()); err != nil {
				return &PartitionError{TopicPartition{r.GetTopic(), r.GetPartition()}, err}
			}
		}
		return nil
	})
	return req.MemberEpoch, err
}

// commitDone commits what is known to be processed, of some partitions or (nil) of all.
func (c *Consumer) commitDone(ctx context.Context, only []TopicPartition) error {
	return c.commit(ctx, func() []mark {
		var marks []mark
		for _, t := range c.order {
			if (only == nil || slices.Contains(only, t.TopicPartition)) && t.done != none && t.done != t.stored {
				marks = append(marks, mark{t.TopicPartition, t.done, t.doneAt, t.topicID})
			}
		}
		return marks
	})
}

// autoCommit commits every interval.
func (c *Consumer) autoCommit(ctx context.Context) {
	tick := time.NewTicker(c.cfg.autoCommit)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.commitDone(ctx, nil); err != nil && ctx.Err() == nil {
			c.cfg.client.Logger.Warn("automatic commit", "group", c.cfg.group, "err", err)
		}
	}
}
