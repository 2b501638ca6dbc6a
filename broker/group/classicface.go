package group

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// joinGroup adds or renews a classic member, and answers when the join phase is over.
func (s *shard) joinGroup(ctx context.Context, r JoinRequest) (JoinResponse, error) {
	if err := s.checkJoin(r); err != nil {
		return JoinResponse{MemberID: r.MemberID}, err
	}
	if err := s.lead(); err != nil {
		return JoinResponse{MemberID: r.MemberID}, err
	}
	j, err := s.planClassicJoin(r)
	if err != nil {
		id := r.MemberID
		if j != nil {
			id = j.member // MEMBER_ID_REQUIRED says which
		}
		s.mu.Unlock()
		return JoinResponse{MemberID: id}, err
	}
	s.mu.Unlock()
	o, err := s.propose(ctx, r.Group, j)
	if err != nil {
		return JoinResponse{MemberID: r.MemberID}, err
	}
	if err := s.lead(); err != nil {
		return JoinResponse{MemberID: r.MemberID}, err
	}
	defer s.mu.Unlock()
	return s.awaitJoin(ctx, r, j.member, o.join)
}

func (s *shard) checkJoin(r JoinRequest) error {
	if err := checkGroup(r.Group); err != nil {
		return err
	}
	if err := s.cfg.checkSession(r.SessionTimeout); err != nil {
		return err
	}
	if err := checkIDs(r.MemberID, r.InstanceID, r.ClientID, r.ClientHost, r.ProtocolType); err != nil {
		return err
	}
	if r.RebalanceTimeout < 0 || len(r.Protocols) > maxProtocols {
		return errs.Errorf(errs.InvalidRequest, "rebalance timeout %v, %d protocols: at least 0 and at most %d are allowed", r.RebalanceTimeout, len(r.Protocols), maxProtocols)
	}
	size := 0
	for _, p := range r.Protocols {
		if err := checkIDs(p.Name); err != nil {
			return err
		}
		size += len(p.Metadata)
	}
	if size > maxMetadataBytes {
		return errs.Errorf(errs.InvalidRequest, "%d bytes of protocol metadata are more than the %d allowed", size, maxMetadataBytes)
	}
	return nil
}

// planClassicJoin makes the command, and the member id where the member has none. With
// MEMBER_ID_REQUIRED only the command's member id means anything.
func (s *shard) planClassicJoin(r JoinRequest) (*classicJoin, error) {
	if r.RebalanceTimeout == 0 {
		r.RebalanceTimeout = r.SessionTimeout
	}
	r.RebalanceTimeout = min(r.RebalanceTimeout, s.cfg.MaxSessionTimeout)
	j := &classicJoin{
		member: r.MemberID, instance: r.InstanceID, client: r.ClientID, host: r.ClientHost,
		fresh: r.MemberID == "", skipAssignment: r.SkipAssignment,
		sessionMillis: r.SessionTimeout.Milliseconds(), rebalanceMillis: r.RebalanceTimeout.Milliseconds(),
		protocolType: r.ProtocolType, protocols: r.Protocols,
		maxMembers: uint64(s.cfg.MaxGroupSize), maxGroups: uint64(s.cfg.MaxGroups),
	}
	g := s.machine.groups[r.Group]
	if j.fresh {
		j.member = newMemberID(r)
	}
	if lg := s.live[r.Group]; lg != nil && r.InstanceID == "" {
		if _, ok := lg.pending[r.MemberID]; ok {
			j.fresh = true
		}
	}
	if o := j.admit(g, r.Group); o.code != errs.None {
		return nil, o.err() // without a write for every attempt
	}
	if r.MemberID == "" && r.InstanceID == "" && r.RequireMemberID {
		if err := s.handOut(r.Group, j.member, g, r.SessionTimeout); err != nil {
			return nil, err
		}
		return j, errs.New(errs.MemberIDRequired, "join again with the member id in this answer")
	}
	if lg := s.live[r.Group]; lg != nil {
		delete(lg.pending, j.member)
	}
	if _, m, lm := s.find(r.Group, j.member); m != nil {
		s.renew(m, lm)
	}
	return j, nil
}

// newMemberID is recognisable and cannot be guessed.
func newMemberID(r JoinRequest) string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails
	}
	prefix := r.ClientID
	if r.InstanceID != "" {
		prefix = r.InstanceID
	}
	if limit := maxNameBytes - 1 - 2*len(b); len(prefix) > limit {
		prefix = ""
	}
	return prefix + "-" + hex.EncodeToString(b[:])
}

// handOut remembers a member id for as long as its session would last. The join
// phase waits for those that were given one.
func (s *shard) handOut(group, id string, g *groupState, session time.Duration) error {
	members := 0
	if g != nil {
		members = len(g.members)
	}
	if s.live[group] == nil && len(s.live) >= s.cfg.MaxGroups {
		return tooManyGroups(uint64(s.cfg.MaxGroups)).err()
	}
	lg := s.liveGroup(group)
	if members+len(lg.pending) >= s.cfg.MaxGroupSize {
		return errs.Errorf(errs.GroupMaxSizeReached, "group %q is full: its maximum of members is %d", group, s.cfg.MaxGroupSize)
	}
	end := now().Add(session)
	lg.pending[id] = end
	s.wakeTimers(end)
	return nil
}

// awaitJoin waits for the end of the join phase and makes the answer from the state.
func (s *shard) awaitJoin(ctx context.Context, r JoinRequest, id string, j joined) (JoinResponse, error) {
	for {
		g, m, lm := s.find(r.Group, id)
		if m == nil {
			return JoinResponse{MemberID: id}, s.gone(r.Group, g, id, r.InstanceID)
		}
		s.renew(m, lm)
		if !j.wait || g.generation > j.generation && g.phase != phasePreparing {
			return g.joinResponse(m, j), nil
		}
		if g.generation > j.generation {
			// The phase this join took part in is over, and the next one has begun
			// before this request woke up: join again.
			return JoinResponse{MemberID: id}, rebalancing(r.Group).err()
		}
		if !s.park(ctx, lm) {
			// The member stays until its session ends: its client may be on the way back.
			return JoinResponse{MemberID: id}, errs.Errorf(errs.RequestTimedOut, "join of %s: %w", id, ctx.Err())
		}
	}
}

func (g *groupState) joinResponse(m *member, j joined) JoinResponse {
	r := JoinResponse{
		Generation: g.generation, ProtocolType: g.protocolType, ProtocolName: g.protocolName,
		Leader: g.leader, MemberID: m.id, SkipAssignment: j.skip,
	}
	if j.keepLeader != "" {
		r.Leader = j.keepLeader
		return r
	}
	if m.id != g.leader {
		return r
	}
	for _, other := range g.byIncarnation() {
		jm := JoinMember{MemberID: other.id, InstanceID: other.instance}
		if p := other.protocol(g.protocolName); p != nil {
			jm.Metadata = p.Metadata
		}
		r.Members = append(r.Members, jm)
	}
	return r
}

// gone says why a classic member is not there.
func (s *shard) gone(group string, g *groupState, id, instance string) error {
	return s.lost(&beat{HeartbeatRequest: HeartbeatRequest{Group: group, MemberID: id, InstanceID: instance}}, g)
}

// identified finds a classic member and checks its instance id and generation. The shard is locked.
func (s *shard) identified(group, id, instance string, generation int32) (*groupState, *member, *liveMember, error) {
	g, m, lm := s.find(group, id)
	switch {
	case m == nil || g.protocol != ProtocolClassic:
		return nil, nil, nil, s.gone(group, g, id, instance)
	case instance != "" && m.instance != instance:
		return nil, nil, nil, fencedInstance(instance).err()
	case g.generation != generation:
		return nil, nil, nil, illegalGeneration(group, generation, g.generation).err()
	}
	return g, m, lm, nil
}

// syncGroup takes the leader's assignments, and gives every member its own.
func (s *shard) syncGroup(ctx context.Context, r SyncRequest) (SyncResponse, error) {
	if err := checkSync(r); err != nil {
		return SyncResponse{}, err
	}
	leads, err := s.beginSync(r)
	if err != nil {
		return SyncResponse{}, err
	}
	if leads {
		b := &classicSync{member: r.MemberID, generation: r.Generation, assignments: r.Assignments}
		if _, err := s.propose(ctx, r.Group, b); err != nil {
			return SyncResponse{}, err
		}
	}
	if err := s.lead(); err != nil {
		return SyncResponse{}, err
	}
	defer s.mu.Unlock()
	return s.awaitSync(ctx, r)
}

// beginSync checks a request and tells whether it brings the assignments.
func (s *shard) beginSync(r SyncRequest) (leads bool, err error) {
	if err := s.lead(); err != nil {
		return false, err
	}
	defer s.mu.Unlock()
	g, m, lm, err := s.identified(r.Group, r.MemberID, r.InstanceID, r.Generation)
	if err != nil {
		return false, err
	}
	if r.ProtocolType != "" && r.ProtocolType != g.protocolType || r.ProtocolName != "" && r.ProtocolName != g.protocolName {
		return false, inconsistent(r.Group).err()
	}
	s.renew(m, lm)
	return g.phase == phaseCompleting && g.leader == m.id, nil
}

func checkSync(r SyncRequest) error {
	if err := checkGroup(r.Group); err != nil {
		return err
	}
	size := 0
	for id, a := range r.Assignments {
		size += len(id) + len(a)
	}
	if size > maxAssignedBytes {
		return errs.Errorf(errs.InvalidRequest, "%d bytes of assignments are more than the %d allowed", size, maxAssignedBytes)
	}
	return nil
}

func (s *shard) awaitSync(ctx context.Context, r SyncRequest) (SyncResponse, error) {
	for {
		g, m, lm, err := s.identified(r.Group, r.MemberID, r.InstanceID, r.Generation)
		if errs.CodeOf(err) == errs.IllegalGeneration {
			return SyncResponse{}, rebalancing(r.Group).err() // it was right when the wait began
		}
		if err != nil {
			return SyncResponse{}, err
		}
		s.renew(m, lm)
		switch g.phase {
		case phaseStable:
			delete(s.live[r.Group].unsynced, m.id)
			return SyncResponse{ProtocolType: g.protocolType, ProtocolName: g.protocolName, Assignment: m.assignment}, nil
		case phaseCompleting:
			delete(s.live[r.Group].unsynced, m.id)
		default:
			return SyncResponse{}, rebalancing(r.Group).err()
		}
		if !s.park(ctx, lm) {
			return SyncResponse{}, errs.Errorf(errs.RequestTimedOut, "sync of %s: %w", r.MemberID, ctx.Err())
		}
	}
}

// classicHeartbeat keeps a member alive and tells it about a rebalance.
func (s *shard) classicHeartbeat(r ClassicHeartbeatRequest) error {
	if err := checkGroup(r.Group); err != nil {
		return err
	}
	if err := s.lead(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	g, m, lm, err := s.identified(r.Group, r.MemberID, r.InstanceID, r.Generation)
	if err != nil {
		return err
	}
	s.renew(m, lm)
	if g.phase == phasePreparing {
		return rebalancing(r.Group).err()
	}
	return nil
}

// leaveGroup removes classic members, and ids that were handed out and not used.
func (s *shard) leaveGroup(ctx context.Context, group string, members []MemberIdentity) ([]LeaveResult, error) {
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	if len(members) > maxLeavingMembers {
		return nil, errs.Errorf(errs.InvalidRequest, "%d members are more than the %d allowed", len(members), maxLeavingMembers)
	}
	if err := s.lead(); err != nil {
		return nil, err
	}
	results := make([]LeaveResult, len(members))
	var leaving classicLeave
	var places []int
	for i, id := range members {
		results[i].MemberIdentity = id
		if s.forgetPending(group, id) {
			continue
		}
		leaving.members = append(leaving.members, id)
		places = append(places, i)
	}
	classic := s.machine.groups[group] != nil && s.machine.groups[group].protocol == ProtocolClassic
	s.mu.Unlock()
	if len(places) == 0 {
		return results, nil
	}
	if !classic {
		for _, i := range places {
			results[i].Err = unknownMember(group, members[i].MemberID).err()
		}
		return results, nil
	}
	o, err := s.propose(ctx, group, &leaving)
	if err != nil {
		return nil, err
	}
	for n, i := range places {
		if code := o.partitions[n]; code != errs.None {
			results[i].Err = errs.New(code, "")
		}
	}
	return results, nil
}

func (s *shard) forgetPending(group string, id MemberIdentity) bool {
	lg := s.live[group]
	if lg == nil || id.InstanceID != "" {
		return false
	}
	if _, ok := lg.pending[id.MemberID]; !ok {
		return false
	}
	delete(lg.pending, id.MemberID)
	s.wakeTimers(now())
	return true
}
