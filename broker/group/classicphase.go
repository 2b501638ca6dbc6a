package group

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// prepare begins a join phase.
func (g *groupState) prepare() {
	g.initial = g.phase == phaseEmpty
	g.phase = phasePreparing
	for _, m := range g.members {
		m.joined = false
		m.assignment = nil
	}
}

func (m *member) protocol(name string) *ClassicProtocol {
	for i := range m.protocols {
		if m.protocols[i].Name == name {
			return &m.protocols[i]
		}
	}
	return nil
}

// vote chooses the assignor: each member votes for the first of its list that all support.
func (g *groupState) vote() string {
	votes := map[string]int{}
	for _, m := range g.members {
		for _, p := range m.protocols {
			if g.allSupport(p.Name) {
				votes[p.Name]++
				break
			}
		}
	}
	best := ""
	for _, name := range slices.Sorted(maps.Keys(votes)) {
		if best == "" || votes[name] > votes[best] {
			best = name
		}
	}
	return best
}

func (g *groupState) allSupport(name string) bool {
	for _, m := range g.members {
		if m.protocol(name) == nil {
			return false
		}
	}
	return true
}

// byIncarnation is the order in which the members joined.
func (g *groupState) byIncarnation() []*member {
	all := g.sortedMembers()
	slices.SortFunc(all, func(a, b *member) int {
		if a.incarnation < b.incarnation {
			return -1
		}
		return 1
	})
	return all
}

// classicComplete ends the join phase: all have joined, or their time is up.
type classicComplete struct {
	generation int32 // in which it was decided
}

func (*classicComplete) kind() kind { return kindClassicComplete }

func (k *classicComplete) fields(c *codec) { c.i32(&k.generation) }

func (k *classicComplete) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil || g.protocol != ProtocolClassic || g.phase != phasePreparing || g.generation != k.generation {
		return outcome{}
	}
	leaderJoined := false
	for _, mm := range g.byIncarnation() {
		if !mm.joined && mm.instance == "" {
			g.remove(cmd.at, mm)
		}
	}
	// Static members that are late stay until their session ends, but none of them leads.
	if l := g.members[g.leader]; l != nil {
		leaderJoined = l.joined
	}
	if !leaderJoined && len(g.members) > 0 {
		next := slices.IndexFunc(g.byIncarnation(), func(mm *member) bool { return mm.joined })
		if next < 0 {
			return outcome{} // nobody came back yet; the next deadline tries again
		}
		g.leader = g.byIncarnation()[next].id
	}
	g.generation++
	g.initial = false
	if len(g.members) == 0 {
		g.phase, g.leader, g.protocolName = phaseEmpty, "", ""
		return outcome{}
	}
	g.phase, g.protocolName = phaseCompleting, g.vote()
	return outcome{}
}

// classicSync is the leader's SyncGroup.
type classicSync struct {
	member      string
	generation  int32
	assignments map[string][]byte
}

func (*classicSync) kind() kind { return kindClassicSync }

func (s *classicSync) fields(c *codec) {
	c.str(&s.member)
	c.i32(&s.generation)
	dict(c, &s.assignments, (*codec).str, (*codec).bytes)
}

func (s *classicSync) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	switch {
	case g == nil || g.protocol != ProtocolClassic || g.members[s.member] == nil:
		return unknownMember(cmd.group, s.member)
	case g.generation != s.generation:
		return illegalGeneration(cmd.group, s.generation, g.generation)
	case g.phase == phasePreparing:
		return rebalancing(cmd.group)
	case g.phase == phaseCompleting && s.member == g.leader:
		for id, mm := range g.members {
			mm.assignment = s.assignments[id]
		}
		g.phase = phaseStable
	}
	return outcome{}
}

func rebalancing(name string) outcome {
	return refuse(errs.RebalanceInProgress, "group %q is rebalancing; join again", name)
}

// classicLeave is LeaveGroup.
type classicLeave struct {
	members []MemberIdentity
}

func (*classicLeave) kind() kind { return kindClassicLeave }

func (l *classicLeave) fields(c *codec) {
	list(c, &l.members, func(c *codec, m *MemberIdentity) {
		c.str(&m.MemberID)
		c.str(&m.InstanceID)
	})
}

func (l *classicLeave) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if g == nil || g.protocol != ProtocolClassic {
		return unknownMember(cmd.group, "")
	}
	o := outcome{partitions: make([]errs.Code, len(l.members))}
	removed := false
	for i, id := range l.members {
		mm, code := g.identify(id)
		if o.partitions[i] = code; code != errs.None {
			continue
		}
		g.remove(cmd.at, mm)
		removed = true
	}
	if removed {
		o.rebalance = g.afterClassicRemoval(reasonLeave).rebalance
	}
	return o
}

// identify finds a member by id, by instance id, or by both.
func (g *groupState) identify(id MemberIdentity) (*member, errs.Code) {
	if id.InstanceID == "" {
		if m := g.members[id.MemberID]; m != nil {
			return m, errs.None
		}
		return nil, errs.UnknownMemberID
	}
	m := g.instance(id.InstanceID)
	switch {
	case m == nil:
		return nil, errs.UnknownMemberID
	case id.MemberID != "" && id.MemberID != m.id:
		return nil, errs.FencedInstanceID
	}
	return m, errs.None
}

// afterClassicRemoval begins a join phase if the rest has to share anew.
func (g *groupState) afterClassicRemoval(reason string) outcome {
	if g.members[g.leader] == nil {
		g.leader = ""
		if all := g.byIncarnation(); len(all) > 0 {
			g.leader = all[0].id
		}
	}
	if g.phase != phaseStable && g.phase != phaseCompleting {
		return outcome{}
	}
	g.prepare()
	return outcome{rebalance: reason}
}

// consumerTopics reads the topics from a consumer's subscription (version, topics, ...).
func (m *member) consumerTopics(protocolType, protocolName string) ([]string, bool) {
	p := m.protocol(protocolName)
	if protocolType != "consumer" || p == nil {
		return nil, false
	}
	b := p.Metadata
	if len(b) < 6 {
		return nil, false
	}
	n, b := binary.BigEndian.Uint32(b[2:]), b[6:]
	if uint64(n)*2 > uint64(len(b)) {
		return nil, false
	}
	topics := make([]string, 0, n)
	for range n {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, false
		}
		end := 2 + int(binary.BigEndian.Uint16(b))
		topics, b = append(topics, string(b[2:end])), b[end:]
	}
	return topics, true
}
