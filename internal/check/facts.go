package check

import (
	"cmp"
	"slices"
)

// checkFacts checks what was seen inside the brokers.
func checkFacts(h *History, r *Report) {
	facts := make([]*Fact, 0, len(h.Facts))
	for i := range h.Facts {
		facts = append(facts, &h.Facts[i])
	}
	slices.SortStableFunc(facts, func(a, b *Fact) int { return cmp.Compare(a.At, b.At) })
	checkElections(facts, r)
	checkProgress(facts, r)
	checkEntries(facts, r)
	checkSame(facts, r)
}

// told names a fact that must be the same whoever tells it.
type told struct {
	kind        FactKind
	group, who  string
	number, end uint64
}

// once calls differ for each fact that contradicts the first of its name.
func once(facts []*Fact, r *Report, a Anomaly, name func(*Fact) (told, bool), same func(a, b *Fact) bool, what string) {
	first := map[told]*Fact{}
	for _, f := range facts {
		n, ok := name(f)
		if !ok {
			continue
		}
		before, again := first[n]
		if !again {
			first[n] = f
			continue
		}
		r.Checked[a]++
		if !same(before, f) {
			r.found(a, nameOf(f), []stringer{before, f}, "%s", what)
		}
	}
}

func nameOf(f *Fact) name { return name(f.Group) }

// checkElections checks that a term has one leader, and a voter one vote in it.
func checkElections(facts []*Fact, r *Report) {
	once(facts, r, TwoLeaders,
		func(f *Fact) (told, bool) { return told{Leader, f.Group, "", f.Term, 0}, f.Kind == Leader },
		func(a, b *Fact) bool { return a.Replica == b.Replica }, "two leaders in one term")
	once(facts, r, VoteTwice,
		func(f *Fact) (told, bool) { return told{Vote, f.Group, f.Replica, f.Term, 0}, f.Kind == Vote },
		func(a, b *Fact) bool { return a.Candidate == b.Candidate }, "two votes in one term")
	terms, groups := map[told]bool{}, map[string]bool{}
	for _, f := range facts {
		if f.Kind == Leader {
			terms[told{group: f.Group, number: f.Term}], groups[f.Group] = true, true
		}
	}
	r.Saw[SawElections] += int64(len(terms) - len(groups))
}

// checkProgress checks what only grows: a replica's term for ever, its high watermark while it runs.
func checkProgress(facts []*Fact, r *Report) {
	type run struct {
		group, replica string
		run            int
	}
	terms, marks := map[run]*Fact{}, map[run]*Fact{}
	for _, f := range facts {
		switch f.Kind {
		case Term, Vote:
			at := run{f.Group, f.Replica, 0}
			before := terms[at]
			if before != nil {
				r.Checked[TermRegress]++
				if f.Term < before.Term {
					r.found(TermRegress, nameOf(f), []stringer{before, f}, "the term of %s went back", f.Replica)
					continue
				}
			}
			terms[at] = f
		case HighWatermark:
			at := run{f.Group, f.Replica, f.Run}
			before := marks[at]
			if before != nil {
				r.Checked[HWRegress]++
				if f.Offset < before.Offset {
					r.found(HWRegress, nameOf(f), []stringer{before, f}, "the high watermark of %s went back", f.Replica)
					continue
				}
			}
			marks[at] = f
		}
	}
}

// checkEntries checks that what is committed at one index is the same on all replicas, for ever.
func checkEntries(facts []*Fact, r *Report) {
	type at struct {
		group string
		index uint64
	}
	type seen struct {
		entry Entry
		fact  *Fact
	}
	first := map[at]seen{}
	for _, f := range facts {
		for _, e := range f.Entries {
			if f.Kind != Log || e.Index > f.Commit {
				continue
			}
			before, again := first[at{f.Group, e.Index}]
			if !again {
				first[at{f.Group, e.Index}] = seen{e, f}
				continue
			}
			r.Checked[LogDivergence]++
			if before.entry != e {
				r.found(LogDivergence, nameOf(f), []stringer{before.fact, f}, "index %d is committed with term %d, checksum %x and with term %d, checksum %x",
					e.Index, before.entry.Term, before.entry.Sum, e.Term, e.Sum)
			}
		}
	}
}

// checkSame checks what replicas derive from the same log.
func checkSame(facts []*Fact, r *Report) {
	once(facts, r, DeltaMismatch,
		func(f *Fact) (told, bool) { return told{Delta, f.Group, "", f.Index, 0}, f.Kind == Delta },
		func(a, b *Fact) bool { return a.Offset == b.Offset }, "one index has two offsets")
	once(facts, r, SegmentMismatch,
		func(f *Fact) (told, bool) {
			return told{Segment, f.Group, "", uint64(f.Offset), uint64(f.End)}, f.Kind == Segment
		},
		func(a, b *Fact) bool { return a.Sum == b.Sum }, "two sealed segments differ")
}
