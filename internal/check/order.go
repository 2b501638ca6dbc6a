package check

import (
	"cmp"
	"slices"
)

// standing says that from a time on the log was known to reach through an offset.
type standing struct {
	at     int64
	offset int64
	op     *Op
}

// checkTimes checks what real time demands: whatever is known to stand before an operation begins is before
// a record that the operation sends, and is counted by the end of the log that it reads.
func (p *partition) checkTimes() {
	list := p.standings()
	for _, v := range p.ordered {
		if len(v.landed) == 0 {
			continue
		}
		before := top(list, v.invoke)
		if before == nil {
			continue
		}
		p.report.Checked[RealtimeOrder]++
		if v.landed[0] <= before.offset {
			p.report.found(RealtimeOrder, p.key, append(lines(before.op), v.lines()...),
				"%.60q was sent when the log reached through offset %d, and stands at %d", v.text, before.offset, v.landed[0])
		}
	}
	for _, op := range p.latest {
		before := top(list, op.Invoke)
		if before == nil || !op.strong() {
			continue
		}
		p.report.Checked[StaleLatest]++
		if op.Offset <= before.offset {
			p.report.found(StaleLatest, p.key, lines(before.op, op), "the log was said to end at %d after offset %d was there", op.Offset, before.offset)
		}
	}
	p.checkLogStart()
}

// standings is sorted by time, each with the highest offset up to then.
func (p *partition) standings() []standing {
	list := make([]standing, 0, len(p.seen)+len(p.latest))
	for _, s := range p.seen {
		if s.since() < forever {
			list = append(list, standing{s.since(), s.offset, s.op})
		}
	}
	for _, op := range append(slices.Clone(p.latest), p.finals...) {
		if !op.strong() {
			continue
		}
		end := op.Offset
		if op.Kind == Final {
			end = op.End
		}
		if end > 0 {
			list = append(list, standing{op.Complete, end - 1, op})
		}
	}
	slices.SortFunc(list, func(a, b standing) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.offset, b.offset)) })
	for i := 1; i < len(list); i++ {
		if before := list[i-1]; before.offset > list[i].offset {
			list[i].offset, list[i].op = before.offset, before.op
		}
	}
	return list
}

// top is the last standing before t, or nil.
func top(list []standing, t int64) *standing {
	n, _ := slices.BinarySearchFunc(list, t, func(s standing, t int64) int { return cmp.Or(cmp.Compare(s.at, t), 1) })
	if n == 0 {
		return nil
	}
	return &list[n-1]
}

// checkLogStart checks that the log start never goes back, as far as trims were acknowledged
// and log starts were seen. A final read says that it is not above what was read.
func (p *partition) checkLogStart() {
	var list []standing
	for _, op := range p.starts {
		if op.strong() {
			list = append(list, standing{op.Complete, op.Offset, op})
		}
	}
	slices.SortStableFunc(list, func(a, b standing) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(list); i++ {
		if before := list[i-1]; before.offset > list[i].offset {
			list[i].offset, list[i].op = before.offset, before.op
		}
	}
	for _, op := range append(slices.Clone(p.starts), p.finals...) {
		before := top(list, op.Invoke)
		if op.Kind == Trim || before == nil || !op.strong() {
			continue
		}
		p.report.Checked[LogStartRegress]++
		if op.Offset < before.offset {
			p.report.found(LogStartRegress, p.key, lines(before.op, op), "the log started at %d after it had been at %d", op.Offset, before.offset)
		}
	}
}
