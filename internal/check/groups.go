package check

import (
	"cmp"
	"slices"
)

// claim names one partition as a consumer group sees it.
type claim struct {
	group string
	key   Key
}

func (c claim) String() string { return c.group + " " + c.key.String() }

// groups is what a history says of consumer groups and fenced producers.
type groups struct {
	owns    map[claim][]*Op
	commits map[claim][]*Op // and what was read of them
	polls   map[claim][]*Op
	order   []claim
	fences  map[int64][]fenced
}

func newGroups(h *History) *groups {
	g := &groups{owns: map[claim][]*Op{}, commits: map[claim][]*Op{}, polls: map[claim][]*Op{}, fences: map[int64][]fenced{}}
	seen := map[claim]bool{}
	for i := range h.Ops {
		op := &h.Ops[i]
		if op.Kind == Fence && op.Outcome == OK && op.Producer != nil {
			g.fences[op.Producer.ID] = append(g.fences[op.Producer.ID], fenced{op.Complete, op.Producer.Epoch, op})
			continue
		}
		if op.Group == "" {
			continue
		}
		c := claim{op.Group, op.Key}
		switch op.Kind {
		case Own:
			g.owns[c] = append(g.owns[c], op)
		case Commit, Committed:
			g.commits[c] = append(g.commits[c], op)
		case Poll:
			g.polls[c] = append(g.polls[c], op)
		default:
			continue
		}
		if !seen[c] {
			seen[c] = true
			g.order = append(g.order, c)
		}
	}
	slices.SortFunc(g.order, func(a, b claim) int { return cmp.Or(cmp.Compare(a.group, b.group), compareKeys(a.key, b.key)) })
	return g
}

func (g *groups) check(parts []*partition, r *Report) {
	known := map[Key]*partition{}
	for _, p := range parts {
		known[p.key] = p
	}
	for _, c := range g.order {
		slices.SortStableFunc(g.commits[c], byInvoke)
		checkOwners(c, g.owns[c], r)
		checkCommits(c, g.commits[c], r)
		if p := known[c.key]; p != nil {
			checkAhead(c, p, g.commits[c], g.polls[c], r)
		}
	}
}

// span is what an owner claims, of generations or of time: [from, until].
type span struct {
	from, until int64
	op          *Op
}

// checkOwners checks that no two members own a partition in the same generation, nor at the same
// time if both have given it up in order. A member that has lost its session (its outcome
// is not ok) may not know for a while that another has taken over.
func checkOwners(c claim, owns []*Op, r *Report) {
	var generations, times []span
	for _, op := range owns {
		if op.Generation > 0 {
			generations = append(generations, span{int64(op.Generation), int64(op.through()), op})
		}
		if op.Outcome == OK {
			times = append(times, span{op.Invoke + 1, op.Complete - 1, op}) // touching is no overlap
		}
	}
	told := map[*Op]bool{}
	overlaps(generations, func(a, b span) {
		told[b.op] = true
		r.found(DoubleOwner, c, lines(a.op, b.op), "%s and %s own it in generation %d", a.op.Process, b.op.Process, b.from)
	}, r)
	overlaps(times, func(a, b span) {
		if !told[b.op] {
			r.found(DoubleOwner, c, lines(a.op, b.op), "%s and %s own it at %s", a.op.Process, b.op.Process, seconds(b.from))
		}
	}, r)
}

// overlaps calls tell for each span that overlaps one of another process that began before it.
func overlaps(list []span, tell func(a, b span), r *Report) {
	slices.SortStableFunc(list, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var far, other *span // the two that reach farthest, of different processes
	for i := range list {
		s := &list[i]
		if s.until < s.from {
			continue
		}
		for _, b := range []*span{far, other} {
			if b != nil {
				r.Checked[DoubleOwner]++
			}
			if b != nil && b.op.Process != s.op.Process && b.until >= s.from {
				tell(*b, *s)
				break
			}
		}
		switch {
		case far == nil || s.op.Process == far.op.Process:
			if far == nil || s.until > far.until {
				far = s
			}
		case s.until > far.until:
			far, other = s, far
		case other == nil || s.until > other.until:
			other = s
		}
	}
}

// checkCommits checks that the committed position of a group, as commits were acknowledged and as it was
// read, never goes back without a commit that was to go back.
func checkCommits(c claim, ops []*Op, r *Report) {
	lowest := resetFloors(ops)
	list := commitFloors(ops, lowest)
	for _, op := range ops {
		if op.Kind != Committed || !op.strong() {
			continue
		}
		before := top(list, op.Invoke)
		if before == nil {
			continue
		}
		r.Checked[CommitRegress]++
		if op.Offset < before.offset && lowest(op.Invoke, op.Complete) > op.Offset {
			r.found(CommitRegress, c, lines(before.op, op), "the committed position was %d and is %d", before.offset, op.Offset)
		}
	}
}

// commitFloors lists by time what the committed position cannot be below, as long as it is not reset.
// A reset lowers it when it starts, and what overlaps it does not raise it above its target.
func commitFloors(ops []*Op, lowest func(from, until int64) int64) []standing {
	var events []standing
	for _, op := range ops {
		if op.isReset() {
			events = append(events, standing{op.Invoke, op.Offset, op})
		}
		if !op.strong() || op.isReset() {
			continue
		}
		events = append(events, standing{op.Complete, min(op.Offset, lowest(op.Invoke, op.Complete)), op})
	}
	slices.SortStableFunc(events, func(a, b standing) int { return cmp.Compare(a.at, b.at) })
	floor, by := NoOffset, (*Op)(nil)
	for i := range events {
		e := &events[i]
		if e.op.isReset() {
			floor = min(floor, e.offset)
		} else if e.offset > floor {
			floor, by = e.offset, e.op
		}
		e.offset = floor
		if by != nil {
			e.op = by
		}
	}
	return events
}

// isReset says that op is a commit that may go back and that may have happened.
func (op *Op) isReset() bool { return op.Kind == Commit && op.Reset && op.Outcome != Fail }

// resetFloors tells the lowest target of the resets among ops that overlap an interval, forever without one. One
// whose outcome is unknown overlaps all that comes after it. ops are sorted by Invoke.
func resetFloors(ops []*Op) func(from, until int64) int64 {
	type reset struct {
		op     *Op
		ended  int64 // the latest end of this one and those before, without those that have none
		target int64 // the lowest of those without an end
	}
	var list []reset
	last := reset{nil, -1, forever}
	for _, op := range ops {
		if !op.isReset() {
			continue
		}
		last.op = op
		if op.Outcome == Unknown {
			last.target = min(last.target, op.Offset)
		} else {
			last.ended = max(last.ended, op.Complete)
		}
		list = append(list, last)
	}
	return func(from, until int64) int64 {
		n, _ := slices.BinarySearchFunc(list, until, func(r reset, t int64) int {
			if r.op.Invoke <= t {
				return -1
			}
			return 1
		})
		if n == 0 {
			return forever
		}
		lowest := list[n-1].target
		for i := n - 1; i >= 0 && list[i].ended >= from; i-- { // as many as are under way at a time
			if op := list[i].op; op.until() >= from {
				lowest = min(lowest, op.Offset)
			}
		}
		return lowest
	}
}

// checkAhead checks that a member of the group has read every record below the committed position
// before that was seen. Below the target of a reset the user may have skipped some.
func checkAhead(c claim, p *partition, commits, polls []*Op, r *Report) {
	if len(polls) == 0 {
		return
	}
	skipped := NoOffset
	for _, op := range commits {
		if op.isReset() {
			skipped = max(skipped, op.Offset)
		}
	}
	first := map[int64]int64{} // when an offset was polled first
	for _, op := range polls {
		for _, rec := range op.Records {
			if at, ok := first[rec.Offset]; !ok || op.Invoke < at {
				first[rec.Offset] = op.Invoke
			}
		}
	}
	known := p.known
	for _, op := range commits { // by Invoke; each known offset is looked at once
		if op.Kind != Committed || !op.strong() {
			continue
		}
		for len(known) > 0 && known[0] < op.Offset {
			r.Checked[CommitAhead]++
			at, ok := first[known[0]]
			if (!ok || at > op.Complete) && known[0] >= max(skipped, p.startAt(op.Complete)) {
				r.found(CommitAhead, c, append(lines(op), p.witness(known[0])...), "%d is committed, and no member has read offset %d", op.Offset, known[0])
			}
			known = known[1:]
		}
	}
}
