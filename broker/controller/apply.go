package controller

import (
	"maps"
	"math"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Bounds that hold whatever a command says.
const (
	maxPartitions    = 100_000 // of one topic
	maxReplicas      = 16      // of one partition
	maxConfigs       = 256     // settings of one topic
	maxText          = 4096    // bytes of one text field
	maxBlock         = 1_000_000
	maxCoordinators  = 1024
	firstProducer    = int64(1000)
	maxTopicNameSize = 249
)

func (c bootstrap) apply(s *State) (any, error) {
	switch {
	case s.cluster == c.Cluster && !c.Cluster.IsZero():
		return nil, nil // the same command again
	case !s.cluster.IsZero():
		return nil, errs.Errorf(errs.InconsistentClusterID, "bootstrap of cluster %v: this is cluster %v already", c.Cluster, s.cluster)
	case c.Cluster.IsZero():
		return nil, errs.New(errs.InvalidRequest, "bootstrap without a cluster id")
	case c.Feature < 1 || c.Feature > FeatureLevel:
		return nil, errs.Errorf(errs.UnsupportedVersion, "bootstrap at feature level %d: this version understands 1 to %d", c.Feature, FeatureLevel)
	case c.CoordinatorGroups < 1 || c.CoordinatorGroups > maxCoordinators:
		return nil, errs.Errorf(errs.InvalidRequest, "bootstrap with %d coordinator groups: need 1 to %d", c.CoordinatorGroups, maxCoordinators)
	}
	s.cluster, s.feature, s.coordinators = c.Cluster, c.Feature, c.CoordinatorGroups
	return nil, nil
}

// apply answers with the Broker. A broker that is known keeps its id.
func (c registerBroker) apply(s *State) (any, error) {
	me := c.Self
	if me.UUID.IsZero() || me.PartitionLimit < 0 {
		return nil, errs.New(errs.InvalidRegistration, "broker registration without a UUID or with a negative partition limit")
	}
	for _, text := range []string{me.Rack, me.Version, me.GRPCAddress, me.KafkaAddress} {
		if len(text) > maxText {
			return nil, errs.Errorf(errs.InvalidRegistration, "broker registration with a text of %d bytes; the limit is %d", len(text), maxText)
		}
	}
	b := Broker{UUID: me.UUID}
	for _, known := range s.brokers {
		if known.UUID == me.UUID {
			b = known
		}
	}
	if b.ID == 0 {
		if s.nextBroker == math.MaxInt32 {
			return nil, errs.New(errs.LimitExceeded, "all broker ids were handed out")
		}
		b.ID = s.nextBroker
		s.nextBroker++
	}
	b.Incarnation++
	b.Rack, b.Version, b.GRPCAddress, b.KafkaAddress, b.PartitionLimit = me.Rack, me.Version, me.GRPCAddress, me.KafkaAddress, me.PartitionLimit
	s.brokers[b.ID] = b
	return b, nil
}

// apply answers with the Topic.
func (c createTopic) apply(s *State) (any, error) {
	if err := CheckTopicName(c.Name); err != nil {
		return nil, err
	}
	if id, ok := s.names[c.Name]; ok {
		if id == c.ID {
			return s.topics[id], nil // the same command again
		}
		return nil, errs.Errorf(errs.TopicAlreadyExists, "topic %q exists already", c.Name)
	}
	if _, dead := s.tombstones[c.ID]; dead || c.ID.IsZero() {
		return nil, errs.Errorf(errs.InvalidRequest, "topic id %v cannot be used", c.ID)
	}
	if _, taken := s.topics[c.ID]; taken {
		return nil, errs.Errorf(errs.InvalidRequest, "topic id %v belongs to another topic", c.ID)
	}
	if err := checkConfigBounds(c.Configs); err != nil {
		return nil, err
	}
	added, err := s.place(c.Name, 0, c.Partitions)
	if err != nil {
		return nil, err
	}
	t := Topic{Name: c.Name, ID: c.ID, Internal: c.Internal, Partitions: added, Configs: c.Configs}
	s.topics[t.ID], s.names[t.Name] = t, t.ID
	s.host(added, +1)
	return t, nil
}

// place checks where new partitions shall live.
func (s *State) place(name string, first int32, placements []placement) ([]Assignment, error) {
	if len(placements) == 0 || int(first)+len(placements) > maxPartitions {
		return nil, errs.Errorf(errs.InvalidPartitions, "topic %q with %d partitions: need 1 to %d", name, int(first)+len(placements), maxPartitions)
	}
	more := map[int32]int32{}
	added := make([]Assignment, 0, len(placements))
	for i, replicas := range placements {
		if len(replicas) == 0 || len(replicas) > maxReplicas {
			return nil, errs.Errorf(errs.InvalidReplicationFactor, "topic %q with %d replicas: need 1 to %d", name, len(replicas), maxReplicas)
		}
		for j, r := range replicas {
			if _, ok := s.brokers[r.Broker]; !ok || r.UUID.IsZero() || slices.ContainsFunc(replicas[:j], func(o Replica) bool { return o.Broker == r.Broker }) {
				return nil, errs.Errorf(errs.InvalidReplicaAssignment, "topic %q partition %d cannot have a replica on broker %d: the broker is not known, or is named twice", name, first+int32(i), r.Broker)
			}
			more[r.Broker]++
		}
		added = append(added, Assignment{Partition: first + int32(i), Leader: -1, LeaderEpoch: -1, Replicas: replicas})
	}
	for _, id := range slices.Sorted(maps.Keys(more)) {
		if has, limit := s.hosted[id], s.brokers[id].PartitionLimit; has+more[id] > limit {
			return nil, limitExceeded(name, id, has, more[id], limit)
		}
	}
	return added, nil
}

func limitExceeded(name string, broker, has, more, limit int32) error {
	return errs.Errorf(errs.LimitExceeded,
		"topic %q needs %d more replicas on broker %d, which hosts %d of at most %d: delete topics, ask for fewer partitions, or raise limits.partitions on that broker",
		name, more, broker, has, limit)
}

func (s *State) host(partitions []Assignment, by int32) {
	for _, p := range partitions {
		for _, r := range p.Replicas {
			if s.hosted[r.Broker] += by; s.hosted[r.Broker] == 0 {
				delete(s.hosted, r.Broker)
			}
		}
	}
}

func (c deleteTopic) apply(s *State) (any, error) {
	t, err := s.find(c.ID)
	if err != nil {
		return nil, err
	}
	grave := Tombstone{Topic: t.ID, Name: t.Name}
	for _, p := range t.Partitions {
		for _, r := range p.Replicas {
			if at, found := slices.BinarySearch(grave.Brokers, r.Broker); !found {
				grave.Brokers = slices.Insert(grave.Brokers, at, r.Broker)
			}
		}
	}
	delete(s.topics, t.ID)
	delete(s.names, t.Name)
	s.host(t.Partitions, -1)
	s.tombstones[t.ID] = grave
	return nil, nil
}

func (s *State) find(id UUID) (Topic, error) {
	t, ok := s.topics[id]
	if !ok {
		return t, errs.Errorf(errs.UnknownTopicID, "no topic has the id %v", id)
	}
	return t, nil
}

// apply answers with the Topic.
func (c alterTopic) apply(s *State) (any, error) {
	t, err := s.find(c.ID)
	if err != nil {
		return nil, err
	}
	configs := altered(t.Configs, c.Set, c.Unset)
	if err := checkConfigBounds(configs); err != nil {
		return nil, err
	}
	t.Configs = configs
	s.topics[t.ID] = t
	return t, nil
}

func (c alterCluster) apply(s *State) (any, error) {
	configs := altered(s.configs, c.Set, c.Unset)
	if err := checkConfigBounds(configs); err != nil {
		return nil, err
	}
	s.configs = configs
	return nil, nil
}

func altered(old, set map[string]string, unset []string) map[string]string {
	m := map[string]string{}
	maps.Copy(m, old)
	for _, k := range unset {
		delete(m, k)
	}
	maps.Copy(m, set)
	if len(m) == 0 {
		return nil
	}
	return m
}

// checkConfigBounds bounds the memory. What the settings mean was checked before the
// command was proposed: brokers of two versions may know different ones.
func checkConfigBounds(configs map[string]string) error {
	if len(configs) > maxConfigs {
		return errs.Errorf(errs.InvalidConfig, "%d settings; the limit is %d", len(configs), maxConfigs)
	}
	for k, v := range configs {
		if len(k) > maxText || len(v) > maxText {
			return errs.Errorf(errs.InvalidConfig, "a setting is longer than %d bytes", maxText)
		}
	}
	return nil
}

// apply answers with the Topic.
func (c addPartitions) apply(s *State) (any, error) {
	t, err := s.find(c.ID)
	if err != nil {
		return nil, err
	}
	if int(c.First) != len(t.Partitions) {
		return nil, errs.Errorf(errs.InvalidPartitions, "topic %q has %d partitions, not %d: somebody else changed it; look again", t.Name, len(t.Partitions), c.First)
	}
	added, err := s.place(t.Name, c.First, c.Added)
	if err != nil {
		return nil, err
	}
	t.Partitions = slices.Concat(t.Partitions, added)
	s.topics[t.ID] = t
	s.host(added, +1)
	return t, nil
}

// apply skips what does not exist any more: the topic may have been deleted meanwhile.
func (c formed) apply(s *State) (any, error) {
	e := edit{s: s}
	for _, f := range c.Replicas {
		p := e.partition(f.Topic, f.Partition)
		if p == nil {
			continue
		}
		i := slices.IndexFunc(p.Replicas, func(r Replica) bool { return r.UUID == f.Replica })
		if i < 0 || p.Replicas[i].State == ReplicaFormed {
			continue
		}
		p.Replicas = slices.Clone(p.Replicas)
		p.Replicas[i].State = ReplicaFormed
	}
	e.commit()
	return nil, nil
}

// apply skips reports that are older than what is known: two leaders may report
// in the wrong order, and the epoch tells which of them is right.
func (c report) apply(s *State) (any, error) {
	e := edit{s: s}
	for _, l := range c.Partitions {
		p := e.partition(l.Topic, l.Partition)
		if p == nil || l.Epoch < p.LeaderEpoch || !p.holds(l.Leader) || len(l.ISR) > maxReplicas {
			continue
		}
		if l.Leader == -1 && l.Epoch == p.LeaderEpoch && len(l.ISR) == 0 && p.Leader == -1 {
			continue
		}
		p.Leader, p.LeaderEpoch, p.ISR = l.Leader, l.Epoch, l.ISR
	}
	e.commit()
	return nil, nil
}

func (a Assignment) holds(broker int32) bool {
	return broker == -1 || slices.ContainsFunc(a.Replicas, func(r Replica) bool { return r.Broker == broker })
}

// edit copies each topic that a command touches once, then puts the copies in place.
type edit struct {
	s      *State
	topics map[UUID]Topic
}

func (e *edit) partition(topic UUID, partition int32) *Assignment {
	t, ok := e.topics[topic]
	if !ok {
		if t, ok = e.s.topics[topic]; !ok {
			return nil
		}
		t.Partitions = slices.Clone(t.Partitions)
		if e.topics == nil {
			e.topics = map[UUID]Topic{}
		}
		e.topics[topic] = t
	}
	if partition < 0 || int(partition) >= len(t.Partitions) {
		return nil
	}
	return &t.Partitions[partition]
}

func (e *edit) commit() { maps.Copy(e.s.topics, e.topics) }

func (c trashed) apply(s *State) (any, error) {
	grave, ok := s.tombstones[c.Topic]
	if !ok {
		return nil, nil
	}
	grave.Brokers = slices.DeleteFunc(slices.Clone(grave.Brokers), func(id int32) bool { return id == c.Broker })
	if len(grave.Brokers) > 0 {
		s.tombstones[c.Topic] = grave
		return nil, nil
	}
	delete(s.tombstones, c.Topic)
	return nil, nil
}

// apply answers with the first id of the block.
func (c takeProducers) apply(s *State) (any, error) {
	if c.Count < 1 || c.Count > maxBlock || s.nextProducer > math.MaxInt64-int64(c.Count) {
		return nil, errs.Errorf(errs.InvalidRequest, "cannot hand out a block of %d producer ids", c.Count)
	}
	first := s.nextProducer
	s.nextProducer += int64(c.Count)
	return first, nil
}

// apply never lowers the level: formats of the higher one may be in use.
func (c setFeature) apply(s *State) (any, error) {
	if c.Level < s.feature || c.Level > FeatureLevel {
		return nil, errs.Errorf(errs.FeatureUpdateFailed, "feature level %d: the cluster is at %d, and this version understands up to %d", c.Level, s.feature, FeatureLevel)
	}
	s.feature = c.Level
	return nil, nil
}
