package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/client/fakeserver"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

func open(t *testing.T, change func(*client.Config), brokers ...string) (*client.Client, context.Context) {
	t.Helper()
	cfg := client.DefaultConfig()
	cfg.Brokers = brokers
	cfg.Backoff = client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}
	cfg.RequestTimeout = 5 * time.Second
	if change != nil {
		change(&cfg)
	}
	c, err := client.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c, ctx
}

func TestBackoffDoublesWithJitterUpToItsMax(t *testing.T) {
	b := client.Backoff{Min: 10 * time.Millisecond, Max: 100 * time.Millisecond}
	for n, most := range []time.Duration{10, 20, 40, 80, 100, 100} {
		for range 100 {
			if d := b.Delay(n); d < most*time.Millisecond/2 || d > most*time.Millisecond {
				t.Fatalf("retry %d after %v, want %v to %v", n, d, most*time.Millisecond/2, most*time.Millisecond)
			}
		}
	}
	if d := b.Delay(1 << 30); d > b.Max {
		t.Errorf("%v", d)
	}
}

func TestErrorsOfTheWire(t *testing.T) {
	offset, leader, epoch := int64(7), int32(3), int32(9)
	err := client.FromProto(&pb.Error{Code: int32(errs.ExpectationFailed), Message: "elsewhere", ActualOffset: &offset})
	var expectation *client.ExpectationError
	if !errors.As(err, &expectation) || expectation.Actual != 7 || err.Error() != "elsewhere" || !errors.Is(err, errs.New(errs.ExpectationFailed, "")) {
		t.Errorf("%v", err)
	}
	err = client.FromProto(&pb.Error{Code: int32(errs.NotLeaderOrFollower), LeaderId: &leader, LeaderEpoch: &epoch, OutcomeUnknown: true})
	var led *client.LeaderError
	if !errors.As(err, &led) || led.LeaderID != 3 || led.LeaderEpoch != 9 || !errs.OutcomeUnknown(err) || !errs.Retriable(err) {
		t.Errorf("%v", err)
	}
	err = client.FromProto(&pb.Error{Code: int32(errs.TokenTruncated), ActualOffset: &offset})
	var at *client.OffsetError
	if !errors.As(err, &at) || at.Offset != record.Offset(7) {
		t.Errorf("%v", err)
	}
	if client.FromProto(nil) != nil {
		t.Error("no error became one")
	}
	unknown := client.WithOutcome(err, "it was cut")
	if !errs.OutcomeUnknown(unknown) || errs.CodeOf(unknown) != errs.TokenTruncated || !errors.As(unknown, &at) {
		t.Errorf("%v", unknown)
	}
}

func TestErrorsOfGRPC(t *testing.T) {
	ctx := context.Background()
	for code, want := range map[codes.Code]errs.Code{
		codes.Unavailable: errs.NetworkException, codes.DeadlineExceeded: errs.RequestTimedOut, codes.Unimplemented: errs.UnsupportedVersion,
		codes.ResourceExhausted: errs.MessageTooLarge, codes.Internal: errs.UnknownServerError, codes.Unauthenticated: errs.SaslAuthenticationFailed,
	} {
		err := client.FromCall(ctx, status.Error(code, "x"), true)
		if errs.CodeOf(err) != want || !errs.OutcomeUnknown(err) {
			t.Errorf("%v: %v, want %v", code, errs.CodeOf(err), want)
		}
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := client.FromCall(canceled, status.Error(codes.Canceled, "x"), false); !errors.Is(err, context.Canceled) || errs.OutcomeUnknown(err) {
		t.Errorf("%v", err)
	}
}

// A change is not repeated once it may have happened; a question is.
func TestChangesAreNotRepeatedBlindly(t *testing.T) {
	s := fakeserver.Start(t, nil)
	c, ctx := open(t, nil, s.Addr())
	for _, tc := range []struct {
		kind    client.Kind
		unknown bool
		tries   int32
	}{{client.Ask, true, 4}, {client.Change, false, 4}, {client.Change, true, 1}} {
		var tries atomic.Int32
		err := c.Any(ctx, "op", tc.kind, func(context.Context, *grpc.ClientConn) error {
			if tries.Add(1) < 4 {
				return &errs.Error{Code: errs.RequestTimedOut, Text: "slow", OutcomeUnknown: tc.unknown}
			}
			return nil
		})
		if tries.Load() != tc.tries || (tc.tries == 1) != errs.OutcomeUnknown(err) {
			t.Errorf("%+v: %d tries, %v", tc, tries.Load(), err)
		}
	}
}

// A change that may be repeated keeps saying that a try may have taken effect, whatever the last try met.
func TestARepeatedChangeKeepsItsUnknownOutcome(t *testing.T) {
	s := fakeserver.Start(t, nil)
	c, ctx := open(t, nil, s.Addr())
	for _, kind := range []client.Kind{client.Ask, client.Repeat} {
		tries := 0
		err := c.Any(ctx, "commit", kind, func(ctx context.Context, conn *grpc.ClientConn) error {
			if tries++; tries > 1 {
				return errs.New(errs.FencedMemberEpoch, "gone")
			}
			if _, err := pb.NewTopicsClient(conn).GetMetadata(ctx, &pb.GetMetadataRequest{}); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "cut after the call left")
		})
		if tries != 2 || errs.CodeOf(err) != errs.FencedMemberEpoch || errs.OutcomeUnknown(err) != (kind == client.Repeat) {
			t.Errorf("kind %d: %d tries, %v, unknown %v", kind, tries, err, errs.OutcomeUnknown(err))
		}
	}
}

// A connection that dies in the middle of a call leaves its outcome unknown; one
// that never came up does not.
func TestWhatLeftTheProcess(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := fakeserver.Start(t, nil)
	c, ctx := open(t, nil, s.Addr())
	create := func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewTopicsClient(conn).CreateTopic(ctx, &pb.CreateTopicRequest{Name: "t"})
		return err
	}
	if err := c.Any(ctx, "create", client.Change, func(ctx context.Context, conn *grpc.ClientConn) error {
		if err := create(ctx, conn); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "cut after the call left")
	}); !errs.OutcomeUnknown(err) {
		t.Errorf("a call that left: %v", err)
	}
	s.Stop()
	dead, ctx := open(t, func(c *client.Config) { c.RequestTimeout = 50 * time.Millisecond }, s.Addr())
	if err := dead.Any(ctx, "create", client.Change, create); errs.OutcomeUnknown(err) || errs.CodeOf(err) != errs.NetworkException {
		t.Errorf("a call that never left: %v", err)
	}
}

func TestHintsOutsideTheMetadataAreNotFollowed(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	c, ctx := open(t, nil, s.Addr())
	if _, err := c.Topic(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	hint := func(id, epoch int32) *client.LeaderError {
		var led *client.LeaderError
		errors.As(client.FromProto(&pb.Error{Code: int32(errs.NotLeaderOrFollower), LeaderId: &id, LeaderEpoch: &epoch}), &led)
		return led
	}
	if c.LearnLeader("t", 0, hint(99, 50)) {
		t.Error("a broker that the metadata does not know was believed to lead")
	}
	if c.LearnLeader("t", 0, hint(1, 1)) {
		t.Error("an old epoch was believed")
	}
	if !c.LearnLeader("t", 0, hint(1, 50)) {
		t.Error("a newer epoch of a known broker was not believed")
	}
	if id, epoch := c.LeaderOf("t", 0); id != 1 || epoch != 50 {
		t.Errorf("leader %d, epoch %d", id, epoch)
	}
	// The cluster's own word is older than the hint, so the hint stays.
	if err := c.Refresh(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if _, epoch := c.LeaderOf("t", 0); epoch != 50 {
		t.Errorf("metadata went back to epoch %d", epoch)
	}
}

func TestCoordinatorIsFollowedWithinTheMetadata(t *testing.T) {
	s := fakeserver.Start(t, nil)
	other := fakeserver.Start(t, nil)
	s.AddBroker(&pb.Broker{Id: 2, GrpcAddress: other.Addr()})
	c, ctx := open(t, nil, s.Addr())
	if err := c.RefreshBrokers(ctx); err != nil {
		t.Fatal(err)
	}
	two := int32(2)
	var seen []string
	err := c.Coordinator(ctx, "op", client.Ask, "g", func(_ context.Context, conn *grpc.ClientConn) error {
		seen = append(seen, conn.CanonicalTarget())
		if len(seen) == 1 {
			return client.FromProto(&pb.Error{Code: int32(errs.NotCoordinator), LeaderId: &two})
		}
		return nil
	})
	if want := "passthrough:///" + other.Addr(); err != nil || len(seen) != 2 || seen[1] != want {
		t.Errorf("went to %v, %v; want %s second", seen, err, want)
	}
}

func TestEveryAddressIsTried(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	c, ctx := open(t, nil, "127.0.0.1:1", "127.0.0.1:2", s.Addr())
	topic, err := c.Topic(ctx, "t")
	if err != nil || len(topic.Partitions) != 2 {
		t.Fatalf("%+v, %v", topic, err)
	}
	if _, err := c.Topic(ctx, "nowhere"); errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("%v", err)
	}
}

func TestListOffsetsAnswersEachQuery(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	for i := range 5 {
		s.Append("t", 1, record.Record{Timestamp: int64(i), Value: fmt.Append(nil, i)})
	}
	c, ctx := open(t, nil, s.Addr())
	answers := c.ListOffsets(ctx, []client.OffsetQuery{{"t", 1, client.LogEnd}, {"t", 9, client.LogEnd}, {"nowhere", 0, client.LogEnd}, {"t", 1, 3}}, 0)
	if answers[0].Offset != 5 || answers[0].Err != nil || answers[3].Offset != 3 {
		t.Errorf("%+v", answers)
	}
	if errs.CodeOf(answers[1].Err) != errs.InvalidPartitions || errs.CodeOf(answers[2].Err) != errs.UnknownTopicOrPartition {
		t.Errorf("%v; %v", answers[1].Err, answers[2].Err)
	}
}
