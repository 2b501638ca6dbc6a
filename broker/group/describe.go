package group

import (
	"context"
	"maps"
	"slices"
	"time"
)

// list returns the groups of the shard.
func (s *shard) list(ctx context.Context) ([]Listing, error) {
	if err := s.read(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return s.listLocked(), nil
}

func (s *shard) listLocked() []Listing {
	all := make([]Listing, 0, len(s.machine.groups))
	for name, g := range s.machine.groups {
		all = append(all, Listing{
			Name: name, State: g.state(), Protocol: g.protocol, ProtocolType: g.protocolType,
			Members: len(g.members), Coordinator: s.cfg.BrokerID,
		})
	}
	return all
}

// describe returns a group without its lag.
func (s *shard) describe(ctx context.Context, name string) (Description, error) {
	if err := checkGroup(name); err != nil {
		return Description{}, err
	}
	if err := s.read(ctx); err != nil {
		return Description{}, err
	}
	defer s.mu.Unlock()
	g := s.machine.groups[name]
	if g == nil {
		return Description{}, noSuchGroup(name).err()
	}
	d := Description{
		Name: name, State: g.state(), Protocol: g.protocol, ProtocolType: g.protocolType, ProtocolName: g.protocolName,
		Generation: g.generation, Coordinator: s.cfg.BrokerID,
	}
	partitions := map[TopicPartition]string{}
	for _, tp := range g.committedPartitions() {
		partitions[tp] = ""
	}
	for _, m := range g.sortedMembers() {
		d.Members = append(d.Members, s.describeMember(g, name, m))
		for _, tp := range m.assigned() {
			partitions[tp] = m.id
		}
	}
	for _, tp := range slices.SortedFunc(maps.Keys(partitions), TopicPartition.compare) {
		d.Partitions = append(d.Partitions, PartitionDescription{
			CommittedOffset: s.committed(g, tp), LogStart: -1, HighWatermark: -1, Lag: -1, LagTime: -1, MemberID: partitions[tp],
		})
	}
	return d, nil
}

func (s *shard) describeMember(g *groupState, group string, m *member) MemberDescription {
	d := MemberDescription{
		MemberID: m.id, InstanceID: m.instance, ClientID: m.client, Host: m.host, MemberEpoch: m.epoch,
		Assigned: gather(m.assigned()), Topics: m.topics, TopicRegex: m.regex, Assignment: m.assignment,
	}
	if _, _, lm := s.find(group, m.id); lm != nil {
		d.Owned = lm.owned
	}
	if p := m.protocol(g.protocolName); p != nil {
		d.Metadata = p.Metadata
		if topics, ok := m.consumerTopics(g.protocolType, g.protocolName); ok {
			d.Topics = topics
		}
	}
	return d
}

// measure adds what the partition says: how many records the group has not read, and
// for how long the first of them has been waiting.
func (c *Coordinator) measure(ctx context.Context, p *PartitionDescription) {
	from := p.Offset
	if from < 0 {
		from = 0
	}
	st, err := c.deps.Partitions.State(ctx, p.Topic, p.Partition, from)
	if err != nil {
		p.Err = err
		return
	}
	p.LogStart, p.HighWatermark = st.LogStart, st.HighWatermark
	if p.Offset < 0 {
		return
	}
	// Records that retention took away are not waited for any more.
	p.Lag = max(0, int64(st.HighWatermark-max(p.Offset, st.LogStart)))
	switch {
	case p.Lag == 0:
		p.LagTime = 0
	case st.UnreadTimestamp >= 0:
		age := c.deps.Clock.Now().UnixMilli() - st.UnreadTimestamp
		p.LagTime = max(0, time.Duration(age)*time.Millisecond)
	}
}
