package check

import (
	"cmp"
	"slices"
)

// checkLog checks what stands at each offset: it is one value, and it stays.
func (p *partition) checkLog() {
	p.checkOffsets()
	p.checkFinals()
}

// checkOffsets checks that each offset has one value. seen is sorted by offset.
func (p *partition) checkOffsets() {
	for i, s := range p.seen {
		if i == 0 || p.seen[i-1].offset != s.offset {
			continue
		}
		p.report.Checked[InconsistentOffsets]++
		if before := p.seen[i-1]; before.value != s.value {
			p.report.found(InconsistentOffsets, p.key, lines(before.op, s.op), "offset %d holds %.60q and %.60q", s.offset, before.value.text, s.value.text)
		}
	}
}

// duty is a record that a read at the end has to find.
type duty struct {
	sighting
	found, lost bool
}

// duties are the records that were acknowledged or read, each once, by offset. Since is the
// earliest time at which that was known.
func (p *partition) duties() []duty {
	var list []duty
	for _, s := range p.seen {
		n := len(list)
		if n > 0 && list[n-1].offset == s.offset && list[n-1].value == s.value {
			continue // sorted by since: the first is the earliest
		}
		list = append(list, duty{sighting: s})
	}
	return list
}

// checkFinals compares what is owed with what the final reads found.
func (p *partition) checkFinals() {
	list := p.duties()
	for _, f := range p.finals {
		p.compare(list, f)
	}
	ends := p.endsFrom()
	read := p.readOffsets()
	for i := range list {
		if d := &list[i]; !d.found && !d.lost {
			p.checkAbsent(d, ends, read)
		}
	}
}

// compare looks for everything that f should hold. An offset at which f holds another value
// was lost as well.
func (p *partition) compare(list []duty, f *Op) {
	held := slices.Clone(f.Records)
	slices.SortFunc(held, func(a, b Record) int { return cmp.Compare(a.Offset, b.Offset) })
	start := p.startAt(f.Complete)
	at, _ := slices.BinarySearchFunc(list, f.Offset, func(d duty, o int64) int { return cmp.Compare(d.offset, o) })
	for k := 0; at < len(list) && list[at].offset < f.End; at++ {
		d := &list[at]
		for k < len(held) && held[k].Offset < d.offset {
			k++
		}
		p.report.Checked[Lost]++
		has := false
		for j := k; j < len(held) && held[j].Offset == d.offset; j++ {
			has = has || held[j].Value == d.value.text
		}
		switch {
		case has:
			d.found = true
		case d.since() >= f.Invoke:
		case d.offset < start:
			p.trimmed(d)
		case !d.lost:
			d.lost = true
			p.report.found(Lost, p.key, lines(d.op, f), "%.60q is gone from offset %d", d.value.text, d.offset)
		}
	}
}

func (p *partition) trimmed(d *duty) {
	if !d.found && d.value.acked != nil {
		p.report.Saw[SawTrimmed]++
	}
	d.found = true
}

// ending says how far the final reads came that began at or after a time.
type ending struct {
	invoke int64
	final  *Op // the one that came farthest
}

// endsFrom lists, by Invoke, the final read that came farthest of those from there on.
func (p *partition) endsFrom() []ending {
	list := make([]ending, len(p.finals))
	var far *Op
	for i := len(p.finals) - 1; i >= 0; i-- {
		if f := p.finals[i]; far == nil || f.End > far.End {
			far = f
		}
		list[i] = ending{p.finals[i].Invoke, far}
	}
	return list
}

// readOffsets are the offsets that anybody has read, ascending.
func (p *partition) readOffsets() []int64 {
	var list []int64
	for _, s := range p.seen {
		if n := len(list); s.op.Kind != Send && (n == 0 || list[n-1] != s.offset) {
			list = append(list, s.offset)
		}
	}
	return list
}

// checkAbsent judges a record that no final read has found and none should have held: the log ends before it,
// begins behind it, or was not read to the end.
func (p *partition) checkAbsent(d *duty, ends []ending, read []int64) {
	p.report.Checked[Lost]++
	p.report.Checked[Unseen]++
	at, _ := slices.BinarySearchFunc(ends, d.since(), func(e ending, t int64) int {
		if e.invoke <= t {
			return -1
		}
		return 1
	})
	if at < len(ends) { // the log was read after the record was known to be there
		f := ends[at].final
		if d.offset < p.startAt(f.Complete) {
			p.trimmed(d)
			return
		}
		p.report.found(Lost, p.key, lines(d.op, f), "%.60q at offset %d is outside of what the log holds", d.value.text, d.offset)
		return
	}
	if _, somebody := slices.BinarySearch(read, d.offset); somebody {
		return
	}
	switch n := len(read); {
	case d.offset < p.startAt(forever):
		p.trimmed(d)
	case n > 0 && read[n-1] > d.offset:
		p.report.found(Lost, p.key, lines(d.op), "%.60q at offset %d was never read, offset %d was", d.value.text, d.offset, read[n-1])
	default:
		p.report.found(Unseen, p.key, lines(d.op), "%.60q at offset %d was never read", d.value.text, d.offset)
	}
}
