package world

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	consumers      = "billing"
	sessionTimeout = 3 * time.Second
)

// member is a consumer in a group: it reads what the coordinator gives it, and commits how far it is.
type member struct {
	*client
	number int // of incarnations
	id     string
	epoch  int32
	owned  map[int32]*owned
}

// owned is a partition that a member works on.
type owned struct {
	op        check.Op // its ownership
	position  record.Offset
	known     bool // position is
	committed record.Offset
}

func (m *member) run(ctx context.Context) {
	for {
		m.join()
		for {
			if !m.rest(ctx, 300*time.Millisecond) {
				m.drop(check.Unknown)
				return
			}
			if !m.beat(ctx) {
				break
			}
			for p := range int32(m.world.options.Partitions) {
				if o := m.owned[p]; o != nil {
					m.work(ctx, p, o)
				}
			}
			if m.rng.IntN(60) == 0 {
				m.leave(ctx)
				break
			}
		}
	}
}

// join begins a new incarnation, which knows nothing of the one before.
func (m *member) join() {
	m.number++
	m.id = fmt.Sprintf("%s-%d", m.name, m.number)
	m.epoch, m.owned = 0, map[int32]*owned{}
}

// beat sends a heartbeat and takes what it says. False: this incarnation is over.
func (m *member) beat(ctx context.Context) bool {
	q := group.HeartbeatRequest{
		Group: consumers, MemberID: m.id, MemberEpoch: m.epoch, ClientID: m.name,
		SessionTimeout: sessionTimeout, RebalanceTimeout: sessionTimeout, Owned: m.assignment(),
	}
	if m.epoch == 0 {
		q.Topics = []string{topicName}
	}
	a := m.askGroup(ctx, q)
	if a == nil {
		return true
	}
	if a.err != nil {
		switch a.code() {
		case errs.UnknownMemberID, errs.FencedMemberEpoch:
			m.world.trace.say(m.name, "member %s is out: %v", m.id, a.err)
			m.drop(check.Unknown)
			return false
		}
		return true
	}
	r := a.group.(group.HeartbeatResponse)
	if r.MemberEpoch < m.epoch {
		return true // a late answer
	}
	if r.MemberEpoch != m.epoch {
		m.world.trace.say(m.name, "member %s epoch %d, generation %d: %v", m.id, r.MemberEpoch, r.Generation, r.Assigned)
	}
	m.epoch = r.MemberEpoch
	m.take(r)
	return true
}

func (m *member) assignment() []group.Assignment {
	var list []int32
	for p := range int32(m.world.options.Partitions) {
		if m.owned[p] != nil {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return []group.Assignment{{Topic: topicName, Partitions: list}}
}

// take gives up what is no longer assigned, and begins what is new.
func (m *member) take(r group.HeartbeatResponse) {
	assigned := map[int32]bool{}
	for _, a := range r.Assigned {
		for _, p := range a.Partitions {
			assigned[p] = true
		}
	}
	for p := range int32(m.world.options.Partitions) {
		o := m.owned[p]
		switch {
		case o != nil && !assigned[p]:
			m.give(p, check.OK)
		case o != nil:
			o.op.Through = max(o.op.Through, r.Generation)
		case assigned[p]:
			op := m.opOf(check.Own, p)
			op.Generation, op.Through = r.Generation, r.Generation
			m.owned[p] = &owned{op: op, committed: -1}
		}
	}
}

func (m *member) give(p int32, how check.Outcome) {
	op := m.owned[p].op
	op.Outcome, op.Complete = how, m.world.stamp()
	m.world.history.Add(op)
	delete(m.owned, p)
}

// drop gives up everything.
func (m *member) drop(how check.Outcome) {
	for p := range int32(m.world.options.Partitions) {
		if m.owned[p] != nil {
			m.give(p, how)
		}
	}
}

func (m *member) leave(ctx context.Context) {
	m.world.trace.say(m.name, "member %s leaves", m.id)
	if m.rng.IntN(2) == 0 { // a crash: the session runs out
		m.drop(check.Unknown)
		return
	}
	m.drop(check.OK)
	m.askGroup(ctx, group.LeaveRequest{Group: consumers, MemberID: m.id, MemberEpoch: m.epoch})
}

// work reads a partition once and commits.
func (m *member) work(ctx context.Context, p int32, o *owned) {
	if !o.known && !m.locate(ctx, p, o) {
		return
	}
	op := m.opOf(check.Poll, p)
	at := m.at(p)
	a := at.ask(ctx, &request{verb: verbFetch, offset: o.position, max: 64 << 10})
	if a == nil || a.err != nil {
		if a != nil && a.code() == errs.OffsetOutOfRange && a.start > o.position {
			m.world.started(m.id, op.Key, a.start)
			o.position = a.start
			m.moved(p, o, check.Seek)
		}
		return
	}
	op.Records = m.world.recordsOf(m.name, a.batches, o.position)
	if n := len(op.Records); n > 0 {
		o.position = record.Offset(op.Records[n-1].Offset) + 1
		op.Epoch, op.Outcome, op.Complete = int32(a.epoch), check.OK, m.world.stamp()
		m.world.history.Add(op)
	}
	if o.position > o.committed {
		m.commit(ctx, p, o)
	}
}

// locate asks where the group is.
func (m *member) locate(ctx context.Context, p int32, o *owned) bool {
	op := m.opOf(check.Committed, p)
	a := m.askGroup(ctx, positionRequest{consumers, p})
	if a == nil || a.err != nil {
		return false
	}
	list := a.group.([]group.CommittedOffset)
	if len(list) != 1 {
		return false
	}
	op.Offset, op.Outcome, op.Complete = int64(list[0].Offset), check.OK, m.world.stamp()
	m.world.history.Add(op)
	o.position, o.committed, o.known = max(0, list[0].Offset), list[0].Offset, true
	m.moved(p, o, check.Assign)
	return true
}

func (m *member) moved(p int32, o *owned, how check.Kind) {
	op := m.opOf(how, p)
	op.Offset, op.Outcome, op.Complete = int64(o.position), check.OK, m.world.stamp()
	m.world.history.Add(op)
}

func (m *member) commit(ctx context.Context, p int32, o *owned) {
	op := m.opOf(check.Commit, p)
	op.Offset = int64(o.position)
	t := m.world.history.Begin(op)
	a := m.askGroup(ctx, group.CommitRequest{Group: consumers, MemberID: m.id, MemberEpoch: m.epoch, Offsets: []group.OffsetCommit{
		{Topic: topicName, Partition: p, Offset: o.position, LeaderEpoch: -1},
	}})
	result := outcome(a)
	if result == check.OK {
		if bad := a.group.([]group.PartitionError); len(bad) > 0 {
			result, a.err = check.Fail, bad[0].Err
			if errs.OutcomeUnknown(a.err) {
				result = check.Unknown
			}
		}
	}
	if result == check.OK {
		o.committed = o.position
	}
	m.done(t, op, result, a)
}

// opOf begins an operation on a partition, in the group. The process is the incarnation.
func (m *member) opOf(kind check.Kind, p int32) check.Op {
	op := m.op(kind)
	op.Process, op.Key.Partition, op.Group = m.id, p, consumers
	return op
}

// at is the member as a client of a partition.
func (m *member) at(p int32) *client {
	c := *m.client
	c.key.Partition = p
	return &c
}

// askGroup asks the coordinator.
func (m *member) askGroup(ctx context.Context, q any) *answer {
	c := m.at(coordPartition)
	a := c.ask(ctx, &request{verb: verbGroup, group: q})
	m.lost = c.lost
	return a
}
