package group

import (
	"context"
	"slices"
	"time"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// beat is a heartbeat under way.
type beat struct {
	HeartbeatRequest
	owned  map[TopicPartition]bool
	joined bool // the join has been replicated
}

func (s *shard) newBeat(r HeartbeatRequest) (*beat, error) {
	if err := checkGroup(r.Group); err != nil {
		return nil, err
	}
	if r.MemberID == "" || r.MemberEpoch < 0 {
		return nil, errs.Errorf(errs.InvalidRequest, "a heartbeat needs a member id and an epoch of 0 or above")
	}
	if err := checkIDs(r.MemberID, r.InstanceID, r.ClientID, r.ClientHost); err != nil {
		return nil, err
	}
	b := &beat{HeartbeatRequest: r}
	var err error
	if b.Topics, err = tidyTopics(r.Topics); err != nil {
		return nil, err
	}
	if b.owned, err = flatten(r.Owned); err != nil {
		return nil, err
	}
	if r.SessionTimeout != 0 {
		if err := s.cfg.checkSession(r.SessionTimeout); err != nil {
			return nil, err
		}
	}
	if r.RebalanceTimeout < 0 || r.RebalanceTimeout > s.cfg.MaxSessionTimeout {
		return nil, errs.Errorf(errs.InvalidRequest, "rebalance timeout %v is outside [0, %v]", r.RebalanceTimeout, s.cfg.MaxSessionTimeout)
	}
	return b, nil
}

// heartbeat replicates what the heartbeat changes, which is mostly nothing, and
// answers; it parks the request while there is nothing new to say.
func (s *shard) heartbeat(ctx context.Context, r HeartbeatRequest) (HeartbeatResponse, error) {
	b, err := s.newBeat(r)
	if err != nil {
		return HeartbeatResponse{}, err
	}
	for {
		if err := s.lead(); err != nil {
			return HeartbeatResponse{}, err
		}
		change, err := s.plan(b)
		if err != nil {
			s.mu.Unlock()
			return HeartbeatResponse{}, err
		}
		if change == nil {
			break // locked
		}
		s.mu.Unlock()
		if _, err := s.propose(ctx, b.Group, change); err != nil {
			return HeartbeatResponse{}, err
		}
		if _, ok := change.(*nativeJoin); ok {
			b.joined = true
		}
	}
	defer s.mu.Unlock()
	return s.answer(ctx, b)
}

// plan finds the next change that a heartbeat asks for; nil when there is none (left).
func (s *shard) plan(b *beat) (body, error) {
	g, m, lm := s.find(b.Group, b.MemberID)
	joining := b.MemberEpoch == 0 && !b.joined
	if m == nil && !joining {
		if g != nil && g.instance(b.InstanceID) != nil {
			return nil, fencedInstance(b.InstanceID).err()
		}
		return nil, unknownMember(b.Group, b.MemberID).err()
	}
	if joining {
		if m != nil && !m.released && m.instance == b.InstanceID && s.subscribes(b, m) {
			return nil, nil // its join took effect, and it did not hear of it
		}
		return s.planJoin(b, g, nil)
	}
	if b.MemberEpoch > m.epoch || b.MemberEpoch != 0 && (b.MemberEpoch < m.joinEpoch || m.released) {
		return nil, fencedEpoch(m, b.MemberEpoch).err()
	}
	s.renew(m, lm)
	if !b.joined && !s.subscribes(b, m) {
		return s.planJoin(b, g, m)
	}
	if b.MemberEpoch == m.epoch {
		lm.owned = b.Owned
		if r := s.planRelease(b, m); r != nil {
			lm.revoke = time.Time{} // it gets on with it: what is left has its full time again
			return r, nil
		}
	}
	return nil, nil
}

// planJoin describes a new member, or the new subscription of m.
func (s *shard) planJoin(b *beat, g *groupState, m *member) (body, error) {
	j := &nativeJoin{
		member: b.MemberID, instance: b.InstanceID, client: b.ClientID, host: b.ClientHost, update: m != nil,
		sessionMillis:   s.cfg.DefaultSessionTimeout.Milliseconds(),
		rebalanceMillis: s.cfg.DefaultRebalanceTimeout.Milliseconds(),
		topics:          b.Topics, regex: b.TopicRegex,
		maxMembers: uint64(s.cfg.MaxGroupSize), maxGroups: uint64(s.cfg.MaxGroups),
	}
	if m != nil {
		j.instance, j.sessionMillis, j.rebalanceMillis = m.instance, m.sessionMillis, m.rebalanceMillis
		if len(b.Topics) == 0 && b.TopicRegex == "" {
			j.topics, j.regex = m.topics, m.regex
		}
	}
	if b.SessionTimeout > 0 {
		j.sessionMillis = b.SessionTimeout.Milliseconds()
	}
	if b.RebalanceTimeout > 0 {
		j.rebalanceMillis = b.RebalanceTimeout.Milliseconds()
	}
	var err error
	if j.known, j.matched, err = s.resolve(j.topics, j.regex); err != nil {
		return nil, err
	}
	if g != nil && m == nil {
		old := g.instance(b.InstanceID)
		j.takeover = old != nil && s.silent(b.Group, old)
		if o := j.admit(g, b.Group, old); o.code != errs.None {
			return nil, o.err() // without a write for every attempt
		}
	}
	if j.regex != "" && g.tooManyPatterns(j.regex) {
		return nil, errs.Errorf(errs.InvalidRequest, "the members of group %q subscribe by %d different patterns; more are not allowed", b.Group, maxPatternsPerGroup)
	}
	return j, nil
}

// silent tells whether a member missed two heartbeats: then a process that claims to be the same
// static member is it, started anew; before, it is taken for a second one.
func (s *shard) silent(group string, m *member) bool {
	lm := s.live[group].members[m.id]
	if lm == nil {
		return true
	}
	return lm.parked == 0 && now().Sub(lm.heard) >= 2*s.interval(m)
}

func (s *shard) interval(m *member) time.Duration {
	return min(s.cfg.HeartbeatInterval, millis(m.sessionMillis)/3)
}

// subscribes tells whether what the heartbeat says about the member is known already.
func (s *shard) subscribes(b *beat, m *member) bool {
	if b.SessionTimeout > 0 && b.SessionTimeout.Milliseconds() != m.sessionMillis ||
		b.RebalanceTimeout > 0 && b.RebalanceTimeout.Milliseconds() != m.rebalanceMillis {
		return false
	}
	if len(b.Topics) == 0 && b.TopicRegex == "" && b.MemberEpoch > 0 {
		return true
	}
	return slices.Equal(b.Topics, m.topics) && b.TopicRegex == m.regex
}

// planRelease finds what was taken away and is no longer worked on.
func (s *shard) planRelease(b *beat, m *member) *nativeRelease {
	r := &nativeRelease{member: m.id, epoch: m.epoch}
	for _, tp := range m.revoking() {
		if !b.owned[tp] {
			r.released = append(r.released, tp)
		}
	}
	if len(r.released) == 0 {
		return nil
	}
	return r
}

// answer says what the member shall work on, at once if it does not know.
func (s *shard) answer(ctx context.Context, b *beat) (HeartbeatResponse, error) {
	g, m, lm := s.find(b.Group, b.MemberID)
	s.renew(m, lm)
	wait := min(b.MaxWait, s.interval(m))
	if m.epoch == b.MemberEpoch && wait > 0 {
		within, cancel := context.WithTimeout(ctx, wait)
		s.park(within, lm)
		cancel()
		if g, m, lm = s.find(b.Group, b.MemberID); m == nil {
			return HeartbeatResponse{}, s.lost(b, g)
		}
		if ctx.Err() != nil {
			return HeartbeatResponse{}, errs.Errorf(errs.RequestTimedOut, "heartbeat of %s: %w", b.MemberID, ctx.Err())
		}
		s.renew(m, lm)
	}
	return HeartbeatResponse{
		MemberEpoch: m.epoch, Generation: g.generation,
		HeartbeatInterval: s.interval(m), Assigned: gather(m.assigned()),
	}, nil
}

// lost says why a member that waited is not there any more.
func (s *shard) lost(b *beat, g *groupState) error {
	switch {
	case s.stopped:
		return errs.New(errs.ShuttingDown, "this broker is stopping; ask another one")
	case s.term == 0:
		return errNotCoordinator
	case g != nil && g.instance(b.InstanceID) != nil:
		return fencedInstance(b.InstanceID).err()
	}
	return unknownMember(b.Group, b.MemberID).err()
}

// leave removes a native member.
func (s *shard) leave(ctx context.Context, r LeaveRequest) error {
	if err := checkGroup(r.Group); err != nil {
		return err
	}
	if err := s.lead(); err != nil {
		return err
	}
	o := s.admitLeave(r)
	s.mu.Unlock()
	if o.code != errs.None {
		return o.err() // without a write
	}
	_, err := s.propose(ctx, r.Group, &nativeLeave{member: r.MemberID, instance: r.InstanceID, release: r.MemberEpoch == EpochReleaseInstance})
	return err
}

func (s *shard) admitLeave(r LeaveRequest) outcome {
	g, m, _ := s.find(r.Group, r.MemberID)
	switch {
	case m == nil && g != nil && g.instance(r.InstanceID) != nil:
		return fencedInstance(r.InstanceID)
	case m == nil || g.protocol != ProtocolNative:
		return unknownMember(r.Group, r.MemberID)
	case r.MemberEpoch > m.epoch || r.MemberEpoch > 0 && r.MemberEpoch < m.joinEpoch:
		return fencedEpoch(m, r.MemberEpoch) // of an earlier life
	}
	return outcome{}
}
