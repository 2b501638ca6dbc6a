package check

import (
	"cmp"
	"slices"
)

// Check looks for every anomaly in h. It takes O(n log n) time for n records and facts, and
// memory in proportion to n. It does not change h.
func Check(h *History) *Report {
	r := newReport(h)
	validate(h, r)
	count(h, r)
	groups := newGroups(h)
	parts := partitions(h, r)
	for _, p := range parts {
		p.checkLog()
		p.checkSends()
		p.checkTimes()
		p.checkFencing(groups.fences)
	}
	checkConsumers(h, parts, r)
	groups.check(parts, r)
	checkFacts(h, r)
	r.Windows = Windows(acksOf(h), h.Faults, WindowConfig{})
	return r
}

// validate refuses histories whose recording went wrong: a checker that trusts them
// would pass runs that it has not seen.
func validate(h *History, r *Report) {
	if h.Dropped > 0 {
		r.invalid("the recorder had no room for %d operations or facts; give it a higher limit", h.Dropped)
	}
	for i := range h.Ops {
		op := &h.Ops[i]
		switch {
		case !kinds[op.Kind]:
			r.invalid("unknown kind: %s", op)
		case op.Outcome != OK && op.Outcome != Fail && op.Outcome != Unknown:
			r.invalid("outcome %q: %s", op.Outcome, op)
		case op.Outcome != Unknown && op.Complete < op.Invoke:
			r.invalid("complete before it was invoked: %s", op)
		case op.Key.IsZero() && op.Kind != Assign && op.Kind != Subscribe && op.Kind != Fence:
			r.invalid("no key: %s", op)
		case op.Kind == Send && len(op.Records) == 0:
			r.invalid("a send of nothing: %s", op)
		case op.Kind == Fence && op.Producer == nil, op.Group == "" && (op.Kind == Own || op.Kind == Commit || op.Kind == Committed):
			r.invalid("no producer or group: %s", op)
		}
	}
}

func count(h *History, r *Report) {
	generations, first := map[string]map[int32]bool{}, int64(forever)
	start := int64(forever)
	broken := faultTimes(h.Faults)
	if len(broken) > 0 {
		first = broken[0].From
	}
	var before int64
	for i := range h.Ops {
		op := &h.Ops[i]
		n := int64(len(op.Records))
		switch {
		case op.Kind == Send && op.strong():
			r.Saw[SawAcked] += n
			start = min(start, op.Invoke)
			if op.Complete < first {
				before += n
			}
			if during(broken, op.Complete) {
				r.Saw[SawAckedInFault] += n
			}
		case op.Kind == Send && op.Outcome == Fail:
			r.Saw[SawFailed] += n
		case op.Kind == Send:
			r.Saw[SawUnknown] += n
		case op.Kind == Poll || op.Kind == Final:
			r.Saw[SawRead] += n
		case op.Kind == Commit && op.Reset:
			r.Saw[SawResets]++
		case op.Kind == Own:
			if generations[op.Group] == nil {
				generations[op.Group] = map[int32]bool{}
			}
			generations[op.Group][op.Generation] = true
		}
	}
	for _, g := range generations {
		r.Saw[SawRebalances] += int64(len(g) - 1)
	}
	r.Saw[SawFaults] += int64(len(h.Faults))
	if len(h.Faults) > 0 && first > start {
		r.Saw[SawAckRateAtFirst] = int64(float64(before) / (float64(first-start) / 1e9))
	}
}

// faultTimes are the intervals in which something was broken, merged, by time.
func faultTimes(faults []Fault) (list []Fault) {
	sorted := slices.Clone(faults)
	slices.SortFunc(sorted, func(a, b Fault) int { return cmp.Compare(a.From, b.From) })
	for _, f := range sorted {
		if n := len(list); n > 0 && f.From <= list[n-1].Until {
			list[n-1].Until = max(list[n-1].Until, f.Until)
			continue
		}
		list = append(list, f)
	}
	return list
}

// during says whether t lies in one of the intervals of faultTimes.
func during(faults []Fault, t int64) bool {
	n, _ := slices.BinarySearchFunc(faults, t, func(f Fault, t int64) int { return cmp.Or(cmp.Compare(f.From, t), 1) })
	return n > 0 && t < faults[n-1].Until
}

// partition is what a history says of one key.
type partition struct {
	key    Key
	report *Report

	sends, reads, finals, latest []*Op // by Invoke
	starts                       []*Op // log starts asked for or seen, by Invoke
	startsUpTo, startsNext       []int64

	values  map[string]*value
	ordered []*value // as they were first sent
	seen    []sighting
	known   []int64 // offsets at which a record stands, ascending, each once
}

// value is one record and every attempt to send it.
type value struct {
	text     string
	attempts []attempt
	invoke   int64 // of the first attempt
	acked    *Op   // the first strong acknowledgement
	ackedAt  int64 // its offset
	maybe    bool  // an attempt has not failed
	plain    bool  // an attempt that has not failed was not idempotent
	landed   []int64
}

type attempt struct {
	op *Op
	i  int // among op's records
}

// sighting is one record at one offset, told by an acknowledgement or a read.
type sighting struct {
	offset int64
	value  *value
	op     *Op
}

// since is the time from which on the record is known to be committed.
func (s sighting) since() int64 { return s.op.until() }

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

func byInvoke(a, b *Op) int { return cmp.Compare(a.Invoke, b.Invoke) }

// partitions splits h by key, in the order of the keys.
func partitions(h *History, r *Report) []*partition {
	byKey := map[Key]*partition{}
	of := func(k Key) *partition {
		if byKey[k] == nil {
			byKey[k] = &partition{key: k, report: r, values: map[string]*value{}}
		}
		return byKey[k]
	}
	for i := range h.Ops {
		op := &h.Ops[i]
		switch op.Kind {
		case Send:
			p := of(op.Key)
			p.sends = append(p.sends, op)
		case Poll:
			p := of(op.Key)
			p.reads = append(p.reads, op)
		case Final:
			p := of(op.Key)
			p.reads = append(p.reads, op)
			if op.strong() {
				p.finals = append(p.finals, op)
			}
		case Latest:
			p := of(op.Key)
			p.latest = append(p.latest, op)
		case Trim, LogStart:
			p := of(op.Key)
			p.starts = append(p.starts, op)
		}
	}
	list := make([]*partition, 0, len(byKey))
	for _, p := range byKey {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *partition) int { return compareKeys(a.key, b.key) })
	for _, p := range list {
		p.index()
	}
	return list
}

func (p *partition) index() {
	for _, ops := range [][]*Op{p.sends, p.reads, p.finals, p.latest, p.starts} {
		slices.SortStableFunc(ops, byInvoke)
	}
	p.indexStarts()
	p.indexSends()
	p.indexReads()
	slices.SortFunc(p.seen, func(a, b sighting) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.since(), b.since()))
	})
	for _, s := range p.seen {
		if n := len(p.known); n == 0 || p.known[n-1] != s.offset {
			p.known = append(p.known, s.offset)
		}
		if n := len(s.value.landed); n == 0 || s.value.landed[n-1] != s.offset {
			s.value.landed = append(s.value.landed, s.offset)
		}
	}
}

// indexStarts keeps how far the log start may have come by each time, and where it is seen next.
func (p *partition) indexStarts() {
	p.startsUpTo, p.startsNext = make([]int64, len(p.starts)+1), make([]int64, len(p.starts)+1)
	for i, op := range p.starts {
		p.startsUpTo[i+1] = p.startsUpTo[i]
		if op.Outcome != Fail {
			p.startsUpTo[i+1] = max(p.startsUpTo[i], op.Offset)
		}
	}
	for i := len(p.starts) - 1; i >= 0; i-- {
		p.startsNext[i] = p.startsNext[i+1]
		if op := p.starts[i]; op.Kind == LogStart && op.Outcome == OK {
			p.startsNext[i] = op.Offset
		}
	}
}

// startAt is the highest log start that was possible at time t: one that was asked for or seen by then, or that
// which is seen next, since retention may have moved it there long before.
func (p *partition) startAt(t int64) int64 {
	n, _ := slices.BinarySearchFunc(p.starts, t, func(op *Op, t int64) int {
		if op.Invoke <= t {
			return -1
		}
		return 1
	})
	return max(p.startsUpTo[n], p.startsNext[n])
}

func (p *partition) indexSends() {
	for _, op := range p.sends {
		for i, rec := range op.Records {
			v := p.values[rec.Value]
			if v == nil {
				v = &value{text: rec.Value, invoke: op.Invoke}
				p.values[rec.Value] = v
				p.ordered = append(p.ordered, v)
			}
			p.attempt(v, op, i)
		}
	}
}

func (p *partition) attempt(v *value, op *Op, i int) {
	for _, a := range v.attempts[:min(len(v.attempts), maxAttempts)] {
		if a.op == op || a.op.Outcome == OK && a.op.Complete < op.Invoke {
			p.report.invalid("%s: value %.60q was sent again after it had been acknowledged; values must be unique", p.key, v.text)
		}
	}
	v.attempts = append(v.attempts, attempt{op, i})
	if op.Outcome == Fail {
		return
	}
	v.maybe = true
	v.plain = v.plain || op.Producer == nil || !op.Producer.Idempotent
	if offset := op.Records[i].Offset; op.strong() && offset != NoOffset {
		p.seen = append(p.seen, sighting{offset, v, op})
		if v.acked == nil {
			v.acked, v.ackedAt = op, offset
		}
	}
}

// maxAttempts keeps the look at earlier attempts linear where a value is retried without end.
const maxAttempts = 16

func (p *partition) indexReads() {
	for _, op := range p.reads {
		for _, rec := range op.Records {
			v := p.values[rec.Value]
			p.report.Checked[Phantom]++
			switch {
			case v == nil:
				p.report.found(Phantom, p.key, lines(op), "%.60q was read at offset %d, and nobody sent it", rec.Value, rec.Offset)
				v = &value{text: rec.Value, invoke: op.Invoke, maybe: true, plain: true}
				p.values[rec.Value] = v
			case op.Outcome != Unknown && op.Complete < v.invoke:
				p.report.found(Phantom, p.key, append(v.lines(), op), "%.60q was read at offset %d before it was sent", rec.Value, rec.Offset)
			case !v.maybe:
				p.report.found(AbortedRead, p.key, append(v.lines(), op), "%.60q was read at offset %d, and its send had failed", rec.Value, rec.Offset)
			}
			p.seen = append(p.seen, sighting{rec.Offset, v, op})
		}
	}
	p.report.Checked[AbortedRead] += p.report.Checked[Phantom]
}

func (v *value) lines() (all []stringer) {
	for _, a := range v.attempts[:min(len(v.attempts), 2)] {
		all = append(all, a.op)
	}
	return all
}

func lines(ops ...*Op) (all []stringer) {
	for _, op := range ops {
		if op != nil {
			all = append(all, op)
		}
	}
	return all
}
