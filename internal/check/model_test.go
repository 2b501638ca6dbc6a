package check_test

import (
	"fmt"
	"slices"

	. "github.com/tidemarkhq/tidemark/internal/check"
)

// model is a correct cluster with clients of all kinds: each operation takes effect at one moment between
// its start and its answer, or later where there is no answer.
type model struct {
	pick func(n int) int // a number below n
	now  int64
	ops  []Op
	logs []*modelLog

	actors []*actor
	group  modelGroup
	values int
	late   []func() // what has no answer and takes effect some day
	resets bool     // commits may go back
}

// modelLog is one partition.
type modelLog struct {
	key        Key
	start, end int64
	records    []Record
	landed     map[string]bool // of idempotent producers
}

// actor does one small step after the other; an operation is several.
type actor struct {
	next  []func()
	start func() // begins another operation by filling next
}

// modelGroup is a consumer group of two members; the partitions move at each rebalance.
type modelGroup struct {
	generation int32
	owner      []int // of each partition
	since      []int64
	committed  []int64
	position   []int64 // of the owner
}

func run(pick func(int) int, steps int) *History {
	m := &model{pick: pick, resets: pick(2) == 0}
	for i := range 2 {
		m.logs = append(m.logs, &modelLog{key: Key{Topic: "t", Partition: int32(i)}, landed: map[string]bool{}})
	}
	for i := range 2 {
		m.plain(fmt.Sprintf("plain%d", i))
		m.idempotent(fmt.Sprintf("idem%d", i), int64(i))
		m.reader(fmt.Sprintf("reader%d", i))
	}
	m.asker()
	if pick(3) > 0 {
		m.trimmer()
	}
	m.joinGroup()
	for range steps {
		m.step()
	}
	for _, a := range m.actors { // what is under way ends
		for len(a.next) > 0 {
			m.tick()
			a.pop()
		}
	}
	m.end()
	return &History{Header: Header{Suite: "model"}, Ops: m.ops}
}

func (m *model) step() {
	m.tick()
	if len(m.late) > 0 && m.pick(8) == 0 {
		i := m.pick(len(m.late))
		m.late[i]()
		m.late = slices.Delete(m.late, i, i+1)
		return
	}
	a := m.actors[m.pick(len(m.actors))]
	if len(a.next) == 0 {
		a.start()
		return
	}
	a.pop()
}

func (a *actor) pop() {
	f := a.next[0]
	a.next = a.next[1:]
	f()
}

// tick lets time pass, or not: a virtual clock stands still often.
func (m *model) tick() { m.now += int64(m.pick(3)) }

func (m *model) act(start func(a *actor)) {
	a := &actor{}
	a.start = func() { start(a) }
	m.actors = append(m.actors, a)
}

func (m *model) done(op Op, outcome Outcome) {
	op.Complete, op.Outcome = m.now, outcome
	m.ops = append(m.ops, op)
}

func (m *model) value() string {
	m.values++
	return fmt.Sprintf("v%d", m.values)
}

func (m *model) anyLog() *modelLog { return m.logs[m.pick(len(m.logs))] }

// land appends values, now and then behind a gap.
func (m *model) land(l *modelLog, records []Record) (landed []Record) {
	if m.pick(6) == 0 {
		l.end += int64(1 + m.pick(2))
	}
	for _, r := range records {
		r.Offset = l.end
		l.end++
		l.records = append(l.records, r)
		landed = append(landed, r)
	}
	return landed
}

func (m *model) batch() (list []Record) {
	for range 1 + m.pick(3) {
		list = append(list, Record{Offset: NoOffset, Value: m.value()})
	}
	return list
}

// plain sends, and repeats what had no answer under the same values.
func (m *model) plain(name string) {
	var again []Record
	var where *modelLog
	m.act(func(a *actor) {
		l, records := m.anyLog(), again
		if again == nil {
			records = m.batch()
		} else {
			l = where
		}
		again = nil
		op := Op{Kind: Send, Process: name, Key: l.key, Invoke: m.now, Records: records}
		switch m.pick(8) {
		case 0: // refused
			a.next = append(a.next, func() { m.done(op, Fail) })
		case 1: // no answer; done, or to be done some day, or never
			later := func() { m.land(l, records) }
			switch m.pick(3) {
			case 0:
				a.next = append(a.next, later)
			case 1:
				m.late = append(m.late, later)
			}
			a.next = append(a.next, func() {
				m.done(op, Unknown)
				if m.pick(2) == 0 {
					again, where = records, l
				}
			})
		case 2: // the client repeats it by itself
			a.next = append(a.next, func() { m.land(l, records) }, func() { op.Records = m.land(l, records) }, func() { m.done(op, OK) })
		default:
			a.next = append(a.next, func() { op.Records = m.land(l, records) }, func() { m.done(op, OK) })
		}
	})
}

// idempotent keeps two in flight, repeats what had no answer, and gets a new epoch now and then.
func (m *model) idempotent(name string, pid int64) {
	var epoch int16
	seqs := make([]int32, len(m.logs))
	m.act(func(a *actor) {
		if m.pick(12) == 0 {
			op := Op{Kind: Fence, Process: name, Invoke: m.now, Producer: &Producer{ID: pid, Epoch: epoch + 1}}
			a.next = append(a.next, func() { epoch++; seqs = make([]int32, len(m.logs)) }, func() { m.done(op, OK) })
			return
		}
		i := m.pick(len(m.logs))
		l := m.logs[i]
		var flight []Op
		for range 1 + m.pick(2) {
			records := m.batch()
			p := &Producer{ID: pid, Epoch: epoch, Seq: seqs[i], Idempotent: true}
			seqs[i] += int32(len(records))
			flight = append(flight, Op{Kind: Send, Process: name, Key: l.key, Invoke: m.now, Records: records, Producer: p})
			m.now += int64(m.pick(2))
		}
		for _, op := range flight {
			m.idempotentSend(a, l, op)
		}
	})
}

// idempotentSend tries until there is an answer. It lands once.
func (m *model) idempotentSend(a *actor, l *modelLog, op Op) {
	landed := op.Records
	try := func() {
		if !l.landed[landed[0].Value] {
			l.landed[landed[0].Value] = true
			op.Records = m.land(l, landed)
		}
	}
	for range m.pick(3) / 2 {
		if m.pick(2) == 0 {
			a.next = append(a.next, try)
		}
		a.next = append(a.next, func() {
			lost := op
			lost.Records = landed
			m.done(lost, Unknown)
			op.Invoke = m.now
		})
	}
	a.next = append(a.next, try, func() { m.done(op, OK) })
}

// reader polls one partition after an assignment, and is assigned anew now and then.
func (m *model) reader(name string) {
	l := m.anyLog()
	at := int64(0)
	assigned := false
	m.act(func(a *actor) {
		if !assigned || m.pick(10) == 0 {
			assigned = true
			l = m.anyLog()
			at = l.start + int64(m.pick(int(l.end-l.start)+1))
			op := Op{Kind: []Kind{Assign, Seek}[m.pick(2)], Process: name, Key: l.key, Invoke: m.now, Offset: at}
			if m.pick(3) == 0 {
				op.Offset = NoOffset
			}
			a.next = append(a.next, func() { m.done(op, OK) })
			return
		}
		op := Op{Kind: Poll, Process: name, Key: l.key, Invoke: m.now}
		a.next = append(a.next, func() { op.Records, at = m.read(l, at) })
		outcome := []Outcome{OK, OK, OK, OK, Unknown, Fail}[m.pick(6)]
		before := at
		a.next = append(a.next, func() {
			if outcome == Fail {
				at, op.Records = before, nil
			}
			m.done(op, outcome)
		})
	})
}

func (m *model) read(l *modelLog, from int64) (records []Record, next int64) {
	from = max(from, l.start)
	for _, r := range l.records {
		if r.Offset >= from && len(records) < 5 {
			records = append(records, r)
			from = r.Offset + 1
		}
	}
	return records, from
}

// asker asks for ends, starts and committed positions.
func (m *model) asker() {
	m.act(func(a *actor) {
		i := m.pick(len(m.logs))
		l := m.logs[i]
		op := Op{Kind: []Kind{Latest, LogStart, Committed}[m.pick(3)], Process: "asker", Key: l.key, Invoke: m.now}
		a.next = append(a.next, func() {
			switch op.Kind {
			case Latest:
				op.Offset = l.end
			case LogStart:
				op.Offset = l.start
			case Committed:
				op.Group, op.Offset = "g", m.group.committed[i]
			}
		}, func() { m.done(op, OK) })
	})
}

func (m *model) trimmer() {
	m.act(func(a *actor) {
		if m.pick(4) > 0 {
			return
		}
		l := m.anyLog()
		op := Op{Kind: Trim, Process: "trimmer", Key: l.key, Invoke: m.now, Offset: l.start + int64(m.pick(int(l.end-l.start)/2+1))}
		outcome := []Outcome{OK, OK, OK, Unknown, Fail}[m.pick(5)]
		if outcome == OK || outcome == Unknown && m.pick(2) == 0 {
			a.next = append(a.next, func() { l.start = max(l.start, op.Offset) })
		}
		a.next = append(a.next, func() { m.done(op, outcome) })
	})
}

// joinGroup starts two members and who moves partitions between them. A member that loses a
// partition gives it up before the other gets it.
func (m *model) joinGroup() {
	n := len(m.logs)
	m.group = modelGroup{generation: 1, owner: make([]int, n), since: make([]int64, n), committed: slices.Repeat([]int64{NoOffset}, n), position: make([]int64, n)}
	for member := range 2 {
		m.act(func(a *actor) { m.memberStep(a, member) })
	}
	m.act(func(a *actor) {
		if m.pick(4) == 0 {
			m.rebalance()
		}
	})
}

func memberName(i int) string { return fmt.Sprintf("member%d", i) }

func (m *model) memberStep(a *actor, member int) {
	i := m.pick(len(m.logs))
	g, l := &m.group, m.logs[i]
	if g.owner[i] != member {
		return
	}
	generation, name := g.generation, memberName(member)
	still := func() bool { return g.generation == generation && g.owner[i] == member }
	if m.pick(3) > 0 {
		op := Op{Kind: Poll, Process: name, Group: "g", Key: l.key, Invoke: m.now}
		a.next = append(a.next, func() {
			if still() {
				op.Records, g.position[i] = m.read(l, g.position[i])
			}
		}, func() { m.done(op, OK) })
		return
	}
	op := Op{Kind: Commit, Process: name, Group: "g", Key: l.key, Invoke: m.now, Offset: g.position[i]}
	outcome := []Outcome{OK, OK, Unknown}[m.pick(3)]
	if m.resets && m.pick(20) == 0 {
		op.Reset, op.Offset = true, g.position[i]/2
	}
	done := false
	a.next = append(a.next, func() {
		if done = still(); done {
			g.committed[i] = op.Offset
			if op.Reset {
				g.position[i] = op.Offset
				m.own(i)
				g.generation++ // its position is another: said by a rebalance
			}
		}
	}, func() {
		if !done && outcome == OK {
			outcome = Fail
		}
		m.done(op, outcome)
	})
}

// own records that a partition was owned until now, and is owned from now on.
func (m *model) own(i int) {
	g := &m.group
	m.ops = append(m.ops, Op{Kind: Own, Process: memberName(g.owner[i]), Group: "g", Key: m.logs[i].key, Generation: g.generation, Invoke: g.since[i], Complete: m.now, Outcome: OK})
	g.since[i] = m.now
}

func (m *model) rebalance() {
	g := &m.group
	for i := range m.logs {
		m.own(i)
		g.owner[i] = m.pick(2)
		g.position[i] = max(0, g.committed[i])
	}
	g.generation++
}

// end reads everything, in pieces.
func (m *model) end() {
	for i, l := range m.logs {
		m.own(i)
		m.now++
		for from := l.start; from < l.end || from == l.start; {
			to := min(l.end, from+10)
			op := Op{Kind: Final, Process: "final", Key: l.key, Invoke: m.now + 1, Offset: from, End: to}
			for _, r := range l.records {
				if r.Offset >= from && r.Offset < to {
					op.Records = append(op.Records, r)
				}
			}
			m.now += 2
			m.done(op, OK)
			if from = to; from == l.start {
				break
			}
		}
	}
}
