package check

import (
	"cmp"
	"slices"
)

// cursor names what one process reads of one key.
type cursor struct {
	process string
	key     Key
}

// boundary is where a process may have got another position: it says nothing went wrong when
// the next poll goes on elsewhere.
type boundary struct {
	from, until int64
	offset      int64 // where it goes on, NoOffset: not known
	op          *Op
}

// consumers is what the processes of a history read.
type consumers struct {
	polls      map[cursor][]*Op
	order      []cursor
	boundaries map[cursor][]boundary // a zero key stands for all
	reported   map[cursor]bool       // ownership of that key is in the history
}

// checkConsumers checks that polls go on where the one before ended. In a group this is only asked for keys
// whose owners the history names.
func checkConsumers(h *History, parts []*partition, r *Report) {
	c := consumersOf(h)
	known := map[Key]*partition{}
	for _, p := range parts {
		known[p.key] = p
	}
	for _, who := range c.order {
		c.check(who, known[who.key], r)
	}
}

func consumersOf(h *History) *consumers {
	c := &consumers{polls: map[cursor][]*Op{}, boundaries: map[cursor][]boundary{}, reported: map[cursor]bool{}}
	for i := range h.Ops {
		op := &h.Ops[i]
		who := cursor{op.Process, op.Key}
		switch op.Kind {
		case Poll:
			if c.polls[who] == nil {
				c.order = append(c.order, who)
			}
			c.polls[who] = append(c.polls[who], op)
		case Assign, Seek, Subscribe:
			at := boundary{op.Invoke, op.until(), NoOffset, op}
			if op.strong() && op.Kind != Subscribe && !op.Key.IsZero() {
				at.offset = op.Offset
			}
			c.boundaries[who] = append(c.boundaries[who], at)
		case Own:
			c.reported[who] = true
			c.boundaries[who] = append(c.boundaries[who], boundary{op.Invoke, op.Invoke, NoOffset, op}, boundary{op.until(), op.until(), NoOffset, op})
		}
	}
	for _, polls := range c.polls {
		slices.SortStableFunc(polls, byInvoke)
	}
	for _, list := range c.boundaries {
		slices.SortStableFunc(list, func(a, b boundary) int { return cmp.Compare(a.from, b.from) })
	}
	return c
}

// crossed returns the last boundary of who that overlaps [from, until], and whether there is one.
// An open one (its outcome is unknown) counts from its start alone: the process has gone on since.
func (c *consumers) crossed(who cursor, from, until int64) (last boundary, some bool) {
	for _, list := range [][]boundary{c.boundaries[who], c.boundaries[cursor{process: who.process}]} {
		n, _ := slices.BinarySearchFunc(list, until, func(b boundary, t int64) int {
			if b.from <= t {
				return -1
			}
			return 1
		})
		for _, b := range list[max(0, n-1):n] {
			if b.from < from && (b.until < from || b.until == forever) {
				continue
			}
			if !some || b.from > last.from {
				last = b
			}
			some = true
		}
	}
	return last, some
}

func (c *consumers) check(who cursor, p *partition, r *Report) {
	last, lastOp := NoOffset, (*Op)(nil) // NoOffset: the position is not known
	for i, op := range c.polls[who] {
		grouped := op.Group != ""
		if grouped && !c.reported[who] {
			continue
		}
		end := op.Complete
		if op.Outcome == Unknown {
			end = op.Invoke
		}
		from := int64(-forever)
		if i > 0 {
			from = c.polls[who][i-1].Invoke
		}
		if b, crossed := c.crossed(who, from, end); crossed || i == 0 {
			last, lastOp = NoOffset, nil
			if clean := i == 0 || b.from > c.polls[who][i-1].Complete; crossed && clean && b.until < op.Invoke && b.offset != NoOffset {
				last, lastOp = b.offset-1, b.op
			}
		}
		if op.Outcome == Unknown {
			last, lastOp = NoOffset, nil // what it has read may be lost on the way
			continue
		}
		_, moved := c.crossed(who, op.Invoke, end)
		for k, rec := range op.Records {
			if lastOp != nil && !(k > 0 && moved) {
				p.step(r, last, rec.Offset, lastOp, op)
			}
			last, lastOp = rec.Offset, op
		}
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
