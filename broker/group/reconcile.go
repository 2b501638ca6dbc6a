package group

import (
	"maps"
	"slices"
)

// subscription is the topics of a member that exist, sorted.
func (g *groupState) subscription(m *member) []string {
	var all []string
	for _, t := range m.topics {
		if _, ok := g.topics[t]; ok {
			all = append(all, t)
		}
	}
	if m.regex != "" {
		for _, t := range g.patterns[m.regex] {
			if _, ok := g.topics[t]; ok {
				all = append(all, t)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// retarget begins a new generation: it decides what everybody shall have, and
// moves there as far as nobody has to give anything up first.
func (g *groupState) retarget() {
	g.generation++
	members := g.sortedMembers()
	g.forgetUnused(members)
	names := slices.Sorted(maps.Keys(g.topics))
	index := make(map[string]int, len(names))
	topics := make([]topicCount, len(names))
	for i, name := range names {
		index[name] = i
		topics[i] = topicCount{name, g.topics[name]}
	}
	in := make([]assignee, len(members))
	for i, m := range members {
		in[i].prev = m.target
		for _, name := range g.subscription(m) {
			in[i].topics = append(in[i].topics, index[name])
		}
	}
	if len(members) > 0 {
		for i, target := range assign(in, topics) {
			members[i].target = target
		}
	}
	g.reconcile()
}

// forgetUnused drops topics and patterns that nobody subscribes to any more.
func (g *groupState) forgetUnused(members []*member) {
	topics, patterns := map[string]bool{}, map[string]bool{}
	for _, m := range members {
		patterns[m.regex] = true
		for _, t := range g.subscription(m) {
			topics[t] = true
		}
	}
	maps.DeleteFunc(g.topics, func(t string, _ int32) bool { return !topics[t] })
	maps.DeleteFunc(g.patterns, func(p string, _ []string) bool { return !patterns[p] })
}

// reconcile takes away what is not in a member's target, and gives what is and
// nobody holds. Every member whose assignment changes gets a new epoch.
func (g *groupState) reconcile() {
	members := g.sortedMembers()
	changed := make([]bool, len(members))
	holders := map[TopicPartition]bool{}
	for i, m := range members {
		wanted := make(map[TopicPartition]bool, len(m.target))
		for _, tp := range m.target {
			wanted[tp] = true
		}
		for tp, h := range m.held {
			holders[tp] = true
			if h.revoking != wanted[tp] {
				continue
			}
			// Taken away; or wanted back before it was given up, which the new
			// epoch makes safe: what the member says under the old one no longer counts.
			h.revoking = !wanted[tp]
			m.held[tp] = h
			changed[i] = true
		}
	}
	for i, m := range members {
		var free []TopicPartition
		for _, tp := range m.target {
			if !holders[tp] {
				free = append(free, tp)
			}
		}
		if len(free) > 0 || changed[i] {
			g.epoch++
			m.epoch = g.epoch
		}
		for _, tp := range free {
			m.held[tp] = hold{since: m.epoch}
		}
	}
}

// assigned is what the member shall work on now, sorted.
func (m *member) assigned() []TopicPartition {
	var all []TopicPartition
	for tp, h := range m.held {
		if !h.revoking {
			all = append(all, tp)
		}
	}
	slices.SortFunc(all, TopicPartition.compare)
	return all
}

// revoking is what the member has yet to give up, sorted.
func (m *member) revoking() []TopicPartition {
	var all []TopicPartition
	for tp, h := range m.held {
		if h.revoking {
			all = append(all, tp)
		}
	}
	slices.SortFunc(all, TopicPartition.compare)
	return all
}

// reconciled tells whether every native member has what it shall have.
func (g *groupState) reconciled() bool {
	for _, m := range g.members {
		if len(m.held) != len(m.target) {
			return false
		}
		for _, h := range m.held {
			if h.revoking {
				return false
			}
		}
	}
	return true
}
