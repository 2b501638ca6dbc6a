package check

import (
	"cmp"
	"slices"
)

// position is how far a process has read a key.
type position struct {
	last  int64 // offset of the record that it read last, or the one before where it was told to begin
	op    *Op   // which shows that; nil: not known
	since int64 // when the operation began that shows it
}

// consumer is one process that reads.
type consumer struct {
	ops  []*Op             // polls, assignments and seeks in their order
	owns map[Key][]*Op     // what it owned in a group
	at   map[Key]*position // while it is checked
}

// checkConsumers checks that polls go on where the one before ended. In a group this is only asked for keys
// whose owners the history names.
func checkConsumers(h *History, parts []*partition, r *Report) {
	known := map[Key]*partition{}
	for _, p := range parts {
		known[p.key] = p
	}
	for _, c := range consumersOf(h) {
		for _, op := range c.ops {
			if op.Kind == Poll {
				c.poll(known[op.Key], op, r)
			} else {
				c.move(op)
			}
		}
	}
}

func consumersOf(h *History) (list []*consumer) {
	byProcess := map[string]*consumer{}
	for i := range h.Ops {
		op := &h.Ops[i]
		switch op.Kind {
		case Poll, Assign, Seek, Subscribe, Own:
		default:
			continue
		}
		c := byProcess[op.Process]
		if c == nil {
			c = &consumer{owns: map[Key][]*Op{}, at: map[Key]*position{}}
			byProcess[op.Process] = c
			list = append(list, c)
		}
		if op.Kind == Own {
			c.owns[op.Key] = append(c.owns[op.Key], op)
		} else {
			c.ops = append(c.ops, op)
		}
	}
	for _, c := range list {
		slices.SortStableFunc(c.ops, byInvoke) // those of one time stand as they were recorded
		for _, owns := range c.owns {
			slices.SortStableFunc(owns, byInvoke)
		}
	}
	return list
}

// move takes a position from a process, and gives it another where that is told.
func (c *consumer) move(op *Op) {
	if op.Outcome == Fail {
		return
	}
	if op.Key.IsZero() || op.Kind == Subscribe {
		clear(c.at)
		return
	}
	delete(c.at, op.Key)
	if op.Offset != NoOffset && op.strong() {
		c.at[op.Key] = &position{op.Offset - 1, op, op.Invoke}
	}
}

// rebalanced says whether the process got key, or knew that it had given it up or lost it, between from and until.
func (c *consumer) rebalanced(key Key, from, until int64) bool {
	owns := c.owns[key]
	n, _ := slices.BinarySearchFunc(owns, until, func(op *Op, t int64) int {
		if op.Invoke <= t {
			return -1
		}
		return 1
	})
	if n == 0 {
		return false
	}
	last := owns[n-1]
	return last.Invoke >= from || last.Complete >= from && last.Complete <= until
}

// poll checks one poll. What one of unknown outcome has read may be lost on the way to the process.
func (c *consumer) poll(p *partition, op *Op, r *Report) {
	if op.Group != "" && c.owns[op.Key] == nil {
		return
	}
	if op.Outcome == Unknown {
		delete(c.at, op.Key)
		return
	}
	at := c.at[op.Key]
	if at == nil || c.rebalanced(op.Key, at.since, op.Complete) {
		at = &position{}
		c.at[op.Key] = at
	}
	moved := c.rebalanced(op.Key, op.Invoke, op.Complete)
	for i, rec := range op.Records {
		if at.op != nil && !(i > 0 && moved) {
			p.step(r, at.last, rec.Offset, at.op, op)
		}
		*at = position{rec.Offset, op, op.Invoke}
	}
}

// step checks a consumer that has read the record at offset from, and then that at offset to. What lies between
// must be unknown to everybody, or may have been trimmed.
func (p *partition) step(r *Report, from, to int64, before, op *Op) {
	r.Checked[PollSkip]++
	r.Checked[PollNonmonotonic]++
	if to <= from {
		r.found(PollNonmonotonic, p.key, evidenceOf(before, op), "offset %d was read after %d", to, from)
		return
	}
	next := max(from+1, p.startAt(op.Complete))
	n, _ := slices.BinarySearch(p.known, next)
	if n < len(p.known) && p.known[n] < to {
		r.found(PollSkip, p.key, append(evidenceOf(before, op), p.witness(p.known[n])...), "offset %d was read after %d, and there is a record at %d", to, from, p.known[n])
	}
}

func evidenceOf(before, op *Op) []stringer {
	if before == op {
		return lines(op)
	}
	return lines(before, op)
}

// witness is an operation that shows a record at offset.
func (p *partition) witness(offset int64) []stringer {
	n, found := slices.BinarySearchFunc(p.seen, offset, func(s sighting, o int64) int { return cmp.Compare(s.offset, o) })
	if !found {
		return nil
	}
	return lines(p.seen[n].op)
}
