package controller

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// NewTopic asks for a topic.
type NewTopic struct {
	Name              string
	Partitions        int32             // 0: the default
	ReplicationFactor int16             // 0: the default
	Configs           map[string]string // Kafka's names
	IfNotExists       bool
	ValidateOnly      bool
}

// CreateTopic creates a topic and returns once every partition has a leader
// that serves. existed says that IfNotExists found it there already. An error that says
// that the time ran out after the creation leaves the topic there.
func (c *Controller) CreateTopic(ctx context.Context, want NewTopic) (t Topic, existed bool, err error) {
	if err := CheckTopicName(want.Name); err != nil {
		return Topic{}, false, err
	}
	if t, ok := c.state.Topic(want.Name); ok {
		return c.found(ctx, t, want)
	}
	configs, err := CheckTopicConfigs(want.Configs)
	if err != nil {
		return Topic{}, false, err
	}
	placements, err := c.plan(want)
	if err != nil {
		return Topic{}, false, err
	}
	c.warnAbout(want.Name, configs, len(placements[0]))
	cmd := createTopic{ID: NewUUID(), Name: want.Name, Configs: configs, Partitions: placements}
	if want.ValidateOnly {
		return planned(cmd), false, nil
	}
	result, err := c.propose(ctx, cmd)
	if errs.CodeOf(err) == errs.TopicAlreadyExists {
		if t, ok := c.state.Topic(want.Name); ok {
			return c.found(ctx, t, want)
		}
	}
	if err != nil {
		return Topic{}, false, err
	}
	t = result.(Topic)
	c.cfg.Logger.Info("topic created", "topic", t.Name, "topic_id", t.ID.String(), "partitions", len(t.Partitions), "replication_factor", t.ReplicationFactor())
	t, err = c.awaitLeaders(ctx, t.ID, 0)
	return t, false, err
}

func (c *Controller) found(ctx context.Context, t Topic, want NewTopic) (Topic, bool, error) {
	if !want.IfNotExists {
		return Topic{}, false, errs.Errorf(errs.TopicAlreadyExists, "topic %q exists already", want.Name)
	}
	if want.ValidateOnly {
		return t, true, nil
	}
	t, err := c.awaitLeaders(ctx, t.ID, 0)
	return t, true, err
}

// warnAbout names what is legal and yet likely a mistake.
func (c *Controller) warnAbout(name string, configs map[string]string, replicas int) {
	for _, other := range c.state.Topics() {
		if other.Name != name && metricName(other.Name) == metricName(name) {
			c.cfg.Logger.Warn("topic names that differ only in . and _ look alike in metrics", "topic", name, "other", other.Name)
		}
	}
	if n, _ := strconv.Atoi(configs["min.insync.replicas"]); n > replicas {
		c.cfg.Logger.Warn("min.insync.replicas is above the replication factor: appends with acks=all will be refused",
			"topic", name, "min_insync_replicas", n, "replication_factor", replicas)
	}
}

// plan decides where the replicas of a new topic live.
func (c *Controller) plan(want NewTopic) ([]placement, error) {
	brokers := c.state.Brokers()
	partitions, replicas := want.Partitions, want.ReplicationFactor
	if partitions == 0 {
		partitions = c.cfg.DefaultPartitions
	}
	if replicas == 0 {
		replicas = c.cfg.DefaultReplication
	}
	if replicas == 0 {
		replicas = int16(min(3, len(brokers)))
	}
	if partitions < 1 || partitions > maxPartitions {
		return nil, errs.Errorf(errs.InvalidPartitions, "topic %q with %d partitions: need 1 to %d", want.Name, partitions, maxPartitions)
	}
	if replicas < 1 || int(replicas) > len(brokers) {
		return nil, errs.Errorf(errs.InvalidReplicationFactor, "topic %q with replication factor %d: the number of brokers in the cluster is %d; ask for at most so many", want.Name, replicas, len(brokers))
	}
	return place(want.Name, brokers, c.state.hostedBy(), int(partitions), int(replicas))
}

// place puts each replica on the broker that hosts the fewest. Racks come with
// the second broker.
func place(topic string, brokers []Broker, hosted map[int32]int32, partitions, replicas int) ([]placement, error) {
	if replicas > len(brokers) {
		return nil, errs.Errorf(errs.InvalidReplicationFactor, "topic %q with replication factor %d: the number of brokers in the cluster is %d", topic, replicas, len(brokers))
	}
	placements := make([]placement, partitions)
	before := map[int32]int32{}
	for _, b := range brokers {
		before[b.ID] = hosted[b.ID]
	}
	for i := range placements {
		slices.SortStableFunc(brokers, func(a, b Broker) int {
			return cmp.Or(cmp.Compare(hosted[a.ID], hosted[b.ID]), cmp.Compare(a.ID, b.ID))
		})
		for _, b := range brokers[:replicas] {
			placements[i] = append(placements[i], Replica{Broker: b.ID, UUID: NewUUID()})
			hosted[b.ID]++
		}
	}
	for _, b := range brokers {
		if more := hosted[b.ID] - before[b.ID]; more > 0 && hosted[b.ID] > b.PartitionLimit {
			return nil, limitExceeded(topic, b.ID, before[b.ID], more, b.PartitionLimit)
		}
	}
	return placements, nil
}

func planned(cmd createTopic) Topic {
	t := Topic{Name: cmd.Name, ID: cmd.ID, Configs: cmd.Configs}
	for i, p := range cmd.Partitions {
		t.Partitions = append(t.Partitions, Assignment{Partition: int32(i), Leader: -1, LeaderEpoch: -1, Replicas: p})
	}
	return t
}

// awaitLeaders waits until the partitions from first on have leaders.
func (c *Controller) awaitLeaders(ctx context.Context, id UUID, first int32) (Topic, error) {
	changed := make(chan struct{}, 1)
	defer c.state.Notify(changed)()
	for {
		t, ok := c.state.TopicByID(id)
		if !ok {
			return t, errs.Errorf(errs.UnknownTopicOrPartition, "the topic was deleted while its partitions started")
		}
		without := slices.IndexFunc(t.Partitions, func(a Assignment) bool { return a.Partition >= first && a.Leader < 0 })
		if without < 0 {
			return t, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return t, errs.Unknown(errs.RequestTimedOut, "topic "+t.Name+" was created, but partition "+strconv.Itoa(without)+
				" had no leader when the time ran out: describe the topic, and look into the broker's log")
		}
	}
}

// timedOut is for waits that ended before anything was asked for.
func timedOut(ctx context.Context, what string) error {
	return errs.Errorf(errs.RequestTimedOut, "%s: %w", what, ctx.Err())
}

// DeleteTopic forgets a topic. Its replicas go to the trash afterwards.
func (c *Controller) DeleteTopic(ctx context.Context, name string, ifExists, validateOnly bool) error {
	t, ok := c.state.Topic(name)
	if !ok {
		if ifExists {
			return nil
		}
		return unknownTopic(name)
	}
	if validateOnly {
		return nil
	}
	_, err := c.propose(ctx, deleteTopic{t.ID})
	if errs.CodeOf(err) == errs.UnknownTopicID {
		if ifExists {
			return nil
		}
		return unknownTopic(name)
	}
	if err == nil {
		c.cfg.Logger.Info("topic deleted", "topic", t.Name, "topic_id", t.ID.String())
	}
	return err
}

// AlterTopic changes the topic's own settings.
func (c *Controller) AlterTopic(ctx context.Context, name string, set map[string]string, unset []string, validateOnly bool) error {
	t, ok := c.state.Topic(name)
	if !ok {
		return unknownTopic(name)
	}
	configs, err := CheckTopicConfigs(set)
	if err != nil {
		return err
	}
	for _, k := range unset {
		if _, stored := t.Configs[k]; stored {
			continue // what a newer version stored can be removed too
		}
		if _, err := setting(k); err != nil {
			return err
		}
	}
	if validateOnly || len(configs)+len(unset) == 0 {
		return nil
	}
	result, err := c.propose(ctx, alterTopic{t.ID, configs, unset})
	if errs.CodeOf(err) == errs.UnknownTopicID {
		return unknownTopic(name)
	}
	if err != nil {
		return err
	}
	t = result.(Topic)
	c.warnAbout(t.Name, t.Configs, t.ReplicationFactor())
	c.cfg.Logger.Info("topic settings changed", "topic", t.Name, "set", configs, "unset", unset)
	return nil
}

// AddPartitions raises the number of partitions to total and returns once the
// new ones have leaders. Keys move to other partitions by it.
func (c *Controller) AddPartitions(ctx context.Context, name string, total int32, validateOnly bool) (Topic, error) {
	t, ok := c.state.Topic(name)
	if !ok {
		return Topic{}, unknownTopic(name)
	}
	have := int32(len(t.Partitions))
	if total <= have {
		return Topic{}, errs.Errorf(errs.InvalidPartitions, "the number of partitions of topic %q is %d; it can only grow, and %d was asked for", name, have, total)
	}
	if total > maxPartitions {
		return Topic{}, errs.Errorf(errs.InvalidPartitions, "topic %q with %d partitions: at most %d", name, total, maxPartitions)
	}
	added, err := place(name, c.state.Brokers(), c.state.hostedBy(), int(total-have), t.ReplicationFactor())
	if err != nil || validateOnly {
		return t, err
	}
	if _, err := c.propose(ctx, addPartitions{t.ID, have, added}); err != nil {
		if errs.CodeOf(err) == errs.UnknownTopicID {
			err = unknownTopic(name)
		}
		return Topic{}, err
	}
	c.cfg.Logger.Info("partitions added", "topic", name, "partitions", total)
	return c.awaitLeaders(ctx, t.ID, have)
}
