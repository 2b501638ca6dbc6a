package consumer

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// place is a resolved position.
type place struct {
	offset    record.Offset
	epoch     record.Epoch // of the record before it; -1 not known
	hw        record.Offset
	committed bool // what the group committed
	err       error
}

// resolver finds the offsets of partitions whose position is not known.
func (c *Consumer) resolver(ctx context.Context) {
	for try := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-c.unresolved:
		}
		// Longer with each try: one partition without a leader must not keep the others from their
		// start, nor a slow broker its partitions for ever.
		attempt, cancel := context.WithDeadline(ctx, clock.Deadline(time.Second<<min(try, 5)))
		done := c.resolveAll(attempt)
		cancel()
		if done {
			try = 0
			continue
		}
		if client.Sleep(ctx, c.cfg.client.Backoff.Delay(try)) != nil {
			return
		}
		try++
		c.manage()
	}
}

// resolveAll makes one attempt for every partition, until ctx ends; false when some must be tried again.
func (c *Consumer) resolveAll(ctx context.Context) bool {
	want, moved := make(map[TopicPartition]Position), make(map[TopicPartition]uint64)
	c.mu.Lock()
	for _, t := range c.order {
		if t.position == none && !t.halted {
			want[t.TopicPartition], moved[t.TopicPartition] = t.start, t.moved
		}
	}
	c.mu.Unlock()
	if len(want) == 0 {
		return true
	}
	found := c.resolve(ctx, want)
	c.mu.Lock()
	defer c.mu.Unlock()
	ok := true
	for tp, at := range found {
		t := c.parts[tp]
		if t == nil || t.moved != moved[tp] || t.position != none {
			continue
		}
		switch {
		case at.err == nil:
			t.trouble = nil
			t.placeLocked(at.offset, at.epoch)
			if at.hw >= 0 {
				t.hw = at.hw
			}
			if at.committed {
				t.stored = at.offset
			}
		case ctx.Err() != nil, errs.Retriable(at.err) && errs.CodeOf(at.err) != errs.UnknownTopicOrPartition:
			ok = false
			t.trouble = &PartitionError{tp, at.err}
		default:
			c.haltLocked(t, at.err)
		}
	}
	c.manage()
	return ok
}

// resolve turns positions into offsets.
func (c *Consumer) resolve(ctx context.Context, want map[TopicPartition]Position) map[TopicPartition]place {
	found := make(map[TopicPartition]place, len(want))
	ask := make(map[TopicPartition]Position)
	var committed []TopicPartition
	for tp, p := range want {
		switch {
		case p.kind == kindCommitted && c.cfg.group != "":
			committed = append(committed, tp)
		case p.kind == kindCommitted:
			ask[tp] = c.fallback()
		default:
			ask[tp] = p
		}
	}
	if len(committed) > 0 {
		c.resolveCommitted(ctx, committed, found, ask)
	}
	for tp, p := range ask {
		if p.kind == kindOffset {
			found[tp] = place{offset: record.Offset(p.n), epoch: -1, hw: none}
			delete(ask, tp)
		}
	}
	c.resolveOffsets(ctx, ask, found)
	return found
}

// fallback is where to start when nothing is committed.
func (c *Consumer) fallback() Position {
	if c.cfg.start.kind == kindCommitted {
		return AtStart()
	}
	return c.cfg.start
}

func (c *Consumer) resolveCommitted(ctx context.Context, tps []TopicPartition, found map[TopicPartition]place, ask map[TopicPartition]Position) {
	commits, err := c.fetchCommitted(ctx, tps)
	for _, tp := range tps {
		commit, ok := commits[tp]
		switch {
		case err != nil:
			found[tp] = place{err: err}
		case ok && commit.GetOffset() >= 0:
			found[tp] = place{offset: record.Offset(commit.GetOffset()), epoch: record.Epoch(commit.GetLeaderEpoch()), hw: none, committed: true}
		default:
			ask[tp] = c.fallback()
		}
	}
}

// fetchCommitted asks the coordinator what the group committed.
func (c *Consumer) fetchCommitted(ctx context.Context, tps []TopicPartition) (map[TopicPartition]*tidemarkv1.OffsetCommit, error) {
	req := &tidemarkv1.FetchOffsetsRequest{Group: c.cfg.group}
	for _, tp := range tps {
		req.Partitions = append(req.Partitions, &tidemarkv1.TopicPartition{Topic: tp.Topic, Partition: tp.Partition})
	}
	commits := make(map[TopicPartition]*tidemarkv1.OffsetCommit)
	err := c.client.Coordinator(ctx, "fetch committed offsets", client.Ask, c.cfg.group, func(ctx context.Context, conn *grpc.ClientConn) error {
		res, err := tidemarkv1.NewGroupsClient(conn).FetchOffsets(ctx, req)
		if err != nil {
			return err
		}
		for _, r := range res.GetResults() {
			tp := TopicPartition{r.GetCommit().GetTopic(), r.GetCommit().GetPartition()}
			if err := client.FromProto(r.GetError()); err != nil {
				return &PartitionError{tp, err}
			}
			commits[tp] = r.GetCommit()
		}
		return nil
	})
	return commits, err
}

// resolveOffsets asks the leaders. Every partition is asked for its start and end
// too: they bound relative positions, and give the lag before the first response.
func (c *Consumer) resolveOffsets(ctx context.Context, ask map[TopicPartition]Position, found map[TopicPartition]place) {
	var tps []TopicPartition
	var queries []client.OffsetQuery
	for tp, p := range ask {
		tps = append(tps, tp)
		at := int64(client.LogEnd)
		if p.kind == kindTime {
			at = p.n
		}
		for _, ts := range []int64{client.LogStart, client.LogEnd, at} {
			queries = append(queries, client.OffsetQuery{Topic: tp.Topic, Partition: tp.Partition, Timestamp: ts})
		}
	}
	if len(queries) == 0 {
		return
	}
	level := tidemarkv1.Consistency_CONSISTENCY_LEADER
	if c.cfg.consistency == Linearizable {
		level = tidemarkv1.Consistency_CONSISTENCY_LINEARIZABLE
	}
	answers := c.client.ListOffsets(ctx, queries, level)
	for i, tp := range tps {
		found[tp] = ask[tp].in(answers[3*i], answers[3*i+1], answers[3*i+2])
	}
}

// in computes the place of a position in [start, end).
func (p Position) in(start, end, at client.OffsetAnswer) place {
	for _, a := range []client.OffsetAnswer{start, end, at} {
		if a.Err != nil {
			return place{err: a.Err}
		}
	}
	o := start.Offset
	switch p.kind {
	case kindEnd:
		o = end.Offset
	case kindTime:
		if o = at.Offset; o < 0 {
			o = end.Offset
		}
	case kindAfterStart:
		o = min(start.Offset+max(p.n, 0), end.Offset)
	case kindBeforeEnd:
		o = max(end.Offset-max(p.n, 0), start.Offset)
	}
	return place{offset: record.Offset(o), epoch: -1, hw: record.Offset(end.Offset)}
}
