package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Client talks to the cluster. New makes one; Close ends it.
type Client struct {
	client *client.Client
}

// New returns a client that finds the cluster through any of brokers (host:port
// of gRPC listeners, all tried in turn). It does not connect yet.
func New(brokers []string, opts ...Option) (*Client, error) {
	cfg := client.DefaultConfig()
	for _, o := range opts {
		o(&cfg)
	}
	cfg.Brokers = brokers
	c, err := client.Open(cfg)
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
}

// Close closes the connections.
func (c *Client) Close() error { return c.client.Close() }

// call makes one call to any broker.
func call[Req, Res any](ctx context.Context, c *client.Client, op string, kind client.Kind, req Req, f func(*grpc.ClientConn) func(context.Context, Req, ...grpc.CallOption) (Res, error)) (res Res, err error) {
	err = c.Any(ctx, op, kind, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		res, err = f(conn)(ctx, req)
		return err
	})
	return res, err
}

// Cluster describes the cluster.
func (c *Client) Cluster(ctx context.Context) (Cluster, error) {
	res, err := call(ctx, c.client, "describe cluster", client.Ask, &pb.DescribeClusterRequest{}, func(conn *grpc.ClientConn) func(context.Context, *pb.DescribeClusterRequest, ...grpc.CallOption) (*pb.DescribeClusterResponse, error) {
		return pb.NewAdminClient(conn).DescribeCluster
	})
	if err != nil {
		return Cluster{}, err
	}
	cl := Cluster{ID: res.GetClusterId(), ControllerID: res.GetControllerId(), FeatureLevel: res.GetFeatureLevel(), AnsweringBroker: res.GetAnsweringBroker()}
	for _, b := range res.GetBrokers() {
		cl.Brokers = append(cl.Brokers, Broker{ID: b.GetId(), UUID: b.GetUuid(), Rack: b.GetRack(), GRPCAddress: b.GetGrpcAddress(), KafkaAddress: b.GetKafkaAddress(), Version: b.GetVersion()})
	}
	return cl, nil
}

// BrokerConfig lists the settings of the broker that answers.
func (c *Client) BrokerConfig(ctx context.Context) ([]Config, error) {
	return c.config(ctx, "describe broker config", "")
}

// TopicConfig lists the settings of a topic.
func (c *Client) TopicConfig(ctx context.Context, topic string) ([]Config, error) {
	return c.config(ctx, "describe config of topic "+topic, topic)
}

func (c *Client) config(ctx context.Context, op, topic string) ([]Config, error) {
	res, err := call(ctx, c.client, op, client.Ask, &pb.DescribeConfigRequest{Topic: topic}, func(conn *grpc.ClientConn) func(context.Context, *pb.DescribeConfigRequest, ...grpc.CallOption) (*pb.DescribeConfigResponse, error) {
		return pb.NewAdminClient(conn).DescribeConfig
	})
	if err != nil {
		return nil, err
	}
	return configs(res.GetEntries()), nil
}

func configs(entries []*pb.ConfigEntry) []Config {
	all := make([]Config, 0, len(entries))
	for _, e := range entries {
		all = append(all, Config{Name: e.GetName(), Value: e.GetValue(), Default: e.GetDefaultValue(), Origin: e.GetOrigin(), ReadOnly: e.GetReadOnly(), Sensitive: e.GetSensitive(), Documentation: e.GetDocumentation()})
	}
	return all
}

func topicOf(info *pb.TopicInfo) Topic {
	t := Topic{Name: info.GetName(), Internal: info.GetInternal(), ReplicationFactor: int(info.GetReplicationFactor()), Err: client.FromProto(info.GetError())}
	copy(t.ID[:], info.GetId())
	for _, p := range info.GetPartitions() {
		t.Partitions = append(t.Partitions, Partition{Partition: p.GetPartition(), Leader: p.GetLeaderId(), LeaderEpoch: record.Epoch(p.GetLeaderEpoch()), Replicas: p.GetReplicas(), ISR: p.GetIsr()})
	}
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return int(a.Partition) - int(b.Partition) })
	return t
}

func byName[T any](name func(T) string) func(a, b T) int {
	return func(a, b T) int { return strings.Compare(name(a), name(b)) }
}

func about(op, name string) string { return fmt.Sprintf("%s %q", op, name) }
