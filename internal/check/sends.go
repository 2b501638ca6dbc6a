package check

import (
	"cmp"
	"slices"
)

// checkSends checks what became of the values that were sent.
func (p *partition) checkSends() {
	for _, v := range p.ordered {
		p.checkDuplicates(v)
		if v.acked == nil && v.maybe {
			if len(v.landed) > 0 {
				p.report.Saw[SawUnknownLanded]++
			} else {
				p.report.Saw[SawUnknownGone]++
			}
		}
	}
	p.checkBatchOrder()
	p.checkSendOrder()
	p.checkSequences()
}

// sequence tells sends of idempotent producers apart: all attempts at one are one record.
type sequence struct {
	pid   int64
	epoch int16
	seq   int32
}

func (a attempt) sequence() (s sequence, ok bool) {
	p := a.op.Producer
	if p == nil || !p.Idempotent || p.ID < 0 || p.Seq < 0 {
		return s, false
	}
	return sequence{p.ID, p.Epoch, p.Seq + int32(a.i)}, true
}

func (p *partition) checkDuplicates(v *value) {
	extra := len(v.landed) - 1
	if v.plain {
		p.report.Saw[SawDuplicates] += int64(max(0, extra))
		return
	}
	if len(v.landed) == 0 {
		return
	}
	p.report.Checked[DuplicateIdempotent]++
	if extra > 0 && len(v.landed) > v.sendings() {
		p.report.found(DuplicateIdempotent, p.key, v.lines(), "%.60q stands at offsets %d", v.text, v.landed[:min(len(v.landed), 10)])
	}
}

// sendings is how many records the attempts at v may have become.
func (v *value) sendings() (n int) {
	if len(v.attempts) == 1 {
		return 1
	}
	distinct := map[sequence]bool{}
	for _, a := range v.attempts {
		s, known := a.sequence()
		switch {
		case a.op.Outcome == Fail:
		case !known:
			n++
		default:
			distinct[s] = true
		}
	}
	return n + len(distinct)
}

// checkBatchOrder checks that the records of one send stand in their order.
func (p *partition) checkBatchOrder() {
	for _, op := range p.sends {
		for i := 1; op.strong() && i < len(op.Records); i++ {
			p.report.Checked[SendNonmonotonic]++
			if a, b := op.Records[i-1], op.Records[i]; a.Offset >= b.Offset && b.Offset != NoOffset {
				p.report.found(SendNonmonotonic, p.key, lines(op), "%.60q at %d, and %.60q behind it in the same send at %d", a.Value, a.Offset, b.Value, b.Offset)
			}
		}
	}
}

// stream is one producer whose sends keep their order.
type stream struct {
	process string
	pid     int64
	epoch   int16
}

// landing is where a value of a stream stands.
type landing struct {
	value       *value
	seq         int32
	first, last int64
}

// checkSendOrder checks that the values of each ordered producer stand in the order in which they were sent. A value
// with attempts of several producers belongs to none.
func (p *partition) checkSendOrder() {
	for _, list := range p.streams() {
		slices.SortStableFunc(list, func(a, b landing) int {
			return cmp.Or(cmp.Compare(a.value.invoke, b.value.invoke), cmp.Compare(a.seq, b.seq))
		})
		var top, next *landing // the highest so far, without and with those that cannot be told from list[i]
		for i := range list {
			if i == 0 || list[i].value.invoke != list[i-1].value.invoke || list[i].seq != list[i-1].seq {
				top = next
			}
			if top != nil {
				p.report.Checked[SendNonmonotonic]++
				if list[i].first < top.last {
					p.report.found(SendNonmonotonic, p.key, append(top.value.lines(), list[i].value.lines()...),
						"%.60q stands at %d, and %.60q, sent later, at %d", top.value.text, top.last, list[i].value.text, list[i].first)
				}
			}
			if next == nil || list[i].last > next.last {
				next = &list[i]
			}
		}
	}
}

func (p *partition) streams() [][]landing {
	at := map[stream]int{}
	var lists [][]landing
	for _, v := range p.ordered {
		s, ok := v.stream()
		if !ok || len(v.landed) == 0 {
			continue
		}
		i, seen := at[s]
		if !seen {
			i = len(lists)
			at[s] = i
			lists = append(lists, nil)
		}
		seq := v.attempts[0].op.Producer.Seq
		if seq >= 0 {
			seq += int32(v.attempts[0].i)
		}
		lists[i] = append(lists[i], landing{v, seq, v.landed[0], v.landed[len(v.landed)-1]})
	}
	return lists
}

func (v *value) stream() (s stream, ok bool) {
	for i, a := range v.attempts {
		p := a.op.Producer
		if p == nil || !p.Idempotent && !p.Ordered {
			return s, false
		}
		own := stream{a.op.Process, p.ID, p.Epoch}
		if i > 0 && own != s {
			return s, false
		}
		s = own
	}
	return s, len(v.attempts) > 0
}

// checkSequences checks that no sequence is missing between two of one idempotent producer that
// are there, where the final reads tell what is there.
func (p *partition) checkSequences() {
	type numbered struct {
		sequence
		value *value
	}
	var list []numbered
	from, to := p.covered()
	for _, v := range p.ordered {
		if v.plain || !v.maybe {
			continue
		}
		for _, a := range v.attempts {
			if s, ok := a.sequence(); ok && a.op.Outcome != Fail {
				list = append(list, numbered{s, v})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b numbered) int {
		return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.seq, b.seq))
	})
	var before, missing *numbered // the last that is there, and one behind it that is not
	for i := range list {
		n := &list[i]
		if before != nil && (before.pid != n.pid || before.epoch != n.epoch) {
			before, missing = nil, nil
		}
		if len(n.value.landed) == 0 {
			if before != nil && before.seq != n.seq {
				missing = n
			}
			continue
		}
		if missing != nil && missing.seq == n.seq {
			missing = nil
		}
		if before != nil && missing != nil && before.value.landed[0] >= from && n.value.landed[0] < to {
			p.report.found(SequenceGap, p.key, append(append(before.value.lines(), missing.value.lines()...), n.value.lines()...),
				"%.60q (sequence %d) is missing between sequences %d and %d", missing.value.text, missing.seq, before.seq, n.seq)
		}
		p.report.Checked[SequenceGap]++
		before, missing = n, nil
	}
}

// covered is what the final reads hold: [from, to), without what may have been trimmed by now.
func (p *partition) covered() (from, to int64) {
	from = forever
	for _, f := range p.finals {
		from, to = min(from, f.Offset), max(to, f.End)
	}
	return max(from, p.startAt(forever)), to
}

// fenced is one epoch of one producer, known to be the newest at a time.
type fenced struct {
	at    int64
	epoch int16
	op    *Op
}

// checkFencing checks that no producer epoch gets a write through that was invoked after a newer
// one was there: after it was given out with fencing (all), or had written to this partition.
func (p *partition) checkFencing(all map[int64][]fenced) {
	known := map[int64][]fenced{}
	for _, op := range p.sends {
		if pr := op.Producer; pr != nil && pr.ID >= 0 {
			if known[pr.ID] == nil {
				for _, f := range all[pr.ID] {
					if f.op.Key.IsZero() || f.op.Key == p.key {
						known[pr.ID] = append(known[pr.ID], f)
					}
				}
			}
			if op.strong() {
				known[pr.ID] = append(known[pr.ID], fenced{op.Complete, pr.Epoch, op})
			}
		}
	}
	for _, list := range known {
		rising(list)
	}
	zombies := map[*value]bool{}
	for _, v := range p.ordered {
		if len(v.landed) == 0 || len(v.attempts) != 1 || v.attempts[0].op.Producer == nil {
			continue
		}
		op := v.attempts[0].op
		list := known[op.Producer.ID]
		n, _ := slices.BinarySearchFunc(list, op.Invoke, func(f fenced, t int64) int { return cmp.Or(cmp.Compare(f.at, t), 1) })
		if n == 0 {
			continue
		}
		p.report.Checked[ZombieWrite]++
		if newest := list[n-1]; newest.epoch > op.Producer.Epoch {
			zombies[v] = true
			p.report.found(ZombieWrite, p.key, lines(newest.op, op), "%.60q of epoch %d got through after epoch %d", v.text, op.Producer.Epoch, newest.epoch)
		}
	}
	p.checkEpochOrder(zombies)
}

// rising sorts by time and makes each the highest epoch up to then.
func rising(list []fenced) {
	slices.SortStableFunc(list, func(a, b fenced) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(list); i++ {
		if list[i-1].epoch > list[i].epoch {
			list[i].epoch, list[i].op = list[i-1].epoch, list[i-1].op
		}
	}
}

// checkEpochOrder checks that the epochs of a producer never go back along the log.
func (p *partition) checkEpochOrder(zombies map[*value]bool) {
	newest := map[int64]sighting{}
	for _, s := range p.seen {
		if len(s.value.attempts) != 1 {
			continue
		}
		pr := s.value.attempts[0].op.Producer
		if pr == nil || pr.ID < 0 || !pr.Idempotent {
			continue
		}
		before, ok := newest[pr.ID]
		if !ok {
			newest[pr.ID] = s
			continue
		}
		p.report.Checked[ZombieWrite]++
		epoch := before.value.attempts[0].op.Producer.Epoch
		if pr.Epoch < epoch && !zombies[s.value] {
			zombies[s.value] = true
			p.report.found(ZombieWrite, p.key, append([]stringer{before.op}, s.value.lines()...),
				"%.60q of epoch %d stands at %d, behind epoch %d at %d", s.value.text, pr.Epoch, s.offset, epoch, before.offset)
		}
		if pr.Epoch > epoch {
			newest[pr.ID] = s
		}
	}
}
