package fakeserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

type groupsService struct {
	pb.UnimplementedGroupsServer
	s *Server
}

type group struct {
	members    map[string]*member
	generation int32
	committed  map[tp]*pb.OffsetCommit
}

type member struct {
	epoch    int32
	topics   []string
	assigned map[tp]bool // told to the member
	owned    map[tp]bool // as the member said
	target   map[tp]bool
}

type tp struct {
	topic string
	n     int32
}

func (s *Server) groupLocked(name string) *group {
	g := s.groups[name]
	if g == nil {
		g = &group{members: make(map[string]*member), committed: make(map[tp]*pb.OffsetCommit)}
		s.groups[name] = g
	}
	return g
}

// Evict throws a member out, as after a lapsed session.
func (s *Server) Evict(name, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groupLocked(name)
	delete(g.members, id)
	s.rebalanceLocked(g)
}

// Members lists the members of a group.
func (s *Server) Members(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.groupLocked(name).members))
}

// Committed is the committed offset of a group, -1 where there is none.
func (s *Server) Committed(name, topic string, n int32) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.groupLocked(name).committed[tp{topic, n}]; c != nil {
		return c.GetOffset()
	}
	return -1
}

// rebalance spreads the partitions over the members by their order.
func (s *Server) rebalanceLocked(g *group) {
	g.generation++
	ids := slices.Sorted(maps.Keys(g.members))
	for _, m := range g.members {
		m.target = make(map[tp]bool)
	}
	for name, top := range s.topics {
		var takers []*member
		for _, id := range ids {
			if slices.Contains(g.members[id].topics, name) {
				takers = append(takers, g.members[id])
			}
		}
		for n := range top.parts {
			if len(takers) > 0 {
				takers[n%len(takers)].target[tp{name, int32(n)}] = true
			}
		}
	}
	s.touchLocked()
}

// settle moves each member towards its target: first it loses, and only once
// the loser has said so somebody else gets.
func (g *group) settle() (changed bool) {
	for _, m := range g.members {
		for p := range m.assigned {
			if !m.target[p] {
				delete(m.assigned, p)
				m.epoch++
				changed = true
			}
		}
	}
	for _, m := range g.members {
		for p := range m.target {
			if !m.assigned[p] && !g.held(p, m) {
				m.assigned[p] = true
				m.epoch++
				changed = true
			}
		}
	}
	return changed
}

func (g *group) held(p tp, but *member) bool {
	for _, m := range g.members {
		if m != but && (m.assigned[p] || m.owned[p]) {
			return true
		}
	}
	return false
}

func (gs *groupsService) Heartbeat(ctx context.Context, req *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
	s := gs.s
	wait := time.NewTimer(time.Duration(req.GetMaxWaitMs()) * time.Millisecond)
	defer wait.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enterLocked("Heartbeat"); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err() // given up: it must not join behind its sender's back
	}
	g := s.groupLocked(req.GetGroup())
	m := g.members[req.GetMemberId()]
	if m == nil {
		if req.GetMemberEpoch() != 0 {
			return nil, Status(Error(errs.UnknownMemberID, "who are you?"))
		}
		m = &member{epoch: 1, topics: req.GetTopics(), assigned: make(map[tp]bool)}
		g.members[req.GetMemberId()] = m
		s.rebalanceLocked(g)
	}
	m.owned = make(map[tp]bool)
	for _, a := range req.GetOwned() {
		for _, n := range a.GetPartitions() {
			m.owned[tp{a.GetTopic(), n}] = true
		}
	}
	s.touchLocked()
	for {
		if g.members[req.GetMemberId()] != m {
			return nil, Status(Error(errs.UnknownMemberID, "evicted"))
		}
		if g.settle() {
			s.touchLocked()
		}
		if !s.silent && (m.epoch != req.GetMemberEpoch() || req.GetMaxWaitMs() == 0) {
			s.beat = clock.System().Now()
			return m.answer(g), nil
		}
		changed, stop := s.changed, s.group.Context().Done()
		s.mu.Unlock()
		select {
		case <-changed:
		case <-wait.C:
			s.mu.Lock()
			if s.silent {
				continue
			}
			s.beat = clock.System().Now()
			return m.answer(g), nil
		case <-stop:
			s.mu.Lock()
			return nil, errCut
		case <-ctx.Done():
			s.mu.Lock()
			return nil, ctx.Err()
		}
		s.mu.Lock()
	}
}

func (m *member) answer(g *group) *pb.HeartbeatResponse {
	res := &pb.HeartbeatResponse{MemberEpoch: m.epoch, Generation: g.generation, HeartbeatIntervalMs: 50}
	byTopic := make(map[string][]int32)
	for p := range m.assigned {
		byTopic[p.topic] = append(byTopic[p.topic], p.n)
	}
	for _, name := range slices.Sorted(maps.Keys(byTopic)) {
		slices.Sort(byTopic[name])
		res.Assigned = append(res.Assigned, &pb.Assignment{Topic: name, Partitions: byTopic[name]})
	}
	return res
}

func (gs *groupsService) LeaveGroup(_ context.Context, req *pb.LeaveGroupRequest) (*pb.LeaveGroupResponse, error) {
	s := gs.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["LeaveGroup"]++
	g := s.groupLocked(req.GetGroup())
	delete(g.members, req.GetMemberId())
	s.rebalanceLocked(g)
	return &pb.LeaveGroupResponse{}, nil
}

func (gs *groupsService) CommitOffsets(_ context.Context, req *pb.CommitOffsetsRequest) (*pb.CommitOffsetsResponse, error) {
	s := gs.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enterLocked("CommitOffsets"); err != nil {
		return nil, err
	}
	g := s.groupLocked(req.GetGroup())
	m := g.members[req.GetMemberId()]
	switch {
	case req.GetMemberId() == "" && len(g.members) > 0:
		return nil, Status(Error(errs.UnknownMemberID, "the group has members"))
	case req.GetMemberId() != "" && m == nil:
		return nil, Status(Error(errs.UnknownMemberID, "who are you?"))
	case m != nil && req.GetMemberEpoch() > m.epoch:
		return nil, Status(Error(errs.StaleMemberEpoch, fmt.Sprintf("your epoch is %d", m.epoch)))
	}
	for _, c := range req.GetOffsets() {
		g.committed[tp{c.GetTopic(), c.GetPartition()}] = c
	}
	return &pb.CommitOffsetsResponse{}, nil
}

func (gs *groupsService) FetchOffsets(_ context.Context, req *pb.FetchOffsetsRequest) (*pb.FetchOffsetsResponse, error) {
	s := gs.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enterLocked("FetchOffsets"); err != nil {
		return nil, err
	}
	g := s.groupLocked(req.GetGroup())
	res := &pb.FetchOffsetsResponse{}
	want := req.GetPartitions()
	if len(want) == 0 {
		for p := range g.committed {
			want = append(want, &pb.TopicPartition{Topic: p.topic, Partition: p.n})
		}
	}
	for _, w := range want {
		c := g.committed[tp{w.GetTopic(), w.GetPartition()}]
		if c == nil {
			c = &pb.OffsetCommit{Topic: w.GetTopic(), Partition: w.GetPartition(), Offset: -1, LeaderEpoch: -1}
		}
		res.Results = append(res.Results, &pb.FetchOffsetsResponse_Result{Commit: c})
	}
	return res, nil
}

func (gs *groupsService) ListGroups(context.Context, *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	s := gs.s
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &pb.ListGroupsResponse{}
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		res.Groups = append(res.Groups, &pb.ListGroupsResponse_Group{Name: name, State: "stable", Protocol: "native", Members: int32(len(s.groups[name].members)), CoordinatorId: brokerID})
	}
	return res, nil
}

func (gs *groupsService) DescribeGroup(_ context.Context, req *pb.DescribeGroupRequest) (*pb.DescribeGroupResponse, error) {
	s := gs.s
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[req.GetGroup()]
	if g == nil {
		return nil, Status(Error(errs.GroupIDNotFound, "no such group"))
	}
	res := &pb.DescribeGroupResponse{Name: req.GetGroup(), State: "empty", Protocol: "native", Generation: g.generation, CoordinatorId: brokerID}
	for p, c := range g.committed {
		if top := s.topics[p.topic]; top != nil {
			part := top.parts[p.n]
			res.Partitions = append(res.Partitions, &pb.DescribeGroupResponse_Partition{Commit: c, LogStartOffset: part.start, HighWatermark: part.end, Lag: part.end - c.GetOffset()})
		}
	}
	return res, nil
}

func (gs *groupsService) DeleteGroup(_ context.Context, req *pb.DeleteGroupRequest) (*pb.DeleteGroupResponse, error) {
	s := gs.s
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, req.GetGroup())
	return &pb.DeleteGroupResponse{}, nil
}

func (gs *groupsService) DeleteOffsets(_ context.Context, req *pb.DeleteOffsetsRequest) (*pb.DeleteOffsetsResponse, error) {
	s := gs.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range req.GetPartitions() {
		delete(s.groupLocked(req.GetGroup()).committed, tp{p.GetTopic(), p.GetPartition()})
	}
	return &pb.DeleteOffsetsResponse{}, nil
}
