package grpcapi

import (
	"context"

	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// DescribeCluster tells who is in the cluster.
func (a *API) DescribeCluster(context.Context, *pb.DescribeClusterRequest) (*pb.DescribeClusterResponse, error) {
	m := a.deps.Metadata
	return &pb.DescribeClusterResponse{
		ClusterId: m.ClusterID(), ControllerId: m.ControllerID(), Brokers: a.brokers(), FeatureLevel: m.FeatureLevel(), AnsweringBroker: m.BrokerID(),
	}, nil
}

// masked stands for the value of a secret.
const masked = "***"

// DescribeConfig shows the settings of a topic, or of this broker.
func (a *API) DescribeConfig(_ context.Context, req *pb.DescribeConfigRequest) (*pb.DescribeConfigResponse, error) {
	if req.Topic != "" {
		if _, ok := a.deps.Metadata.Topic(req.Topic); !ok {
			return nil, unknownTopic(req.Topic)
		}
		entries, err := a.deps.Metadata.TopicConfigs(req.Topic)
		if err != nil {
			return nil, err
		}
		return &pb.DescribeConfigResponse{Entries: toConfigEntries(entries)}, nil
	}
	resp := &pb.DescribeConfigResponse{}
	if a.deps.Settings == nil {
		return resp, nil
	}
	for _, s := range a.deps.Settings() {
		if s.Sensitive {
			s.Value, s.Default = masked, ""
		}
		resp.Entries = append(resp.Entries, &pb.ConfigEntry{
			Name: s.Name, Value: s.Value, DefaultValue: s.Default, Origin: s.Origin, ReadOnly: s.ReadOnly, Sensitive: s.Sensitive, Documentation: s.Doc,
		})
	}
	return resp, nil
}
