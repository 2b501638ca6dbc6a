package check_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	. "github.com/tidemarkhq/tidemark/internal/check"
)

// picker draws from a generator of its own: rapid prefers small numbers, and an operation
// that always fails first is no load. What rapid shrinks is the length of the run.
func picker(t *rapid.T) func(int) int {
	return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).IntN
}

// A correct log with clients of all kinds shows no anomaly, and each way of spoiling what it
// recorded is found, under its own name.
func TestACorrectLogIsCleanAndASpoiledOneIsNot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pick := picker(t)
		spoil(t, pick, run(pick, rapid.IntRange(50, 800).Draw(t, "steps")))
	})
}

// The same for some that are known: each mutation finds enough to spoil in them.
func TestEveryMutationIsDone(t *testing.T) {
	done := map[string]int{}
	for seed := range uint64(20) {
		pick := rand.New(rand.NewPCG(seed, 1)).IntN
		for name, n := range spoil(t, pick, run(pick, 800)) {
			done[name] += n
		}
	}
	for _, m := range mutations {
		t.Logf("%s: %d times", m.name, done[m.name])
		if done[m.name] < 5 {
			t.Errorf("%s: done %d times only", m.name, done[m.name])
		}
	}
}

// spoil checks h as it is and with each mutation that can be done.
func spoil(t interface{ Fatalf(string, ...any) }, pick func(int) int, h *History) map[string]int {
	if err := Check(h).Err(nil); err != nil {
		t.Fatalf("correct, and %v", err)
	}
	done := map[string]int{}
	for _, m := range mutations {
		c := clone(h)
		if !m.spoil(pick, c) {
			continue
		}
		done[m.name] = 1
		r := Check(c)
		if m.want == none && r.Total() > 0 || m.want != none && r.Counts[m.want] == 0 {
			t.Fatalf("%s: want %q: %v", m.name, m.want, r.Err(nil))
		}
	}
	return done
}

func clone(h *History) *History {
	c := *h
	c.Ops = slices.Clone(h.Ops)
	for i := range c.Ops {
		c.Ops[i].Records = slices.Clone(c.Ops[i].Records)
		if p := c.Ops[i].Producer; p != nil {
			own := *p
			c.Ops[i].Producer = &own
		}
	}
	return &c
}

// mutation spoils a correct history, or says that it cannot.
type mutation struct {
	name  string
	want  Anomaly
	spoil func(pick func(int) int, h *History) bool
}

// some picks an operation that fits.
func some(pick func(int) int, h *History, fits func(*Op) bool) *Op {
	var all []*Op
	for i := range h.Ops {
		if fits(&h.Ops[i]) {
			all = append(all, &h.Ops[i])
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[pick(len(all))]
}

func acked(op *Op) bool { return op.Kind == Send && op.Outcome == OK }

// starts is the highest log start that any operation on k asked for or saw.
func starts(h *History, k Key) (top int64) {
	for _, op := range h.Ops {
		if op.Key == k && (op.Kind == Trim || op.Kind == LogStart) && op.Outcome != Fail {
			top = max(top, op.Offset)
		}
	}
	return top
}

// kept picks an acknowledged send whose first record has not been trimmed.
func kept(pick func(int) int, h *History, fits func(*Op) bool) *Op {
	return some(pick, h, func(op *Op) bool { return acked(op) && op.Records[0].Offset >= starts(h, op.Key) && fits(op) })
}

func all(*Op) bool { return true }

// finalOf is the final read that holds offset.
func finalOf(h *History, k Key, offset int64) (*Op, int) {
	for i := range h.Ops {
		op := &h.Ops[i]
		if op.Kind != Final || op.Key != k {
			continue
		}
		if j := slices.IndexFunc(op.Records, func(r Record) bool { return r.Offset == offset }); j >= 0 {
			return op, j
		}
	}
	return nil, 0
}

var mutations = []mutation{
	{"an acknowledged record leaves the final read", Lost, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, all)
		if s == nil {
			return false
		}
		f, i := finalOf(h, s.Key, s.Records[0].Offset)
		f.Records = slices.Delete(f.Records, i, i+1)
		return true
	}},
	{"the last acknowledged records leave the log", Lost, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, all)
		if s == nil {
			return false
		}
		cut := s.Records[0].Offset
		h.Ops = slices.DeleteFunc(h.Ops, func(op Op) bool { return op.Kind == Final && op.Key == s.Key && op.Offset > cut })
		f, i := finalOf(h, s.Key, cut)
		f.Records, f.End = f.Records[:i], cut
		return true
	}},
	{"the first acknowledged records leave the log", Lost, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, all)
		if s == nil {
			return false
		}
		cut := s.Records[0].Offset + 1
		h.Ops = slices.DeleteFunc(h.Ops, func(op Op) bool { return op.Kind == Final && op.Key == s.Key && op.End <= cut })
		for i := range h.Ops {
			if op := &h.Ops[i]; op.Kind == Final && op.Key == s.Key && op.Offset < cut {
				op.Offset = cut
				op.Records = slices.DeleteFunc(op.Records, func(r Record) bool { return r.Offset < cut })
			}
		}
		return slices.ContainsFunc(h.Ops, func(op Op) bool { return op.Kind == Final && op.Key == s.Key })
	}},
	{"a record that was only read leaves the final read", Lost, func(pick func(int) int, h *History) bool {
		p := some(pick, h, func(op *Op) bool {
			return op.Kind == Poll && op.Outcome == OK && len(op.Records) > 0 && op.Records[0].Offset >= starts(h, op.Key)
		})
		if p == nil {
			return false
		}
		f, i := finalOf(h, p.Key, p.Records[0].Offset)
		f.Records = slices.Delete(f.Records, i, i+1)
		return true
	}},
	{"the trims are forgotten", Lost, func(_ func(int) int, h *History) bool {
		trimmed := Check(h).Saw[SawTrimmed] > 0
		h.Ops = slices.DeleteFunc(h.Ops, func(op Op) bool { return op.Kind == Trim || op.Kind == LogStart })
		return trimmed
	}},
	{"nobody reads the last record", Unseen, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, all)
		if s == nil {
			return false
		}
		cut := s.Records[0].Offset
		h.Ops = slices.DeleteFunc(h.Ops, func(op Op) bool { return op.Kind == Final && op.Key == s.Key })
		for i := range h.Ops {
			if op := &h.Ops[i]; op.Kind == Poll && op.Key == s.Key {
				op.Records = slices.DeleteFunc(op.Records, func(r Record) bool { return r.Offset >= cut })
			}
		}
		return true
	}},
	{"two values change places in the final read", InconsistentOffsets, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, func(op *Op) bool { return len(op.Records) > 1 })
		if s == nil {
			return false
		}
		a, i := finalOf(h, s.Key, s.Records[0].Offset)
		b, j := finalOf(h, s.Key, s.Records[1].Offset)
		a.Records[i].Value, b.Records[j].Value = b.Records[j].Value, a.Records[i].Value
		return true
	}},
	{"an idempotent record is there again", DuplicateIdempotent, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, func(op *Op) bool { return op.Producer != nil })
		if s == nil {
			return false
		}
		f := lastFinal(h, s.Key)
		f.Records = append(f.Records, Record{Offset: f.End, Value: s.Records[0].Value})
		f.End++
		return true
	}},
	{"a plain record is there again", none, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, func(op *Op) bool { return op.Producer == nil })
		if s == nil {
			return false
		}
		f := lastFinal(h, s.Key)
		f.Records = append(f.Records, Record{Offset: f.End, Value: s.Records[0].Value})
		f.End++
		return true
	}},
	{"an acknowledged send had failed", AbortedRead, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, all)
		if s == nil {
			return false
		}
		for i := range h.Ops {
			if op := &h.Ops[i]; op.Kind == Send && op.Key == s.Key && op.Records[0].Value == s.Records[0].Value {
				op.Outcome = Fail
			}
		}
		return true
	}},
	{"the log holds something else besides", Phantom, func(pick func(int) int, h *History) bool {
		f := some(pick, h, func(op *Op) bool { return op.Kind == Final })
		f.Records = append(f.Records, Record{Offset: f.End, Value: "nobody's"})
		f.End++
		return true
	}},
	{"a poll jumps over a record", PollSkip, func(pick func(int) int, h *History) bool {
		p := some(pick, h, func(op *Op) bool {
			return op.Kind == Poll && op.Group == "" && op.Outcome != Unknown && len(op.Records) > 2 && op.Records[1].Offset >= starts(h, op.Key)
		})
		if p == nil {
			return false
		}
		p.Records = slices.Delete(p.Records, 1, 2)
		return true
	}},
	{"a poll reads a record twice", PollNonmonotonic, func(pick func(int) int, h *History) bool {
		p := some(pick, h, func(op *Op) bool { return op.Kind == Poll && op.Group == "" && op.Outcome == OK && len(op.Records) > 0 })
		if p == nil {
			return false
		}
		p.Records = append(p.Records, p.Records[len(p.Records)-1])
		return true
	}},
	{"a poll is repeated", PollNonmonotonic, func(pick func(int) int, h *History) bool {
		p := some(pick, h, func(op *Op) bool { return op.Kind == Poll && op.Group == "" && op.Outcome == OK && len(op.Records) > 0 })
		if p == nil {
			return false
		}
		var next *Op
		for i, after := 0, false; i < len(h.Ops) && next == nil; i++ {
			op := &h.Ops[i]
			if after && op.Process == p.Process {
				next = op
			}
			after = after || op == p
		}
		if next == nil || next.Kind != Poll || next.Outcome != OK {
			return false
		}
		next.Records = slices.Clone(p.Records)
		return true
	}},
	{"two idempotent sends land in reverse", SendNonmonotonic, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, func(op *Op) bool { return op.Producer != nil && len(op.Records) == 1 })
		if s == nil {
			return false
		}
		later := some(pick, h, func(op *Op) bool {
			return acked(op) && op.Key == s.Key && op.Process == s.Process && op.Producer.Epoch == s.Producer.Epoch &&
				op.Producer.Seq > s.Producer.Seq && len(op.Records) == 1
		})
		if later == nil {
			return false
		}
		exchange(h, s, later)
		return true
	}},
	{"two sends land against real time", RealtimeOrder, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, func(op *Op) bool { return len(op.Records) == 1 })
		if s == nil {
			return false
		}
		later := some(pick, h, func(op *Op) bool {
			return acked(op) && op.Key == s.Key && op.Invoke > s.Complete && len(op.Records) == 1 && once(h, op)
		})
		if later == nil || !once(h, s) {
			return false
		}
		exchange(h, s, later)
		return true
	}},
	{"the end of the log is stale", StaleLatest, func(pick func(int) int, h *History) bool {
		l := some(pick, h, func(op *Op) bool { return op.Kind == Latest })
		if l == nil {
			return false
		}
		top := NoOffset
		for _, op := range h.Ops {
			if acked(&op) && op.Key == l.Key && op.Complete < l.Invoke {
				top = max(top, op.Records[len(op.Records)-1].Offset)
			}
		}
		l.Offset = top
		return top != NoOffset
	}},
	{"the log start goes back", LogStartRegress, func(pick func(int) int, h *History) bool {
		l := some(pick, h, func(op *Op) bool {
			return op.Kind == LogStart && slices.ContainsFunc(h.Ops, func(o Op) bool {
				return o.Key == op.Key && o.Kind == Trim && o.Outcome == OK && o.Complete < op.Invoke && o.Offset > 0
			})
		})
		if l == nil {
			return false
		}
		l.Offset = 0
		return true
	}},
	{"a committed position goes back", CommitRegress, func(pick func(int) int, h *History) bool {
		if slices.ContainsFunc(h.Ops, func(op Op) bool { return op.Reset }) {
			return false
		}
		l := some(pick, h, func(op *Op) bool {
			return op.Kind == Committed && slices.ContainsFunc(h.Ops, func(o Op) bool {
				return o.Key == op.Key && o.Kind == Commit && o.Outcome == OK && o.Complete < op.Invoke && o.Offset >= 0
			})
		})
		if l == nil {
			return false
		}
		l.Offset = NoOffset
		return true
	}},
	{"a committed record was not read", CommitAhead, func(pick func(int) int, h *History) bool {
		if slices.ContainsFunc(h.Ops, func(op Op) bool { return op.Reset }) {
			return false
		}
		l := some(pick, h, func(op *Op) bool { return op.Kind == Committed && op.Offset > starts(h, op.Key) })
		if l == nil {
			return false
		}
		gone := NoOffset
		for i := range h.Ops {
			if op := &h.Ops[i]; op.Kind == Poll && op.Group != "" && op.Key == l.Key {
				for _, r := range op.Records {
					if r.Offset < l.Offset && r.Offset >= starts(h, l.Key) {
						gone = r.Offset
					}
				}
			}
		}
		for i := range h.Ops {
			if op := &h.Ops[i]; op.Kind == Poll && op.Group != "" && op.Key == l.Key {
				op.Records = slices.DeleteFunc(op.Records, func(r Record) bool { return r.Offset == gone })
			}
		}
		return gone != NoOffset
	}},
	{"two members own a partition", DoubleOwner, func(pick func(int) int, h *History) bool {
		o := some(pick, h, func(op *Op) bool { return op.Kind == Own })
		other := *o
		other.Process = "another"
		h.Ops = append(h.Ops, other)
		return true
	}},
	{"a member keeps a partition for too long", DoubleOwner, func(pick func(int) int, h *History) bool {
		o := some(pick, h, func(op *Op) bool {
			return op.Kind == Own && slices.ContainsFunc(h.Ops, func(n Op) bool {
				return n.Kind == Own && n.Key == op.Key && n.Generation == op.Generation+1 && n.Process != op.Process
			})
		})
		if o == nil {
			return false
		}
		o.Through = o.Generation + 1
		return true
	}},
	{"a fenced producer writes", ZombieWrite, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, func(op *Op) bool {
			return op.Producer != nil && once(h, op) && slices.ContainsFunc(h.Ops, func(o Op) bool {
				return o.Kind == Fence && o.Producer.ID == op.Producer.ID && o.Producer.Epoch == op.Producer.Epoch && o.Complete < op.Invoke
			})
		})
		if s == nil {
			return false
		}
		s.Producer.Epoch--
		return true
	}},
	{"a sequence disappears", SequenceGap, func(pick func(int) int, h *History) bool {
		s := kept(pick, h, func(op *Op) bool {
			if op.Producer == nil || !once(h, op) {
				return false
			}
			side := func(after bool) bool {
				return slices.ContainsFunc(h.Ops, func(o Op) bool {
					return acked(&o) && o.Key == op.Key && o.Producer != nil && o.Producer.ID == op.Producer.ID && o.Producer.Epoch == op.Producer.Epoch &&
						o.Producer.Seq != op.Producer.Seq && o.Producer.Seq > op.Producer.Seq == after && o.Records[0].Offset >= starts(h, op.Key)
				})
			}
			return side(false) && side(true)
		})
		if s == nil {
			return false
		}
		gone := slices.Clone(s.Records)
		for i := range h.Ops {
			if op := &h.Ops[i]; op.Key == s.Key && (op.Kind == Poll || op.Kind == Final) {
				op.Records = slices.DeleteFunc(op.Records, func(r Record) bool { return slices.Contains(gone, r) })
			}
		}
		s.Outcome = Unknown
		return true
	}},
}

func lastFinal(h *History, k Key) (last *Op) {
	for i := range h.Ops {
		if op := &h.Ops[i]; op.Kind == Final && op.Key == k {
			last = op
		}
	}
	return last
}

// once says that nothing else was sent under the first value of op.
func once(h *History, op *Op) bool {
	n := 0
	for _, o := range h.Ops {
		if o.Kind == Send && o.Key == op.Key && o.Records[0].Value == op.Records[0].Value {
			n++
		}
	}
	return n == 1
}

// exchange has two acknowledged sends of one record stand in each other's place, for everybody.
func exchange(h *History, a, b *Op) {
	x, y := a.Records[0], b.Records[0]
	for i := range h.Ops {
		op := &h.Ops[i]
		if op.Key != a.Key || op.Kind != Send && op.Kind != Poll && op.Kind != Final {
			continue
		}
		for j := range op.Records {
			switch r := &op.Records[j]; {
			case op.Kind == Send && *r == x:
				r.Offset = y.Offset
			case op.Kind == Send && *r == y:
				r.Offset = x.Offset
			case r.Offset == x.Offset:
				r.Value = y.Value
			case r.Offset == y.Offset:
				r.Value = x.Value
			}
		}
	}
}
