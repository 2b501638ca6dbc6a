package group

import (
	"maps"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Reasons for a rebalance, as the metric's label shows them.
const (
	reasonJoin             = "join"
	reasonSubscription     = "subscription"
	reasonTopics           = "topics"
	reasonLeave            = "leave"
	reasonSession          = "session-expired"
	reasonRebalanceTimeout = "rebalance-timeout"
	reasonSyncTimeout      = "sync-timeout"
)

// topicCounts carries what the proposer knows of topics into the log.
func codeTopicCount(c *codec, t *topicCount) {
	c.str(&t.name)
	codePartitions(c, &t.partitions)
}

// maxTopicPartitions bounds what an assignment takes in memory; no topic has as many.
const maxTopicPartitions = 100_000

func codePartitions(c *codec, n *int32) {
	if c.i32(n); c.reading && (*n < 0 || *n > maxTopicPartitions) {
		*n = 0
		c.fail()
	}
}

// nativeJoin adds a member, or changes the subscription of one that is there.
type nativeJoin struct {
	member, instance, client, host string
	update                         bool // the member must be there already
	// takeover says that the member which has the instance id was not heard of lately.
	takeover                       bool
	sessionMillis, rebalanceMillis int64
	topics                         []string
	regex                          string
	known                          []topicCount // those subscribed topics that exist
	matched                        []string     // by regex
	maxMembers, maxGroups          uint64
}

func (*nativeJoin) kind() kind { return kindNativeJoin }

func (j *nativeJoin) fields(c *codec) {
	c.str(&j.member)
	c.str(&j.instance)
	c.str(&j.client)
	c.str(&j.host)
	c.boolean(&j.update)
	c.boolean(&j.takeover)
	c.i64(&j.sessionMillis)
	c.i64(&j.rebalanceMillis)
	c.strs(&j.topics)
	c.str(&j.regex)
	list(c, &j.known, codeTopicCount)
	c.strs(&j.matched)
	c.u64(&j.maxMembers)
	c.u64(&j.maxGroups)
}

func (j *nativeJoin) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g != nil && len(g.members) > 0 && g.protocol != ProtocolNative {
		return j.admit(g, cmd.group, nil)
	}
	if g == nil || g.members[j.member] == nil {
		if j.update {
			return unknownMember(cmd.group, j.member)
		}
		return j.add(m, cmd)
	}
	return j.change(g, g.members[j.member])
}

// admit checks a newcomer; old is the member that has its instance id.
func (j *nativeJoin) admit(g *groupState, name string, old *member) outcome {
	switch {
	case len(g.members) > 0 && g.protocol != ProtocolNative:
		return refuse(errs.InconsistentGroupProtocol, "group %q has members that speak the classic protocol; stop them first", name)
	case old != nil && !old.released && !j.takeover:
		return refuse(errs.UnreleasedInstanceID, "instance id %q belongs to member %s, which is alive; stop it, or try again in a moment", j.instance, old.id)
	case old == nil && g.members[j.member] == nil && uint64(len(g.members)) >= j.maxMembers:
		return refuse(errs.GroupMaxSizeReached, "group %q is full: its maximum of members is %d", name, j.maxMembers)
	}
	return outcome{}
}

// add makes a new member, in the place of the one that had its instance id if there was one.
func (j *nativeJoin) add(m *machine, cmd *command) outcome {
	g := m.create(cmd.group, j.maxGroups)
	if g == nil {
		return tooManyGroups(j.maxGroups)
	}
	if len(g.members) == 0 && g.protocol != ProtocolNative {
		g.becomeNative()
	}
	old := g.instance(j.instance)
	if o := j.admit(g, cmd.group, old); o.code != errs.None {
		return o
	}
	g.incarnations++
	g.epoch++
	nm := &member{id: j.member, instance: j.instance, incarnation: g.incarnations, epoch: g.epoch, joinEpoch: g.epoch, held: map[TopicPartition]hold{}}
	same := false
	if old != nil {
		same = slices.Equal(old.topics, j.topics) && old.regex == j.regex
		delete(g.members, old.id)
		nm.inherit(old)
	}
	g.members[j.member] = nm
	if news := j.describe(g, nm); same && !news {
		// The partitions that the old process was giving up are free now.
		g.reconcile()
		return outcome{}
	}
	g.retarget()
	return outcome{rebalance: reasonJoin}
}

// inherit takes over what a static member had. It does so under the new epoch, which
// fences the commits of the old process.
func (m *member) inherit(old *member) {
	m.target = old.target
	for tp, h := range old.held {
		if !h.revoking {
			m.held[tp] = hold{since: m.epoch}
		}
	}
}

func (j *nativeJoin) change(g *groupState, m *member) outcome {
	if m.instance != j.instance {
		return refuse(errs.FencedInstanceID, "member %s joined with instance id %q, not %q", m.id, m.instance, j.instance)
	}
	if m.released && !j.update {
		// It said it would be back, and here it is, under the same id.
		g.incarnations++
		g.epoch++
		m.incarnation, m.epoch, m.joinEpoch, m.released = g.incarnations, g.epoch, g.epoch, false
		old := *m
		m.held = map[TopicPartition]hold{}
		m.inherit(&old)
		g.reconcile()
	}
	same := slices.Equal(m.topics, j.topics) && m.regex == j.regex
	if news := j.describe(g, m); same && !news {
		return outcome{}
	}
	g.retarget()
	return outcome{rebalance: reasonSubscription}
}

// describe tells whether it brought news of the topics.
func (j *nativeJoin) describe(g *groupState, m *member) (news bool) {
	m.client, m.host = j.client, j.host
	m.sessionMillis, m.rebalanceMillis = j.sessionMillis, j.rebalanceMillis
	m.topics, m.regex = j.topics, j.regex
	for _, t := range j.known {
		if n, ok := g.topics[t.name]; !ok || n != t.partitions {
			g.topics[t.name], news = t.partitions, true
		}
	}
	if j.regex != "" && !slices.Equal(g.patterns[j.regex], j.matched) {
		g.patterns[j.regex], news = j.matched, true
	}
	return news
}

func (g *groupState) becomeNative() {
	g.protocol = ProtocolNative
	g.protocolType, g.protocolName, g.leader, g.phase, g.initial = "", "", "", phaseEmpty, false
}

func unknownMember(group, id string) outcome {
	return refuse(errs.UnknownMemberID, "group %q has no member %q; join again", group, id)
}

// nativeRelease says which partitions, taken away before, a member has given up.
type nativeRelease struct {
	member   string
	epoch    int32
	released []TopicPartition
}

func (*nativeRelease) kind() kind { return kindNativeRelease }

func (r *nativeRelease) fields(c *codec) {
	c.str(&r.member)
	c.i32(&r.epoch)
	list(c, &r.released, (*codec).topicPartition)
}

func (r *nativeRelease) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil || g.members[r.member] == nil || g.protocol != ProtocolNative {
		return unknownMember(cmd.group, r.member)
	}
	mm := g.members[r.member]
	if mm.epoch != r.epoch {
		// Its assignment changed since: what it said may not be about what it has now.
		return outcome{}
	}
	for _, tp := range r.released {
		if mm.held[tp].revoking {
			delete(mm.held, tp)
		}
	}
	g.reconcile()
	return outcome{}
}

// setTopics replaces what the group knows of its topics.
type setTopics struct {
	known    []topicCount
	patterns map[string][]string
}

func (*setTopics) kind() kind { return kindTopics }

func (s *setTopics) fields(c *codec) {
	list(c, &s.known, codeTopicCount)
	dict(c, &s.patterns, (*codec).str, (*codec).strs)
}

func (s *setTopics) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil || g.protocol != ProtocolNative || len(g.members) == 0 {
		return outcome{}
	}
	topics := make(map[string]int32, len(s.known))
	for _, t := range s.known {
		topics[t.name] = t.partitions
	}
	if maps.Equal(topics, g.topics) && maps.EqualFunc(s.patterns, g.patterns, slices.Equal) {
		return outcome{}
	}
	g.topics, g.patterns = topics, s.patterns
	g.retarget()
	return outcome{rebalance: reasonTopics}
}

// nativeLeave removes a member, or lets go of its instance id.
type nativeLeave struct {
	member, instance string
	release          bool
}

func (*nativeLeave) kind() kind { return kindNativeLeave }

func (l *nativeLeave) fields(c *codec) {
	c.str(&l.member)
	c.str(&l.instance)
	c.boolean(&l.release)
}

func (l *nativeLeave) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil || g.protocol != ProtocolNative || g.members[l.member] == nil {
		if g != nil && g.instance(l.instance) != nil {
			return refuse(errs.FencedInstanceID, "instance id %q belongs to another member now", l.instance)
		}
		return unknownMember(cmd.group, l.member)
	}
	mm := g.members[l.member]
	if l.release && mm.instance != "" {
		mm.released = true
		// The process is gone: nothing is left for it to give up.
		maps.DeleteFunc(mm.held, func(_ TopicPartition, h hold) bool { return h.revoking })
		g.reconcile()
		return outcome{}
	}
	g.remove(cmd.at, mm)
	g.retarget()
	return outcome{rebalance: reasonLeave}
}

// expire removes members whose time is up, of either protocol.
type expire struct {
	reason  string
	members []expiry
}

type expiry struct {
	member      string
	incarnation uint64
	// epoch: only while the member still has it. 0: in any case.
	epoch int32
}

func (*expire) kind() kind { return kindExpire }

func (e *expire) fields(c *codec) {
	c.str(&e.reason)
	list(c, &e.members, func(c *codec, x *expiry) {
		c.str(&x.member)
		c.u64(&x.incarnation)
		c.i32(&x.epoch)
	})
}

func (e *expire) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil {
		return outcome{}
	}
	removed := false
	for _, x := range e.members {
		mm := g.members[x.member]
		if mm == nil || mm.incarnation != x.incarnation || x.epoch != 0 && mm.epoch != x.epoch {
			continue
		}
		g.remove(cmd.at, mm)
		removed = true
	}
	if !removed {
		return outcome{}
	}
	if g.protocol == ProtocolClassic {
		return g.afterClassicRemoval(e.reason)
	}
	g.retarget()
	return outcome{rebalance: e.reason}
}

func (g *groupState) remove(at int64, m *member) {
	delete(g.members, m.id)
	if len(g.members) == 0 {
		g.emptySince = at
	}
}
