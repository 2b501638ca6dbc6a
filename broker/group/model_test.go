package group

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// TestAssignIsBalancedAndSticky checks assign against its promises on random input.
func TestAssignIsBalancedAndSticky(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		topics := make([]topicCount, rapid.IntRange(1, 6).Draw(t, "topics"))
		for i := range topics {
			topics[i] = topicCount{fmt.Sprintf("t%d", i), int32(rapid.IntRange(0, 12).Draw(t, "partitions"))}
		}
		members := make([]assignee, rapid.IntRange(1, 8).Draw(t, "members"))
		for i := range members {
			for n := range topics {
				if rapid.IntRange(0, 2).Draw(t, "subscribes") > 0 {
					members[i].topics = append(members[i].topics, n)
				}
			}
		}
		before := assign(members, topics)
		checkAssignment(t, members, topics, before)
		for i := range members {
			members[i].prev = before[i]
		}
		if again := assign(members, topics); !slices.EqualFunc(again, before, slices.Equal) {
			t.Fatalf("a balanced assignment was changed: %v, then %v", before, again)
		}
		// One member goes: the others keep all they had.
		gone := rapid.IntRange(0, len(members)-1).Draw(t, "gone")
		rest := slices.Delete(slices.Clone(members), gone, gone+1)
		if len(rest) == 0 {
			return
		}
		after := assign(rest, topics)
		checkAssignment(t, rest, topics, after)
		if uniform(members, len(topics)) {
			for i := range rest {
				for _, tp := range rest[i].prev {
					if !slices.Contains(after[i], tp) {
						t.Fatalf("member %d lost %v though another one went: %v, then %v", i, tp, before, after)
					}
				}
			}
		}
	})
}

func uniform(members []assignee, topics int) bool {
	return !slices.ContainsFunc(members, func(a assignee) bool { return len(a.topics) != topics })
}

func checkAssignment(t *rapid.T, members []assignee, topics []topicCount, got [][]TopicPartition) {
	owner := map[TopicPartition]int{}
	for m, all := range got {
		for _, tp := range all {
			if _, twice := owner[tp]; twice {
				t.Fatalf("%v was given twice: %v", tp, got)
			}
			owner[tp] = m
			n := slices.IndexFunc(topics, func(c topicCount) bool { return c.name == tp.Topic })
			if !slices.Contains(members[m].topics, n) || tp.Partition >= topics[n].partitions {
				t.Fatalf("member %d got %v, which it does not want or which does not exist", m, tp)
			}
		}
	}
	for n, topic := range topics {
		wanted := slices.ContainsFunc(members, func(a assignee) bool { return slices.Contains(a.topics, n) })
		for p := range topic.partitions {
			if _, ok := owner[TopicPartition{topic.name, p}]; ok != wanted {
				t.Fatalf("%s:%d: wanted %v, given %v", topic.name, p, wanted, ok)
			}
		}
	}
	for u := range members {
		for v := range members {
			if len(got[u]) < len(got[v])+2 {
				continue
			}
			for _, tp := range got[u] {
				n := slices.IndexFunc(topics, func(c topicCount) bool { return c.name == tp.Topic })
				if slices.Contains(members[v].topics, n) {
					t.Fatalf("members %d and %d have %d and %d, and %v could move", u, v, len(got[u]), len(got[v]), tp)
				}
			}
		}
	}
}

// modelMember is a client that obeys the protocol, on a network that loses and repeats.
type modelMember struct {
	id     string
	epoch  int32
	work   map[TopicPartition]bool // what it works on now
	wanted map[TopicPartition]bool // what the newest answer said
	// deadline is when it must stop by itself: a session since its last answered request began.
	deadline time.Time
}

const modelSession = 6 * time.Second

// TestNoTwoOwners runs random members, expiries, failovers and delayed requests, and
// checks after every step that no two members work on one partition, and that commits
// of members that do not hold a partition are refused. In the end everybody
// behaves, and everything must be assigned and balanced.
func TestNoTwoOwners(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var failure any // rapid fails by a panic, which must not leave the bubble
		synctest.Test(t, func(t *testing.T) {
			defer func() { failure = recover() }()
			runModel(t, rt)
		})
		if failure != nil {
			panic(failure)
		}
	})
}

type model struct {
	*world
	rt      *rapid.T
	members map[string]*modelMember
	late    []HeartbeatRequest // sent again some time
	commits map[TopicPartition]record.Offset
	next    int
}

func runModel(t *testing.T, rt *rapid.T) {
	m := &model{
		world: newWorld(t, Config{}), rt: rt,
		members: map[string]*modelMember{}, commits: map[TopicPartition]record.Offset{},
	}
	defer m.stop()
	m.topics.set("a", 5)
	m.topics.set("b", 3)
	steps := rapid.IntRange(10, 60).Draw(rt, "steps")
	for range steps {
		m.step()
		m.check()
	}
	m.converge()
	m.checkReplicas()
}

func (m *model) pick() *modelMember {
	ids := slices.Sorted(maps.Keys(m.members))
	if len(ids) == 0 {
		return nil
	}
	return m.members[rapid.SampledFrom(ids).Draw(m.rt, "member")]
}

func (m *model) step() {
	what := rapid.SampledFrom([]string{"join", "beat", "beat", "beat", "stop", "stop", "late", "advance", "leave", "crash", "topics", "failover", "commit", "commit", "zombie"}).Draw(m.rt, "step")
	mm := m.pick()
	if what != "join" && what != "advance" && what != "failover" && what != "topics" && mm == nil {
		return
	}
	switch what {
	case "join":
		if len(m.members) < 5 {
			m.next++
			mm = &modelMember{id: fmt.Sprintf("m%d", m.next)}
			m.members[mm.id] = mm
			m.beat(mm, rapid.Bool().Draw(m.rt, "answer lost"))
		}
	case "beat":
		m.beat(mm, rapid.IntRange(0, 4).Draw(m.rt, "answer lost") == 0)
	case "stop": // it stops working on one partition that was taken away, commits and all
		for _, tp := range slices.SortedFunc(maps.Keys(mm.work), TopicPartition.compare) {
			if !mm.wanted[tp] {
				delete(mm.work, tp)
				break
			}
		}
	case "late":
		if len(m.late) > 0 {
			r := rapid.SampledFrom(m.late).Draw(m.rt, "late")
			m.c.Heartbeat(m.ctx, r) // its answer reaches nobody
		}
	case "advance":
		<-time.After(time.Duration(rapid.IntRange(1, 4000).Draw(m.rt, "ms")) * time.Millisecond)
	case "leave":
		m.c.Leave(m.ctx, LeaveRequest{Group: "g", MemberID: mm.id})
		delete(m.members, mm.id)
	case "crash":
		delete(m.members, mm.id)
	case "topics":
		a, _ := m.topics.Topic("a")
		m.topics.set("a", min(a.Partitions+1, 9))
		m.c.TopicsChanged()
	case "failover":
		m.sg.failover()
	case "commit":
		m.commitAs(mm)
	case "zombie": // somebody without the right to, with an epoch from the past
		m.commitStale(mm)
	}
	synctest.Wait()
	m.fence()
}

// fence makes members stop whose session ended, as the contract asks of them.
func (m *model) fence() {
	for _, mm := range m.members {
		if !time.Now().Before(mm.deadline) {
			mm.epoch, mm.work, mm.wanted = 0, nil, nil
		}
	}
}

func (m *model) beat(mm *modelMember, lost bool) {
	r := HeartbeatRequest{
		Group: "g", MemberID: mm.id, MemberEpoch: mm.epoch, SessionTimeout: modelSession, RebalanceTimeout: 5 * time.Second,
		Topics: []string{"a", "b"}, Owned: gather(slices.SortedFunc(maps.Keys(mm.work), TopicPartition.compare)),
	}
	m.late = append(m.late, r)
	began := time.Now()
	resp, err := m.c.Heartbeat(m.ctx, r)
	if lost {
		return
	}
	if err != nil {
		if code := errs.CodeOf(err); code == errs.UnknownMemberID || code == errs.FencedMemberEpoch {
			mm.epoch, mm.work, mm.wanted = 0, nil, nil
		}
		return
	}
	mm.deadline = began.Add(modelSession)
	if resp.MemberEpoch < mm.epoch {
		return
	}
	mm.epoch, mm.wanted = resp.MemberEpoch, map[TopicPartition]bool{}
	if mm.work == nil {
		mm.work = map[TopicPartition]bool{}
	}
	for _, a := range resp.Assigned {
		for _, p := range a.Partitions {
			tp := TopicPartition{a.Topic, p}
			mm.wanted[tp], mm.work[tp] = true, true
		}
	}
}

// check: no two members work on the same partition. A member that was removed because
// it took too long to give something up does not know it yet; it counts for nothing, since its commits are fenced.
func (m *model) check() {
	s := m.shard()
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.machine.groups["g"]
	if g == nil {
		return
	}
	owner := map[TopicPartition]string{}
	held := map[TopicPartition]string{}
	for _, id := range slices.Sorted(maps.Keys(m.members)) {
		mm := m.members[id]
		state := g.members[id]
		if state == nil || mm.epoch < state.joinEpoch {
			continue
		}
		for tp := range mm.work {
			if other, ok := owner[tp]; ok {
				m.rt.Fatalf("%s and %s both work on %v", other, id, tp)
			}
			owner[tp] = id
			if _, ok := state.held[tp]; !ok {
				m.rt.Fatalf("%s works on %v, and the coordinator does not know", id, tp)
			}
		}
		for tp := range state.held {
			if other, ok := held[tp]; ok {
				m.rt.Fatalf("%s and %s both hold %v", other, id, tp)
			}
			held[tp] = id
		}
	}
}

// commitAs commits a record more of everything the member works on.
func (m *model) commitAs(mm *modelMember) {
	r := CommitRequest{Group: "g", MemberID: mm.id, MemberEpoch: mm.epoch}
	for tp := range mm.work {
		r.Offsets = append(r.Offsets, OffsetCommit{Topic: tp.Topic, Partition: tp.Partition, Offset: m.commits[tp] + 1, LeaderEpoch: -1})
	}
	bad, err := m.c.CommitOffsets(m.ctx, r)
	if err != nil || len(mm.work) == 0 {
		return
	}
	if len(bad) > 0 {
		m.rt.Fatalf("%s works on %v and could not commit: %v", mm.id, mm.work, bad)
	}
	for tp := range mm.work {
		m.commits[tp]++
	}
}

// commitStale tries to move offsets back: of partitions that the member does not work on, or with an old epoch.
func (m *model) commitStale(mm *modelMember) {
	epoch := int32(rapid.IntRange(0, int(mm.epoch)).Draw(m.rt, "epoch"))
	r := CommitRequest{Group: "g", MemberID: mm.id, MemberEpoch: epoch}
	for tp := range m.commits {
		if !mm.work[tp] && !mm.wanted[tp] {
			r.Offsets = append(r.Offsets, OffsetCommit{Topic: tp.Topic, Partition: tp.Partition, Offset: 0, LeaderEpoch: -1})
		}
	}
	m.c.CommitOffsets(m.ctx, r)
	m.checkCommits(mm)
}

func (m *model) checkCommits(who *modelMember) {
	all, err := m.c.FetchOffsets(m.ctx, "g", nil)
	if err != nil {
		m.rt.Fatal(err)
	}
	s := m.shard()
	for _, o := range all {
		tp := TopicPartition{o.Topic, o.Partition}
		if o.Offset >= m.commits[tp] {
			continue
		}
		// The member may hold it without knowing: its answer was lost. Then it owns it.
		s.mu.Lock()
		g := s.machine.groups["g"]
		_, holds := g.members[who.id].held[tp]
		s.mu.Unlock()
		if !holds {
			m.rt.Fatalf("%v went back from %d to %d through %s", tp, m.commits[tp], o.Offset, who.id)
		}
		m.commits[tp] = o.Offset
	}
}

// converge lets everybody behave, until the group is stable.
func (m *model) converge() {
	for range 40 {
		for _, id := range slices.Sorted(maps.Keys(m.members)) {
			mm := m.members[id]
			maps.DeleteFunc(mm.work, func(tp TopicPartition, _ bool) bool { return !mm.wanted[tp] })
			m.beat(mm, false)
			synctest.Wait()
			m.fence()
			m.check()
		}
		<-time.After(time.Second)
	}
	if len(m.members) == 0 {
		return
	}
	d, err := m.c.Describe(context.Background(), "g")
	if err != nil {
		m.rt.Fatal(err)
	}
	if d.State != StateStable {
		m.rt.Fatalf("the group did not become stable: %+v", d)
	}
	given, low, high := 0, 1000, 0
	for _, mm := range m.members {
		given += len(mm.work)
		low, high = min(low, len(mm.work)), max(high, len(mm.work))
	}
	a, _ := m.topics.Topic("a")
	if want := int(a.Partitions) + 3; given != want || high-low > 1 {
		var text []string
		for _, id := range slices.Sorted(maps.Keys(m.members)) {
			text = append(text, fmt.Sprintf("%s=%v", id, m.members[id].work))
		}
		m.rt.Fatalf("%d of %d partitions are worked on: %s", given, want, strings.Join(text, " "))
	}
}
