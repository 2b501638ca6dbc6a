package group

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// snapshotVersion is the first byte of a snapshot.
const snapshotVersion = 1

// machine is the replicated state of one shard: a function of the commands that were
// applied. It has no lock; its owner does.
type machine struct {
	groups map[string]*groupState
}

func newMachine() *machine { return &machine{groups: map[string]*groupState{}} }

// apply executes a command. One that is not understood changes nothing, on every replica alike.
func (m *machine) apply(b []byte) (cmd *command, o outcome) {
	cmd, err := decodeCommand(b)
	if err != nil {
		return nil, refuse(errs.UnsupportedVersion, "%v", err)
	}
	return cmd, cmd.body.apply(m, cmd)
}

// create returns the group, made if need be, or nil when there are too many.
func (m *machine) create(name string, maxGroups uint64) *groupState {
	g := m.groups[name]
	if g == nil && uint64(len(m.groups)) < maxGroups {
		g = newGroup()
		m.groups[name] = g
	}
	return g
}

func tooManyGroups(limit uint64) outcome {
	return refuse(errs.LimitExceeded, "this coordinator has %d groups already; delete some or raise the limit", limit)
}

func noSuchGroup(name string) outcome {
	return refuse(errs.GroupIDNotFound, "group %q does not exist", name)
}

func (m *machine) snapshot() []byte {
	c := &codec{}
	version := uint8(snapshotVersion)
	c.u8(&version)
	dict(c, &m.groups, (*codec).str, codeGroup)
	return c.b
}

func (m *machine) restore(b []byte) error {
	if b == nil { // the state before the first command
		m.groups = newMachine().groups
		return nil
	}
	c := &codec{b: b, reading: true}
	var version uint8
	if c.u8(&version); c.err == nil && version != snapshotVersion {
		return fmt.Errorf("version %d of a group snapshot is not known here; upgrade the broker", version)
	}
	var groups map[string]*groupState
	dict(c, &groups, (*codec).str, codeGroup)
	if err := c.done(); err != nil {
		return fmt.Errorf("group snapshot: %w", err)
	}
	m.groups = groups
	return nil
}

// hash is equal for replicas that agree.
func (m *machine) hash() [32]byte { return sha256.Sum256(m.snapshot()) }

// groupState is one group.
type groupState struct {
	protocol     string // ProtocolNone, ProtocolNative or ProtocolClassic: of the members, or of the last ones
	generation   int32
	epoch        int32  // the last member epoch that was handed out
	incarnations uint64 // members that ever joined
	emptySince   int64  // ms; when the last member left; 0 for a group that never had any
	members      map[string]*member
	offsets      map[string]*topicOffsets

	// Native: what is known of the subscribed topics.
	topics   map[string]int32    // partitions of each topic that exists
	patterns map[string][]string // regex -> topics that match, sorted

	// Classic.
	protocolType string
	protocolName string
	leader       string
	phase        phase
	initial      bool // this join phase began with an empty group
}

// member is one member of a group.
type member struct {
	id, instance, client, host string
	// incarnation tells a member from an earlier one with the same id, in commands decided before it joined.
	incarnation      uint64
	sessionMillis    int64
	rebalanceMillis  int64
	protocols        []ClassicProtocol // classic
	assignment       []byte            // classic
	joined           bool              // classic: in the current join phase
	released         bool              // native: a static member that said it will be back
	epoch, joinEpoch int32
	topics           []string
	regex            string
	target           []TopicPartition // what it shall have in the end; sorted
	held             map[TopicPartition]hold
}

// hold is a partition that nobody else may have.
type hold struct {
	since    int32 // member epoch under which it was given
	revoking bool  // taken away, not yet given up
}

type topicOffsets struct {
	id         [16]byte // of the topic: a topic made anew starts without offsets
	partitions map[int32]committed
}

type committed struct {
	offset      int64
	leaderEpoch int32
	metadata    string
	at          int64 // ms
}

func newGroup() *groupState {
	return &groupState{
		members: map[string]*member{}, offsets: map[string]*topicOffsets{},
		topics: map[string]int32{}, patterns: map[string][]string{},
	}
}

// sortedMembers is in the order of ids, which is the same on every replica.
func (g *groupState) sortedMembers() []*member {
	all := make([]*member, 0, len(g.members))
	for _, id := range slices.Sorted(maps.Keys(g.members)) {
		all = append(all, g.members[id])
	}
	return all
}

// instance finds a static member.
func (g *groupState) instance(id string) *member {
	if id == "" {
		return nil
	}
	for _, m := range g.members {
		if m.instance == id {
			return m
		}
	}
	return nil
}

func (g *groupState) state() string {
	switch {
	case len(g.members) == 0:
		return StateEmpty
	case g.protocol == ProtocolClassic:
		return g.phase.String()
	case g.reconciled():
		return StateStable
	}
	return StateReconciling
}

// codeGroup describes a group in a snapshot.
func codeGroup(c *codec, v **groupState) {
	if c.reading {
		*v = newGroup()
	}
	g := *v
	c.str(&g.protocol)
	c.i32(&g.generation)
	c.i32(&g.epoch)
	c.u64(&g.incarnations)
	c.i64(&g.emptySince)
	dict(c, &g.members, (*codec).str, codeMember)
	dict(c, &g.offsets, (*codec).str, codeOffsets)
	dict(c, &g.topics, (*codec).str, codePartitions)
	dict(c, &g.patterns, (*codec).str, (*codec).strs)
	c.str(&g.protocolType)
	c.str(&g.protocolName)
	c.str(&g.leader)
	c.u8((*uint8)(&g.phase))
	c.boolean(&g.initial)
}

func codeMember(c *codec, v **member) {
	if c.reading {
		*v = &member{held: map[TopicPartition]hold{}}
	}
	m := *v
	c.str(&m.id)
	c.str(&m.instance)
	c.str(&m.client)
	c.str(&m.host)
	c.u64(&m.incarnation)
	c.i64(&m.sessionMillis)
	c.i64(&m.rebalanceMillis)
	list(c, &m.protocols, codeProtocol)
	c.bytes(&m.assignment)
	c.boolean(&m.joined)
	c.boolean(&m.released)
	c.i32(&m.epoch)
	c.i32(&m.joinEpoch)
	c.strs(&m.topics)
	c.str(&m.regex)
	list(c, &m.target, (*codec).topicPartition)
	codeHeld(c, m)
}

func codeHeld(c *codec, m *member) {
	type entry struct {
		tp TopicPartition
		h  hold
	}
	var all []entry
	for _, tp := range sortedKeys(m.held) {
		all = append(all, entry{tp, m.held[tp]})
	}
	list(c, &all, func(c *codec, e *entry) {
		c.topicPartition(&e.tp)
		c.i32(&e.h.since)
		c.boolean(&e.h.revoking)
	})
	for _, e := range all {
		m.held[e.tp] = e.h
	}
}

func codeProtocol(c *codec, p *ClassicProtocol) {
	c.str(&p.Name)
	c.bytes(&p.Metadata)
}

func codeOffsets(c *codec, v **topicOffsets) {
	if c.reading {
		*v = &topicOffsets{}
	}
	t := *v
	c.id(&t.id)
	dict(c, &t.partitions, (*codec).i32, func(c *codec, o *committed) {
		c.i64(&o.offset)
		c.i32(&o.leaderEpoch)
		c.str(&o.metadata)
		c.i64(&o.at)
	})
}

// compare orders partitions by topic, then number.
func (tp TopicPartition) compare(o TopicPartition) int {
	if tp.Topic != o.Topic {
		if tp.Topic < o.Topic {
			return -1
		}
		return 1
	}
	return int(tp.Partition) - int(o.Partition)
}

func sortedKeys[V any](m map[TopicPartition]V) []TopicPartition {
	return slices.SortedFunc(maps.Keys(m), TopicPartition.compare)
}
