package group

import (
	"maps"
	"slices"
	"time"
)

// topicGoneAfter is how long a topic must be unknown here before its offsets go. Metadata
// may lag behind for a moment on a broker that has just become the coordinator.
const topicGoneAfter = 2 * time.Minute

// sweepAll finds groups whose topics changed, and offsets that are to go.
func (s *shard) sweepAll(at time.Time) []due {
	var all []due
	wall := s.clock.Now().UnixMilli()
	missing := map[[16]byte]time.Time{}
	for _, name := range slices.Sorted(maps.Keys(s.machine.groups)) {
		g := s.machine.groups[name]
		if b := s.refresh(g); b != nil {
			all = append(all, due{name, b})
		}
		if p := s.outdated(g, wall); p != nil {
			all = append(all, due{name, p})
		}
		if p := s.orphaned(g, at, missing); len(p.entries) > 0 {
			all = append(all, due{name, p})
		}
	}
	s.missing = missing
	return all
}

// outdated finds the offsets of a group without members that are older than the
// retention: counted from when it became empty, or from the commit where it never had members.
func (s *shard) outdated(g *groupState, wall int64) *purge {
	switch {
	case len(g.members) > 0:
		return nil
	case len(g.offsets) == 0:
		return &purge{onlyEmpty: true} // nothing is left of the group
	case s.cfg.OffsetRetention < 0:
		return nil
	}
	before := wall - s.cfg.OffsetRetention.Milliseconds()
	p := &purge{onlyEmpty: true}
	for _, tp := range g.committedPartitions() {
		t := g.offsets[tp.Topic]
		if o := t.partitions[tp.Partition]; max(o.at, g.emptySince) <= before {
			p.entries = append(p.entries, purgeEntry{tp, t.id, o.at})
		}
	}
	if len(p.entries) == 0 {
		return nil
	}
	return p
}

// orphaned finds offsets of topics that are gone, or were made anew under the old name.
func (s *shard) orphaned(g *groupState, at time.Time, missing map[[16]byte]time.Time) *purge {
	p := &purge{}
	for _, topic := range slices.Sorted(maps.Keys(g.offsets)) {
		t := g.offsets[topic]
		if known, ok := s.metadata.Topic(topic); ok && known.ID == t.id {
			continue
		}
		since, ok := s.missing[t.id]
		if !ok {
			since = at
		}
		missing[t.id] = since
		if at.Sub(since) < topicGoneAfter {
			continue
		}
		for _, n := range slices.Sorted(maps.Keys(t.partitions)) {
			p.entries = append(p.entries, purgeEntry{TopicPartition{topic, n}, t.id, t.partitions[n].at})
		}
	}
	return p
}
