package group

import (
	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// commit records how far a group has read.
type commit struct {
	member, instance      string
	epoch                 int32 // or the generation
	classic               bool
	entries               []commitEntry
	maxGroups, maxEntries uint64
}

type commitEntry struct {
	topic       string
	id          [16]byte
	partition   int32
	offset      int64
	leaderEpoch int32
	metadata    string
}

func (*commit) kind() kind { return kindCommit }

func (k *commit) fields(c *codec) {
	c.str(&k.member)
	c.str(&k.instance)
	c.i32(&k.epoch)
	c.boolean(&k.classic)
	list(c, &k.entries, func(c *codec, e *commitEntry) {
		c.str(&e.topic)
		c.id(&e.id)
		c.i32(&e.partition)
		c.i64(&e.offset)
		c.i32(&e.leaderEpoch)
		c.str(&e.metadata)
	})
	c.u64(&k.maxGroups)
	c.u64(&k.maxEntries)
}

func (k *commit) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if o := k.fence(g, cmd.group); o.code != errs.None {
		return o
	}
	if g = m.create(cmd.group, k.maxGroups); g == nil {
		return tooManyGroups(k.maxGroups)
	}
	var holder *member
	if g.protocol == ProtocolNative {
		holder = g.members[k.member]
	}
	o := outcome{}
	for i, e := range k.entries {
		code := g.store(e, cmd.at, k, holder)
		if code == errs.None {
			continue
		}
		if o.partitions == nil {
			o.partitions = make([]errs.Code, len(k.entries))
		}
		o.partitions[i] = code
	}
	return o
}

// fence refuses a commit as a whole.
func (k *commit) fence(g *groupState, name string) outcome {
	if bug.On(bug.CommitOffsetNoFence) {
		return outcome{}
	}
	outsider := k.member == "" && k.instance == "" && (k.epoch < 0 || !k.classic)
	switch {
	case outsider && (g == nil || len(g.members) == 0):
		return outcome{}
	case outsider:
		return refuse(errs.UnknownMemberID, "group %q has members, and only they can commit; stop them first", name)
	case g == nil && k.classic:
		return noSuchGroup(name)
	case g == nil || g.members[k.member] == nil:
		if g != nil && g.instance(k.instance) != nil {
			return fencedInstance(k.instance)
		}
		return unknownMember(name, k.member)
	case k.classic != (g.protocol == ProtocolClassic):
		return refuse(errs.InconsistentGroupProtocol, "group %q speaks the other protocol", name)
	case k.classic:
		return k.fenceClassic(g, name)
	}
	m := g.members[k.member]
	if k.epoch > m.epoch || k.epoch < m.joinEpoch {
		return fencedEpoch(m, k.epoch)
	}
	return outcome{}
}

func (k *commit) fenceClassic(g *groupState, name string) outcome {
	m := g.members[k.member]
	switch {
	case k.instance != "" && m.instance != k.instance:
		return fencedInstance(k.instance)
	case k.epoch != g.generation:
		return illegalGeneration(name, k.epoch, g.generation)
	case g.phase == phaseCompleting:
		return refuse(errs.RebalanceInProgress, "group %q is handing out assignments; sync first", name)
	}
	return outcome{}
}

func fencedEpoch(m *member, epoch int32) outcome {
	return refuse(errs.FencedMemberEpoch, "member %s has epoch %d, not %d; stop working and join again", m.id, m.epoch, epoch)
}

// store keeps one offset. A native member stores only what it holds, from the epoch on under which it was given it.
func (g *groupState) store(e commitEntry, at int64, k *commit, holder *member) errs.Code {
	tp := TopicPartition{e.topic, e.partition}
	if holder != nil {
		if h, ok := holder.held[tp]; !ok || k.epoch < h.since {
			return errs.StaleMemberEpoch
		}
	}
	t := g.offsets[e.topic]
	if t == nil || t.id != e.id {
		t = &topicOffsets{id: e.id, partitions: map[int32]committed{}}
	}
	if _, known := t.partitions[e.partition]; !known && g.offsetCount() >= k.maxEntries {
		return errs.LimitExceeded
	}
	t.partitions[e.partition] = committed{e.offset, e.leaderEpoch, e.metadata, at}
	g.offsets[e.topic] = t
	return errs.None
}

func (g *groupState) offsetCount() uint64 {
	n := 0
	for _, t := range g.offsets {
		n += len(t.partitions)
	}
	return uint64(n)
}

func (g *groupState) forget(tp TopicPartition) {
	t := g.offsets[tp.Topic]
	if t == nil {
		return
	}
	if delete(t.partitions, tp.Partition); len(t.partitions) == 0 {
		delete(g.offsets, tp.Topic)
	}
}

// deleteOffsets removes offsets that no member is interested in.
type deleteOffsets struct {
	partitions []TopicPartition
}

func (*deleteOffsets) kind() kind { return kindDeleteOffsets }

func (d *deleteOffsets) fields(c *codec) { list(c, &d.partitions, (*codec).topicPartition) }

func (d *deleteOffsets) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil {
		return noSuchGroup(cmd.group)
	}
	used, known := g.subscribedTopics()
	if !known {
		return refuse(errs.NonEmptyGroup, "group %q has members whose subscription is not known; stop them first", cmd.group)
	}
	o := outcome{}
	for i, tp := range d.partitions {
		if !used[tp.Topic] {
			g.forget(tp)
			continue
		}
		if o.partitions == nil {
			o.partitions = make([]errs.Code, len(d.partitions))
		}
		o.partitions[i] = errs.GroupSubscribedToTopic
	}
	return o
}

// subscribedTopics is what members want; not known for classic groups of other types than consumers.
func (g *groupState) subscribedTopics() (used map[string]bool, known bool) {
	used = map[string]bool{}
	for _, m := range g.members {
		topics := g.subscription(m)
		if g.protocol == ProtocolClassic {
			var ok bool
			if topics, ok = m.consumerTopics(g.protocolType, g.protocolName); !ok {
				return nil, false
			}
		}
		for _, t := range topics {
			used[t] = true
		}
	}
	return used, true
}

// deleteGroup removes a group without members.
type deleteGroup struct{}

func (*deleteGroup) kind() kind    { return kindDeleteGroup }
func (*deleteGroup) fields(*codec) {}

func (*deleteGroup) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil {
		return noSuchGroup(cmd.group)
	}
	if len(g.members) > 0 {
		return refuse(errs.NonEmptyGroup, "group %q still has members (%d); stop them first", cmd.group, len(g.members))
	}
	delete(m.groups, cmd.group)
	return outcome{}
}

// purge removes offsets that are too old or whose topic is gone, and the group when nothing is left of it.
type purge struct {
	// onlyEmpty: nothing happens if somebody joined since it was decided.
	onlyEmpty bool
	entries   []purgeEntry
}

type purgeEntry struct {
	tp TopicPartition
	id [16]byte
	at int64 // the commit it was decided on; a later one stays
}

func (*purge) kind() kind { return kindPurge }

func (p *purge) fields(c *codec) {
	c.boolean(&p.onlyEmpty)
	list(c, &p.entries, func(c *codec, e *purgeEntry) {
		c.topicPartition(&e.tp)
		c.id(&e.id)
		c.i64(&e.at)
	})
}

func (p *purge) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil || p.onlyEmpty && len(g.members) > 0 {
		return outcome{}
	}
	for _, e := range p.entries {
		t := g.offsets[e.tp.Topic]
		if t == nil || t.id != e.id {
			continue
		}
		if o, ok := t.partitions[e.tp.Partition]; ok && o.at == e.at {
			g.forget(e.tp)
		}
	}
	if len(g.members) == 0 && len(g.offsets) == 0 {
		delete(m.groups, cmd.group)
	}
	return outcome{}
}
