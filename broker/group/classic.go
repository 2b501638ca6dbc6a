package group

import (
	"bytes"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// phase is where a classic group stands.
type phase uint8

const (
	phaseEmpty      phase = 0
	phasePreparing  phase = 1 // gathering joins
	phaseCompleting phase = 2 // waiting for the leader's assignments
	phaseStable     phase = 3
)

func (p phase) String() string {
	switch p {
	case phasePreparing:
		return StatePreparing
	case phaseCompleting:
		return StateCompleting
	case phaseStable:
		return StateStable
	}
	return StateEmpty
}

// joined is what a join came to. The response is made from the state, either
// at once or when the join phase is over.
type joined struct {
	wait       bool
	generation int32
	// keepLeader: the leader came back as a static member whose client does not know
	// SkipAssignment. It is told its old id as the leader's, so that it does not assign.
	keepLeader string
	skip       bool
}

// classicJoin is JoinGroup.
type classicJoin struct {
	member, instance, client, host string
	// fresh: the proposer made the member id, so the group need not know it.
	fresh                          bool
	skipAssignment                 bool
	sessionMillis, rebalanceMillis int64
	protocolType                   string
	protocols                      []ClassicProtocol
	maxMembers, maxGroups          uint64
}

func (*classicJoin) kind() kind { return kindClassicJoin }

func (j *classicJoin) fields(c *codec) {
	c.str(&j.member)
	c.str(&j.instance)
	c.str(&j.client)
	c.str(&j.host)
	c.boolean(&j.fresh)
	c.boolean(&j.skipAssignment)
	c.i64(&j.sessionMillis)
	c.i64(&j.rebalanceMillis)
	c.str(&j.protocolType)
	list(c, &j.protocols, codeProtocol)
	c.u64(&j.maxMembers)
	c.u64(&j.maxGroups)
}

func (j *classicJoin) apply(m *machine, cmd *command) outcome {
	g := m.groups[cmd.group]
	if o := j.admit(g, cmd.group); o.code != errs.None {
		return o
	}
	if !j.fresh {
		return j.rejoin(g, g.members[j.member])
	}
	if g = m.create(cmd.group, j.maxGroups); g == nil {
		return tooManyGroups(j.maxGroups)
	}
	if old := g.instance(j.instance); old != nil {
		return j.replace(g, old)
	}
	return j.add(g)
}

// admit checks what does not depend on the phase.
func (j *classicJoin) admit(g *groupState, name string) outcome {
	switch {
	case len(j.protocols) == 0 || j.protocolType == "":
		return inconsistent(name)
	case g == nil:
		if !j.fresh {
			return unknownMember(name, j.member)
		}
		return outcome{}
	case len(g.members) > 0 && g.protocol != ProtocolClassic:
		return refuse(errs.InconsistentGroupProtocol, "group %q has members that speak the native protocol; stop them first", name)
	}
	byInstance := g.instance(j.instance)
	switch {
	case !j.fresh && byInstance != nil && byInstance.id != j.member:
		return fencedInstance(j.instance)
	case !j.fresh && g.members[j.member] == nil:
		return unknownMember(name, j.member)
	case !j.fresh && j.instance != "" && byInstance == nil:
		return unknownMember(name, j.member)
	case len(g.members) > 0 && !g.supports(j):
		return inconsistent(name)
	case j.fresh && byInstance == nil && uint64(len(g.members)) >= j.maxMembers:
		return refuse(errs.GroupMaxSizeReached, "group %q is full: its maximum of members is %d", name, j.maxMembers)
	}
	return outcome{}
}

func inconsistent(name string) outcome {
	return refuse(errs.InconsistentGroupProtocol, "the members of group %q have no protocol type and assignor in common with this one", name)
}

func fencedInstance(id string) outcome {
	return refuse(errs.FencedInstanceID, "instance id %q belongs to another member now", id)
}

func illegalGeneration(name string, got, want int32) outcome {
	return refuse(errs.IllegalGeneration, "group %q is in generation %d, not %d; join again", name, want, got)
}

// supports tells whether some assignor suits all members and the newcomer. The
// member that the newcomer replaces does not count.
func (g *groupState) supports(j *classicJoin) bool {
	if g.protocolType != j.protocolType {
		return false
	}
	for _, p := range j.protocols {
		all := true
		for _, m := range g.members {
			if m.id != j.member && (j.instance == "" || m.instance != j.instance) && m.protocol(p.Name) == nil {
				all = false
				break
			}
		}
		if all {
			return true
		}
	}
	return false
}

func (j *classicJoin) describe(m *member) {
	m.client, m.host = j.client, j.host
	m.sessionMillis, m.rebalanceMillis = j.sessionMillis, j.rebalanceMillis
	m.protocols = j.protocols
}

func (j *classicJoin) add(g *groupState) outcome {
	if len(g.members) == 0 {
		g.becomeClassic(j.protocolType)
	}
	g.incarnations++
	m := &member{id: j.member, instance: j.instance, incarnation: g.incarnations, held: map[TopicPartition]hold{}}
	g.members[m.id] = m
	if g.leader == "" {
		g.leader = m.id
	}
	return j.join(g, m, reasonJoin)
}

func (g *groupState) becomeClassic(protocolType string) {
	if g.protocol != ProtocolClassic {
		g.topics, g.patterns = map[string]int32{}, map[string][]string{}
	}
	g.protocol, g.protocolType, g.leader, g.phase = ProtocolClassic, protocolType, "", phaseEmpty
}

// join takes part in the join phase, which it begins if need be.
func (j *classicJoin) join(g *groupState, m *member, reason string) outcome {
	j.describe(m)
	o := outcome{join: joined{wait: true, generation: g.generation}}
	if g.phase != phasePreparing {
		g.prepare()
		o.rebalance = reason
	}
	m.joined = true
	return o
}

// rejoin is the join of a member that is there.
func (j *classicJoin) rejoin(g *groupState, m *member) outcome {
	now := outcome{join: joined{generation: g.generation}}
	switch g.phase {
	case phaseCompleting:
		if j.matches(m) {
			return now // it did not get the answer
		}
	case phaseStable:
		if m.id != g.leader && j.matches(m) {
			return now
		}
	}
	return j.join(g, m, reasonSubscription)
}

func (j *classicJoin) matches(m *member) bool {
	return slices.EqualFunc(m.protocols, j.protocols, func(a, b ClassicProtocol) bool {
		return a.Name == b.Name && bytes.Equal(a.Metadata, b.Metadata)
	})
}

// replace puts a static member that came back in the place of its former self.
func (j *classicJoin) replace(g *groupState, old *member) outcome {
	g.incarnations++
	m := *old
	m.id, m.incarnation = j.member, g.incarnations
	delete(g.members, old.id)
	g.members[m.id] = &m
	wasLeader := g.leader == old.id
	if wasLeader {
		g.leader = m.id
	}
	if g.phase != phaseStable {
		return j.join(g, &m, reasonJoin)
	}
	j.describe(&m)
	if g.vote() != g.protocolName {
		return j.join(g, &m, reasonJoin)
	}
	// It keeps its assignment, and nobody else notices.
	o := outcome{join: joined{generation: g.generation}}
	if wasLeader && j.skipAssignment {
		o.join.skip = true
	} else if wasLeader {
		o.join.keepLeader = old.id
	}
	return o
}
