package group

import (
	"context"
	"maps"
	"slices"
	"time"
)

const (
	// retryAfter is how soon something that was due is tried again.
	retryAfter = time.Second
	// proposeWithin bounds what the timers wait for one command.
	proposeWithin = 5 * time.Second
)

// due is a command that the passing of time asks for.
type due struct {
	group string
	body  body
}

// run waits for deadlines and replicates what they bring about.
func (s *shard) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.mu.Lock()
		wait := time.Hour
		if !s.next.IsZero() {
			wait = s.next.Sub(now())
		}
		s.mu.Unlock()
		if wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-s.poke:
				continue
			case <-timer.C:
			}
		}
		if ctx.Err() != nil {
			return
		}
		s.tick(ctx)
	}
}

// wakeTimers makes the timers run at a time, unless they do so earlier anyway.
func (s *shard) wakeTimers(at time.Time) {
	if s.term == 0 || !s.next.IsZero() && !at.Before(s.next) {
		return
	}
	s.next = at
	select {
	case s.poke <- struct{}{}:
	default: // it has been told already
	}
}

// tick replicates everything that is due, one command after the other.
func (s *shard) tick(ctx context.Context) {
	if s.lead() != nil {
		return
	}
	at := now()
	all := s.collect(at)
	if !at.Before(s.sweep) {
		all = append(all, s.sweepAll(at)...)
		s.sweep = at.Add(s.cfg.SweepInterval)
	}
	s.wakeTimers(s.sweep)
	if len(all) > 0 {
		s.wakeTimers(at.Add(retryAfter))
	}
	s.mu.Unlock()
	for _, d := range all {
		within, cancel := context.WithTimeout(ctx, proposeWithin)
		_, err := s.propose(within, d.group, d.body)
		cancel()
		if err != nil {
			s.logger.Debug("group timer not replicated", "group", d.group, "err", err)
			return
		}
	}
}

// collect finds what is due in all groups and when to look again. The scan is
// cheap because it is rare: sessions are renewed long before they end, so the
// earliest end lies far ahead each time.
func (s *shard) collect(at time.Time) []due {
	s.next = time.Time{}
	var all []due
	for _, name := range slices.Sorted(maps.Keys(s.live)) {
		lg := s.live[name]
		g := s.machine.groups[name]
		if g == nil {
			g = newGroup()
		}
		if e := s.expired(g, lg, at); len(e.members) > 0 {
			all = append(all, due{name, e})
		}
		if g.protocol == ProtocolNative {
			if e := s.overdue(g, lg, at); len(e.members) > 0 {
				all = append(all, due{name, e})
			}
		}
		s.expirePending(lg, at)
		if b := s.phaseDue(g, lg, at); b != nil {
			all = append(all, due{name, b})
		}
		if len(lg.members)+len(lg.pending) == 0 && s.machine.groups[name] == nil {
			delete(s.live, name)
		}
	}
	return all
}

// expired finds members whose session has ended. One with a request parked here is alive.
func (s *shard) expired(g *groupState, lg *liveGroup, at time.Time) *expire {
	e := &expire{reason: reasonSession}
	for _, m := range g.sortedMembers() {
		lm := lg.members[m.id]
		if lm == nil {
			continue
		}
		if lm.parked > 0 {
			s.renew(m, lm)
		}
		if !at.Before(lm.session) {
			e.members = append(e.members, expiry{m.id, m.incarnation, 0})
			lm.session = at.Add(retryAfter)
		}
		s.wakeTimers(lm.session)
	}
	return e
}

// overdue finds native members that did not give up in time what was taken away.
func (s *shard) overdue(g *groupState, lg *liveGroup, at time.Time) *expire {
	e := &expire{reason: reasonRebalanceTimeout}
	for _, m := range g.sortedMembers() {
		lm := lg.members[m.id]
		if lm == nil || lm.revoke.IsZero() {
			continue
		}
		if !at.Before(lm.revoke) {
			e.members = append(e.members, expiry{m.id, m.incarnation, m.epoch})
			lm.revoke = at.Add(retryAfter)
		}
		s.wakeTimers(lm.revoke)
	}
	return e
}

// expirePending forgets member ids that nobody joined with.
func (s *shard) expirePending(lg *liveGroup, at time.Time) {
	for id, end := range lg.pending {
		if !at.Before(end) {
			delete(lg.pending, id)
			continue
		}
		s.wakeTimers(end)
	}
}

// phaseDue ends the join phase of a classic group, or removes those that did not sync in time.
func (s *shard) phaseDue(g *groupState, lg *liveGroup, at time.Time) body {
	if g.protocol != ProtocolClassic || lg.deadline.IsZero() {
		return nil
	}
	over := !at.Before(lg.deadline)
	switch g.phase {
	case phasePreparing:
		if !over && (g.initial || !g.allJoined() || len(lg.pending) > 0) {
			s.wakeTimers(lg.deadline)
			return nil
		}
		if over && g.initial && lg.newcomer && lg.remaining > 0 {
			delay := min(s.cfg.InitialRebalanceDelay, lg.remaining)
			lg.remaining -= delay
			lg.newcomer, lg.deadline = false, at.Add(delay)
			s.wakeTimers(lg.deadline)
			return nil
		}
		if over {
			lg.deadline = at.Add(max(g.longestRebalance(), retryAfter))
			s.wakeTimers(lg.deadline)
		}
		return &classicComplete{generation: g.generation}
	case phaseCompleting, phaseStable:
		return s.unsynced(g, lg, at, over)
	}
	return nil
}

func (s *shard) unsynced(g *groupState, lg *liveGroup, at time.Time, over bool) body {
	e := &expire{reason: reasonSyncTimeout}
	for _, m := range g.sortedMembers() {
		if lg.unsynced[m.id] {
			e.members = append(e.members, expiry{m.id, m.incarnation, 0})
		}
	}
	switch {
	case len(e.members) == 0:
		return nil
	case !over:
		s.wakeTimers(lg.deadline)
		return nil
	}
	lg.deadline = at.Add(retryAfter)
	s.wakeTimers(lg.deadline)
	return e
}
