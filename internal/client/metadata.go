package client

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/proto/errs"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Broker is a broker as the metadata names it.
type Broker struct {
	ID      int32
	Address string
	Rack    string
}

// Topic is what is known of a topic. It is never changed once it is shared.
type Topic struct {
	Name       string
	ID         [16]byte
	Partitions []Partition // by number
}

// Partition is what is known of a partition.
type Partition struct {
	Leader int32 // -1: none known
	Epoch  int32
}

// Topic returns what is known of a topic, asking where nothing is.
func (c *Client) Topic(ctx context.Context, name string) (*Topic, error) {
	if t := c.Known(name); t != nil {
		return t, nil
	}
	if err := c.Refresh(ctx, name); err != nil {
		return nil, err
	}
	if t := c.Known(name); t != nil {
		return t, nil
	}
	return nil, errs.Errorf(errs.UnknownTopicOrPartition, "topic %q does not exist; create it first", name)
}

// Known returns what the cache knows of a topic, or nil.
func (c *Client) Known(name string) *Topic {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.topics[name]
}

// LeaderOf returns the broker that leads a partition as far as the cache
// knows, or -1.
func (c *Client) LeaderOf(topic string, partition int32) (id, epoch int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[topic]
	if t == nil || partition < 0 || int(partition) >= len(t.Partitions) {
		return -1, -1
	}
	p := t.Partitions[partition]
	if _, ok := c.brokers[p.Leader]; !ok {
		return -1, p.Epoch
	}
	return p.Leader, p.Epoch
}

// Brokers is how many brokers the metadata names, at least 1.
func (c *Client) Brokers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(1, len(c.brokers))
}

func (c *Client) leaderAddress(ctx context.Context, topic string, partition int32) (string, error) {
	t, err := c.Topic(ctx, topic)
	if err != nil {
		return "", err
	}
	if partition < 0 || int(partition) >= len(t.Partitions) {
		return "", errs.Errorf(errs.InvalidPartitions, "topic %s has no partition %d: they are numbered from 0 to %d", topic, partition, len(t.Partitions)-1)
	}
	id, _ := c.LeaderOf(topic, partition)
	c.mu.Lock()
	addr := c.brokers[id].Address
	c.mu.Unlock()
	if addr == "" {
		return "", errs.Errorf(errs.LeaderNotAvailable, "partition %s/%d has no leader: its replicas are starting, cut off, or damaged; the brokers' logs tell", topic, partition)
	}
	return addr, nil
}

// Refresh asks the cluster about topics (none: all) and remembers the answer. A topic that
// does not exist is no error here: it is not Known afterwards.
func (c *Client) Refresh(ctx context.Context, topics ...string) error {
	return c.Any(ctx, "metadata", Ask, func(ctx context.Context, conn *grpc.ClientConn) error {
		res, err := tidemarkv1.NewTopicsClient(conn).GetMetadata(ctx, &tidemarkv1.GetMetadataRequest{Topics: topics})
		if err != nil {
			return err
		}
		return c.learn(res, topics)
	})
}

// RefreshBrokers asks the cluster who its brokers are.
func (c *Client) RefreshBrokers(ctx context.Context) error {
	return c.Any(ctx, "metadata", Ask, func(ctx context.Context, conn *grpc.ClientConn) error {
		res, err := tidemarkv1.NewTopicsClient(conn).GetMetadata(ctx, &tidemarkv1.GetMetadataRequest{OnlyBrokers: true})
		if err != nil {
			return err
		}
		return c.learn(res, nil)
	})
}

// All asks about all topics and returns their names, sorted, internal ones left out.
func (c *Client) All(ctx context.Context) ([]string, error) {
	var names []string
	err := c.Any(ctx, "metadata", Ask, func(ctx context.Context, conn *grpc.ClientConn) error {
		res, err := tidemarkv1.NewTopicsClient(conn).GetMetadata(ctx, &tidemarkv1.GetMetadataRequest{})
		if err != nil {
			return err
		}
		names = names[:0]
		for _, t := range res.GetTopics() {
			if !t.GetInternal() {
				names = append(names, t.GetName())
			}
		}
		return c.learn(res, nil)
	})
	slices.Sort(names)
	return names, err
}

// learn merges an answer into the cache.
func (c *Client) learn(res *tidemarkv1.GetMetadataResponse, asked []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learnBrokersLocked(res.GetBrokers())
	seen := make(map[string]bool, len(res.GetTopics()))
	var failed error
	for _, info := range res.GetTopics() {
		seen[info.GetName()] = true
		switch err := FromProto(info.GetError()); {
		case err == nil:
			c.topics[info.GetName()] = merge(c.topics[info.GetName()], info)
		case errs.CodeOf(err) == errs.UnknownTopicOrPartition:
			delete(c.topics, info.GetName())
		default:
			failed = err
		}
	}
	for _, name := range asked {
		if !seen[name] {
			delete(c.topics, name)
		}
	}
	return failed
}

func (c *Client) learnBrokersLocked(brokers []*tidemarkv1.Broker) {
	if len(brokers) == 0 {
		return // a broker that knows of none is not to be believed
	}
	c.brokers = make(map[int32]Broker, len(brokers))
	keep := slices.Clone(c.cfg.Brokers)
	for _, b := range brokers {
		c.brokers[b.GetId()] = Broker{ID: b.GetId(), Address: b.GetGrpcAddress(), Rack: b.GetRack()}
		keep = append(keep, b.GetGrpcAddress())
	}
	for addr, conn := range c.conns {
		if !slices.Contains(keep, addr) {
			delete(c.conns, addr)
			_ = conn.Close() // the broker left; see Close
		}
	}
	if !slices.Contains(keep, c.lastGood) {
		c.lastGood = ""
	}
}

// merge keeps, per partition, the newer leader epoch: the broker that answered
// may lag behind the one that answered before.
func merge(old *Topic, info *tidemarkv1.TopicInfo) *Topic {
	t := &Topic{Name: info.GetName(), Partitions: make([]Partition, len(info.GetPartitions()))}
	copy(t.ID[:], info.GetId())
	for i := range t.Partitions {
		t.Partitions[i] = Partition{Leader: -1, Epoch: -1}
	}
	for _, p := range info.GetPartitions() {
		if n := p.GetPartition(); n >= 0 && int(n) < len(t.Partitions) {
			t.Partitions[n] = Partition{Leader: p.GetLeaderId(), Epoch: p.GetLeaderEpoch()}
		}
	}
	if old == nil || old.ID != t.ID {
		return t
	}
	for i := range min(len(old.Partitions), len(t.Partitions)) {
		if old.Partitions[i].Epoch > t.Partitions[i].Epoch {
			t.Partitions[i] = old.Partitions[i]
		}
	}
	return t
}

// LearnLeader takes over who leads from an error that says so, where the
// metadata knows that broker and its epoch is newer.
func (c *Client) LearnLeader(topic string, partition int32, err *LeaderError) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.topics[topic]
	if old == nil || int(partition) >= len(old.Partitions) || partition < 0 {
		return false
	}
	if _, known := c.brokers[err.LeaderID]; !known || err.LeaderEpoch <= old.Partitions[partition].Epoch {
		return false
	}
	t := &Topic{Name: old.Name, ID: old.ID, Partitions: slices.Clone(old.Partitions)}
	t.Partitions[partition] = Partition{Leader: err.LeaderID, Epoch: err.LeaderEpoch}
	c.topics[topic] = t
	return true
}
