package grpcapi

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/proto/errs"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

func equal(t *testing.T, what string, got proto.Message, err error, want proto.Message) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func TestErrorsBecomeStatusesWithDetails(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c := pb.NewTopicsClient(d.conn)
		for _, tt := range []struct {
			err       error
			status    codes.Code
			code      errs.Code
			retriable bool
			unknown   bool
			text      string
		}{
			{errs.Errorf(errs.TopicAlreadyExists, "topic %q exists", "t"), codes.AlreadyExists, errs.TopicAlreadyExists, false, false, `topic "t" exists`},
			{errs.New(errs.InvalidPartitions, "0 partitions"), codes.InvalidArgument, errs.InvalidPartitions, false, false, "0 partitions"},
			{errs.New(errs.NotController, "ask 2"), codes.Unavailable, errs.NotController, true, false, "ask 2"},
			{errs.Unknown(errs.RequestTimedOut, "maybe"), codes.DeadlineExceeded, errs.RequestTimedOut, true, true, "maybe"},
			{errs.New(errs.PolicyViolation, "no"), codes.FailedPrecondition, errs.PolicyViolation, false, false, "no"},
			{errs.New(errs.LimitExceeded, "full"), codes.ResourceExhausted, errs.LimitExceeded, errs.LimitExceeded.Retriable(), false, "full"},
			{context.DeadlineExceeded, codes.DeadlineExceeded, errs.RequestTimedOut, true, true, "the request was not answered in time; it may have taken effect"},
			{errs.New(errs.InvalidConfig, "caf\xe9"), codes.InvalidArgument, errs.InvalidConfig, false, false, "caf\uFFFD"},
			{errors.New("disk /dev/sda1"), codes.Internal, errs.UnknownServerError, false, true, internalText},
		} {
			d.broker.topicErr = tt.err
			_, err := c.DeleteTopic(t.Context(), &pb.DeleteTopicRequest{Name: "t"})
			e := detail(t, err)
			if status.Code(err) != tt.status || errs.Code(e.Code) != tt.code || e.Name != tt.code.Name() || e.Retriable != tt.retriable || e.OutcomeUnknown != tt.unknown || e.Message != tt.text {
				t.Errorf("%v: %v, %v", tt.err, err, e)
			}
		}
		if n := value(t, d.api.metrics.requests.WithLabelValues("DeleteTopic", "TOPIC_ALREADY_EXISTS")); n != 1 {
			t.Errorf("counted %v", n)
		}
	})
}

func TestTopicsService(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c, ctx := pb.NewTopicsClient(d.conn), t.Context()
		fill(t, d.broker.replica("t", 0), 4, 10)

		id := make([]byte, 16)
		id[0] = 1
		info := &pb.TopicInfo{Name: "t", Id: id, ReplicationFactor: 1, Partitions: []*pb.PartitionInfo{
			{Partition: 0, LeaderId: 1, LeaderEpoch: 1, Replicas: []int32{1}, Isr: []int32{1}}, {Partition: 1, LeaderId: 1, LeaderEpoch: 1, Replicas: []int32{1}, Isr: []int32{1}}}}
		brokers := []*pb.Broker{{Id: 1, Uuid: controller.UUID{}.String(), GrpcAddress: "127.0.0.1:9093", Version: "v0"}}
		got, err := c.GetMetadata(ctx, &pb.GetMetadataRequest{Topics: []string{"t", "nowhere"}})
		equal(t, "GetMetadata", got, err, &pb.GetMetadataResponse{ClusterId: "cluster", ControllerId: 1, Brokers: brokers, Topics: []*pb.TopicInfo{
			info, {Name: "nowhere", Error: &pb.Error{Code: 3, Name: "UNKNOWN_TOPIC_OR_PARTITION", Message: `topic "nowhere" does not exist; create it first`, Retriable: true}}}})
		if all, err := c.GetMetadata(ctx, &pb.GetMetadataRequest{}); err != nil || len(all.Topics) != 2 {
			t.Errorf("all topics: %v, %v", all, err)
		}
		got, err = c.GetMetadata(ctx, &pb.GetMetadataRequest{OnlyBrokers: true, Topics: []string{"t"}})
		equal(t, "only brokers", got, err, &pb.GetMetadataResponse{ClusterId: "cluster", ControllerId: 1, Brokers: brokers})

		created, err := c.CreateTopic(ctx, &pb.CreateTopicRequest{Name: "n", Partitions: 3, ReplicationFactor: 2, Configs: map[string]string{"a": "b"}, IfNotExists: true})
		equal(t, "CreateTopic", created, err, &pb.CreateTopicResponse{Topic: &pb.TopicInfo{Name: "n", Id: make([]byte, 16)}})
		if w := d.broker.created[0]; w.Name != "n" || w.Partitions != 3 || w.ReplicationFactor != 2 || w.Configs["a"] != "b" || !w.IfNotExists || w.ValidateOnly {
			t.Errorf("%+v", w)
		}
		_, err = c.CreateTopic(ctx, &pb.CreateTopicRequest{Name: "n", ReplicationFactor: 65537})
		if errs.Code(detail(t, err).Code) != errs.InvalidReplicationFactor {
			t.Error(err) // it would be 1 as an int16
		}

		described, err := c.DescribeTopic(ctx, &pb.DescribeTopicRequest{Name: "t"})
		equal(t, "DescribeTopic", described, err, &pb.DescribeTopicResponse{Topic: info,
			Partitions: []*pb.PartitionDetail{{HighWatermark: 4, LogEndOffset: 4, SizeBytes: 123, Segments: 2}, {Partition: 1, SizeBytes: 123, Segments: 2}},
			Configs:    []*pb.ConfigEntry{{Name: "retention.ms", Value: "5", DefaultValue: "604800000", Origin: "topic", Documentation: "age"}}})
		_, err = c.DescribeTopic(ctx, &pb.DescribeTopicRequest{Name: "nowhere"})
		if status.Code(err) != codes.NotFound {
			t.Error(err)
		}
		if _, err := c.AlterTopic(ctx, &pb.AlterTopicRequest{Name: "t", Set: map[string]string{"x": "y"}}); err != nil || d.broker.altered["x"] != "y" {
			t.Error(err)
		}
		if more, err := c.AddPartitions(ctx, &pb.AddPartitionsRequest{Name: "t", Total: 4}); err != nil || more.Topic.Name != "t" {
			t.Error(err)
		}

		trims := []*pb.TrimTopicRequest_Trim{{Partition: 0, Before: 3}, {Partition: 1, Before: 1}, {Partition: 7}, {Partition: 0, Before: -2}}
		for _, validateOnly := range []bool{true, false} {
			trimmed, err := c.TrimTopic(ctx, &pb.TrimTopicRequest{Name: "t", ValidateOnly: validateOnly, Trims: trims})
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []errs.Code{0, errs.OffsetOutOfRange, errs.UnknownTopicOrPartition, errs.OffsetOutOfRange} {
				if r := trimmed.Results[i]; errs.Code(r.Error.GetCode()) != want || want == 0 && r.LogStartOffset != 3 {
					t.Errorf("trim %d: %v", i, r)
				}
			}
			if start := d.broker.replica("t", 0).View().LogStart; validateOnly != (start == 0) {
				t.Errorf("log start %d with validate_only %v", start, validateOnly)
			}
		}
	})
}

func TestOffsetsOfTheLogService(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c, ctx := pb.NewLogClient(d.conn), t.Context()
		epochs(t, d.broker.replica("t", 0))
		d.broker.replica("u", 0).follower = true
		type q = pb.ListOffsetsRequest_Query
		got, err := c.ListOffsets(ctx, &pb.ListOffsetsRequest{Queries: []*q{{Topic: "t", TimestampMs: -1}, {Topic: "t", TimestampMs: -2}, {Topic: "t", TimestampMs: 99}, {Topic: "t", TimestampMs: -4}, {Topic: "x"}, {Topic: "u", TimestampMs: -1}}})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []struct {
			offset, ts int64
			code       errs.Code
		}{{10, -1, 0}, {0, -1, 0}, {7, 99, 0}, {-1, -1, errs.UnsupportedVersion}, {-1, -1, errs.UnknownTopicOrPartition}, {-1, -1, errs.NotLeaderOrFollower}} {
			if r := got.Results[i]; r.Offset != want.offset || r.TimestampMs != want.ts || errs.Code(r.Error.GetCode()) != want.code {
				t.Errorf("query %d: %v", i, r)
			}
		}
		got, err = c.ListOffsets(ctx, &pb.ListOffsetsRequest{Consistency: pb.Consistency_CONSISTENCY_EVENTUAL, Queries: []*q{{Topic: "u", TimestampMs: -1}}})
		if err != nil || got.Results[0].Error != nil {
			t.Errorf("a follower may answer: %v, %v", got, err)
		}
		d.broker.replica("t", 0).linearize = func(context.Context) error { return errs.New(errs.NotLeaderOrFollower, "deposed") }
		got, err = c.ListOffsets(ctx, &pb.ListOffsetsRequest{Consistency: pb.Consistency_CONSISTENCY_LINEARIZABLE, Queries: []*q{{Topic: "t", TimestampMs: -1}}})
		if err != nil || errs.Code(got.Results[0].Error.GetCode()) != errs.NotLeaderOrFollower {
			t.Errorf("%v, %v", got, err)
		}
		ends, err := c.OffsetsForEpochs(ctx, &pb.OffsetsForEpochsRequest{Queries: []*pb.OffsetsForEpochsRequest_Query{{Topic: "t", LeaderEpoch: 2}, {Topic: "x"}}})
		if err != nil || ends.Results[0].LeaderEpoch != 1 || ends.Results[0].EndOffset != 5 || ends.Results[1].Error == nil {
			t.Errorf("%v, %v", ends, err)
		}
		if p, err := c.InitProducer(ctx, &pb.InitProducerRequest{}); err != nil || p.ProducerId != 4000 {
			t.Errorf("%v, %v", p, err)
		}
	})
}

func TestGroupsService(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c, ctx, g := pb.NewGroupsClient(d.conn), t.Context(), &d.broker.groups
		hb, err := c.Heartbeat(ctx, &pb.HeartbeatRequest{
			Group: "g", MemberId: "m", InstanceId: "i", MemberEpoch: 2, ClientId: "c", SessionTimeoutMs: 1000, RebalanceTimeoutMs: 2000,
			Topics: []string{"t"}, TopicRegex: "x", Owned: []*pb.Assignment{{Topic: "t", Partitions: []int32{1}}}, MaxWaitMs: 3000, Rack: "r"})
		equal(t, "Heartbeat", hb, err, &pb.HeartbeatResponse{MemberEpoch: 3, Generation: 4, HeartbeatIntervalMs: 5000, Assigned: []*pb.Assignment{{Topic: "t", Partitions: []int32{0, 1}}}})
		host := g.heartbeat.ClientHost
		if diff := cmp.Diff(group.HeartbeatRequest{Group: "g", MemberID: "m", InstanceID: "i", MemberEpoch: 2, ClientID: "c", ClientHost: host, SessionTimeout: time.Second, RebalanceTimeout: 2 * time.Second,
			Topics: []string{"t"}, TopicRegex: "x", Owned: []group.Assignment{{Topic: "t", Partitions: []int32{1}}}, MaxWait: 3 * time.Second, Rack: "r"}, g.heartbeat); diff != "" || host == "" {
			t.Errorf("from %q: %s", host, diff)
		}
		committed, err := c.CommitOffsets(ctx, &pb.CommitOffsetsRequest{Group: "g", MemberId: "m", MemberEpoch: 3, Offsets: []*pb.OffsetCommit{{Topic: "t", Partition: 1, Offset: 5, LeaderEpoch: -1, Metadata: "x"}}})
		equal(t, "CommitOffsets", committed, err, &pb.CommitOffsetsResponse{Results: []*pb.CommitOffsetsResponse_Result{
			{Topic: "t", Partition: 1, Error: &pb.Error{Code: 113, Name: "STALE_MEMBER_EPOCH", Message: "not yours"}}}})
		if diff := cmp.Diff(group.CommitRequest{Group: "g", MemberID: "m", MemberEpoch: 3, Offsets: []group.OffsetCommit{{Topic: "t", Partition: 1, Offset: 5, LeaderEpoch: -1, Metadata: "x"}}}, g.commit); diff != "" {
			t.Error(diff)
		}
		fetched, err := c.FetchOffsets(ctx, &pb.FetchOffsetsRequest{Group: "g", Partitions: []*pb.TopicPartition{{Topic: "t"}}})
		equal(t, "FetchOffsets", fetched, err, &pb.FetchOffsetsResponse{Results: []*pb.FetchOffsetsResponse_Result{{Commit: &pb.OffsetCommit{Topic: "t", Offset: 9, LeaderEpoch: 2, Metadata: "m"}, CommittedAtMs: 77}}})
		list, err := c.ListGroups(ctx, &pb.ListGroupsRequest{})
		equal(t, "ListGroups", list, err, &pb.ListGroupsResponse{Groups: []*pb.ListGroupsResponse_Group{{Name: "g", State: "stable", Protocol: "native", Members: 2, CoordinatorId: 1}}})
		desc, err := c.DescribeGroup(ctx, &pb.DescribeGroupRequest{Group: "g"})
		equal(t, "DescribeGroup", desc, err, &pb.DescribeGroupResponse{Name: "g", State: "stable", Members: []*pb.DescribeGroupResponse_Member{{MemberId: "a", Owned: []*pb.Assignment{{Topic: "t"}}}},
			Partitions: []*pb.DescribeGroupResponse_Partition{{Commit: &pb.OffsetCommit{}, Lag: -1, LagMs: -1},
				{Commit: &pb.OffsetCommit{}, Lag: 4, LagMs: 3000, Error: &pb.Error{Code: 5, Name: "LEADER_NOT_AVAILABLE", Message: "none", Retriable: true}}}})
		if _, err := c.DeleteOffsets(ctx, &pb.DeleteOffsetsRequest{Group: "g"}); err != nil {
			t.Error(err)
		}
		g.err = errs.New(errs.NonEmptyGroup, "members")
		for name, call := range map[string]func() error{
			"LeaveGroup":  func() error { _, err := c.LeaveGroup(ctx, &pb.LeaveGroupRequest{}); return err },
			"DeleteGroup": func() error { _, err := c.DeleteGroup(ctx, &pb.DeleteGroupRequest{}); return err },
			"Heartbeat":   func() error { _, err := c.Heartbeat(ctx, &pb.HeartbeatRequest{}); return err },
		} {
			if err := call(); errs.Code(detail(t, err).Code) != errs.NonEmptyGroup || status.Code(err) != codes.FailedPrecondition {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestAParkedHeartbeatDoesNotHoldUpAShutdown(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		d.broker.groups.parked = make(chan struct{})
		failed := make(chan error, 1)
		go func() {
			_, err := pb.NewGroupsClient(d.conn).Heartbeat(t.Context(), &pb.HeartbeatRequest{})
			failed <- err
		}()
		<-d.broker.groups.parked
		d.api.Drain()
		if err := <-failed; errs.Code(detail(t, err).Code) != errs.ShuttingDown {
			t.Error(err)
		}
		_, err := pb.NewAdminClient(d.conn).DescribeCluster(t.Context(), &pb.DescribeClusterRequest{})
		if errs.Code(detail(t, err).Code) != errs.ShuttingDown {
			t.Errorf("a new call: %v", err)
		}
	})
}

func TestAdminService(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c, ctx := pb.NewAdminClient(d.conn), t.Context()
		cluster, err := c.DescribeCluster(ctx, &pb.DescribeClusterRequest{})
		if err != nil || cluster.ClusterId != "cluster" || cluster.AnsweringBroker != 1 || cluster.FeatureLevel != 1 || len(cluster.Brokers) != 1 {
			t.Errorf("%v, %v", cluster, err)
		}
		cfg, err := c.DescribeConfig(ctx, &pb.DescribeConfigRequest{})
		equal(t, "DescribeConfig", cfg, err, &pb.DescribeConfigResponse{Entries: []*pb.ConfigEntry{{Name: "node.rack", Value: "a", Origin: "file"}, {Name: "tls.key", Value: "***", Sensitive: true}}})
		if cfg, err := c.DescribeConfig(ctx, &pb.DescribeConfigRequest{Topic: "t"}); err != nil || cfg.Entries[0].Name != "retention.ms" {
			t.Errorf("%v, %v", cfg, err)
		}
		if _, err := c.DescribeConfig(ctx, &pb.DescribeConfigRequest{Topic: "x"}); status.Code(err) != codes.NotFound {
			t.Error(err)
		}
	})
}

func TestHealthFollowsReadiness(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		c := healthpb.NewHealthClient(d.conn)
		check := func(service string, want healthpb.HealthCheckResponse_ServingStatus) {
			t.Helper()
			got, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			if err != nil || got.Status != want {
				t.Errorf("%q: %v, %v", service, got, err)
			}
		}
		synctest.Wait()
		check("ready", healthpb.HealthCheckResponse_SERVING)
		d.api.SetReady(false)
		check("", healthpb.HealthCheckResponse_NOT_SERVING)
		check("live", healthpb.HealthCheckResponse_SERVING)
		d.api.SetReady(true)
		check("", healthpb.HealthCheckResponse_SERVING)
		check("tidemark.v1.Log", healthpb.HealthCheckResponse_SERVING)
		d.api.Drain()
		synctest.Wait()
		check("ready", healthpb.HealthCheckResponse_NOT_SERVING)
	})
}

func TestAHealthWatchDoesNotHoldUpAShutdown(t *testing.T) {
	withDoor(t, nil, func(t *testing.T, d *door) {
		w, err := healthpb.NewHealthClient(d.conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if err := d.api.Stop(ctx); err != nil || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestNewChecksWhatItIsGiven(t *testing.T) {
	b := newFakeBroker()
	deps := Deps{Replicas: b, Metadata: b, Topics: b, Groups: &b.groups}
	if _, err := New(Config{}, deps); err == nil {
		t.Error("no limits")
	}
	if _, err := New(DefaultConfig(), Deps{}); err == nil {
		t.Error("no services")
	}
	if _, err := New(DefaultConfig(), deps); err != nil {
		t.Error(err)
	}
}
