package client

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// What an OffsetQuery asks for beside a time in milliseconds.
const (
	LogEnd   = -1 // the high watermark
	LogStart = -2
)

// OffsetQuery asks for one offset.
type OffsetQuery struct {
	Topic     string
	Partition int32
	Timestamp int64 // or LogEnd, LogStart
}

// OffsetAnswer is the answer to one query.
type OffsetAnswer struct {
	Offset    int64 // -1: no such record
	Timestamp int64
	Epoch     int32
	Err       error
}

// leaderPatience is how long ListOffsets waits for leaders: one that is being elected comes
// about as fast, and a damaged partition has none for as long as nobody mends it.
const leaderPatience = time.Second

// ListOffsets answers queries, each from the leader of its partition. It tries again
// while that may help, until ctx or the request timeout ends, or nothing is missing for leaderPatience
// but partitions that nobody leads or that were not answered while others were; what is left then
// has its last error.
func (c *Client) ListOffsets(ctx context.Context, queries []OffsetQuery, level tidemarkv1.Consistency) []OffsetAnswer {
	ctx, cancel := context.WithDeadline(ctx, clock.Deadline(c.cfg.RequestTimeout))
	defer cancel()
	answers := make([]OffsetAnswer, len(queries))
	open := make([]int, len(queries))
	for i := range open {
		open[i] = i
	}
	began := clock.Monotonic()
	for try := 0; len(open) > 0; try++ {
		if try > 0 && (Sleep(ctx, c.cfg.Backoff.Delay(try-1)) != nil || c.refreshFor(ctx, queries, open) != nil) {
			return answers
		}
		for addr, some := range c.byLeader(ctx, queries, open, answers) {
			c.listAt(ctx, addr, queries, some, answers, level)
		}
		open = stillOpen(open, answers, try)
		if clock.Since(began) >= leaderPatience && (len(open) < len(queries) || leaderless(open, answers)) {
			return answers
		}
	}
	return answers
}

func leaderless(open []int, answers []OffsetAnswer) bool {
	return !slices.ContainsFunc(open, func(i int) bool {
		code := errs.CodeOf(answers[i].Err)
		return code != errs.LeaderNotAvailable && code != errs.NotLeaderOrFollower
	})
}

func stillOpen(open []int, answers []OffsetAnswer, try int) (left []int) {
	for _, i := range open {
		if err := answers[i].Err; err != nil && again(err, Ask, try) {
			left = append(left, i)
		}
	}
	return left
}

func (c *Client) refreshFor(ctx context.Context, queries []OffsetQuery, open []int) error {
	seen := make(map[string]bool)
	var names []string
	for _, i := range open {
		if name := queries[i].Topic; !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return c.Refresh(ctx, names...)
}

// byLeader groups queries by the address of the leader; those without one get their error.
func (c *Client) byLeader(ctx context.Context, queries []OffsetQuery, open []int, answers []OffsetAnswer) map[string][]int {
	at := make(map[string][]int)
	for _, i := range open {
		addr, err := c.leaderAddress(ctx, queries[i].Topic, queries[i].Partition)
		if answers[i].Err = err; err == nil {
			at[addr] = append(at[addr], i)
		}
	}
	return at
}

func (c *Client) listAt(ctx context.Context, addr string, queries []OffsetQuery, some []int, answers []OffsetAnswer, level tidemarkv1.Consistency) {
	req := &tidemarkv1.ListOffsetsRequest{Consistency: level}
	for _, i := range some {
		q := queries[i]
		req.Queries = append(req.Queries, &tidemarkv1.ListOffsetsRequest_Query{Topic: q.Topic, Partition: q.Partition, TimestampMs: q.Timestamp})
	}
	var res *tidemarkv1.ListOffsetsResponse
	err := c.try(ctx, Ask, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		res, err = tidemarkv1.NewLogClient(conn).ListOffsets(ctx, req)
		return err
	}, func(int) (string, error) { return addr, nil }, 0)
	if err == nil && len(res.GetResults()) != len(some) {
		err = errs.Errorf(errs.UnknownServerError, "the broker answered %d of %d offset queries", len(res.GetResults()), len(some))
	}
	for n, i := range some {
		if err != nil {
			answers[i].Err = err
			continue
		}
		r := res.GetResults()[n]
		answers[i] = OffsetAnswer{Offset: r.GetOffset(), Timestamp: r.GetTimestampMs(), Epoch: r.GetLeaderEpoch(), Err: FromProto(r.GetError())}
	}
}
