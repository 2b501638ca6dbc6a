package partition

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// shelf is a store without Raft: the test plays Raft.
type shelf struct {
	t testing.TB
	*store
	next, term uint64
	commits    atomic.Uint64
}

func newShelf(t testing.TB, change func(*TopicConfig)) *shelf {
	t.Helper()
	l, _, err := log.Open(log.Config{Dir: "/p", FS: sim.New(), SegmentBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var topic atomic.Pointer[TopicConfig]
	c := TopicConfig{}
	if change != nil {
		change(&c)
	}
	topic.Store(c.withDefaults())
	s := &shelf{t: t, next: 1, term: 1}
	ps := newProposals(1024, answers{isr: alone{}, log: l})
	s.store = &store{log: l, clock: clock.NewManual(time.UnixMilli(1_000_000)), limits: releaseLimits, proposals: ps, topic: &topic,
		commit: func() log.Index { return log.Index(s.commits.Load()) }, began: clock.Monotonic(), state: newState(releaseLimits)}
	ps.lead(1, true)
	return s
}

// propose makes the command of an append as Replica.Append does, and queues it.
func (s *shelf) propose(b record.Raw, m meta) (*Pending, *raft.Log) {
	s.t.Helper()
	p := &Pending{done: make(chan struct{}), records: b.Count(), expect: m.expect, claim: claimOf(b)}
	data := append(make([]byte, metaBytes), b...)
	m.kind = kindBatch
	if err := s.proposals.reserve(s.t.Context(), 0); err != nil {
		s.t.Fatal(err)
	}
	if err := s.proposals.enter(p); err != nil {
		s.t.Fatal(err)
	}
	m.put(data)
	putProposal(data, p.number)
	return p, &raft.Log{Type: raft.LogCommand, Data: data}
}

// keep stores entries under the next indexes, in the current term.
func (s *shelf) keep(logs ...*raft.Log) error {
	for _, l := range logs {
		l.Index, l.Term = s.next, s.term
		s.next++
	}
	return s.StoreLogs(logs)
}

func (s *shelf) mustKeep(logs ...*raft.Log) {
	s.t.Helper()
	if err := s.keep(logs...); err != nil {
		s.t.Fatal(err)
	}
}

// commitAll tells the proposals that all entries are applied.
func (s *shelf) commitAll() {
	for i := s.commits.Load() + 1; i < s.next; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			s.t.Fatal(err)
		}
		s.proposals.applied(log.Index(i), log.Term(l.Term))
	}
	s.commits.Store(s.next - 1)
}

func (s *shelf) metaAt(i uint64) meta {
	s.t.Helper()
	var l raft.Log
	if err := s.GetLog(i, &l); err != nil {
		s.t.Fatal(err)
	}
	m, err := parseMeta(l.Data)
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

func result(t testing.TB, p *Pending) (Appended, error) {
	t.Helper()
	select {
	case <-p.Done():
		return p.result, p.err
	default:
		t.Fatal("there is no answer")
		return Appended{}, nil
	}
}

func TestVerdictsFallInLogOrder(t *testing.T) {
	s := newShelf(t, nil)
	p1, l1 := s.propose(batch("a", "b"), meta{conditional: true, expect: 0})
	p2, l2 := s.propose(batch("c"), meta{conditional: true, expect: 0})
	p3, l3 := s.propose(batch("d"), meta{conditional: true, expect: 2})
	p4, l4 := s.propose(numbered(5, 0, 0, "e"), meta{})
	p5, l5 := s.propose(numbered(5, 0, 0, "e"), meta{conditional: true, expect: 99})
	s.mustKeep(l1, l2, l3, l4, l5)
	select {
	case <-p2.Done():
		t.Fatal("a refusal was answered before it committed")
	default:
	}
	s.commitAll()
	for p, want := range map[*Pending]record.Offset{p1: 0, p3: 2, p4: 3, p5: 3} {
		if a, err := result(t, p); err != nil || a.BaseOffset != want || a.Duplicate != (p == p5) {
			t.Fatalf("want offset %d, got %+v, %v", want, a, err)
		}
	}
	var expectation *ExpectationError
	if _, err := result(t, p2); !errors.As(err, &expectation) || expectation.Actual != 2 || errs.CodeOf(err) != errs.ExpectationFailed || errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	if s.log.EndOffset() != 4 || s.log.LastIndex() != 5 {
		t.Fatalf("the log ends at offset %d, entry %d", s.log.EndOffset(), s.log.LastIndex())
	}
}

// Raft's queue outlives terms: a request that was taken in term 1 is stored in term 3, behind
// another leader's entries. Its verdict must be that of the log it lands in.
func TestRequestsThatOutliveTheirTerm(t *testing.T) {
	s := newShelf(t, nil)
	stale, lStale := s.propose(batch("stale"), meta{conditional: true, expect: 0})
	dup, lDup := s.propose(numbered(8, 0, 0, "x"), meta{})

	// Another replica leads in term 2. Its entries are stamped.
	other := newShelf(t, nil)
	other.term = 2
	_, o1 := other.propose(numbered(8, 0, 0, "x"), meta{})
	other.mustKeep(o1)
	s.term = 2
	s.mustKeep(&raft.Log{Type: raft.LogCommand, Data: slices.Clone(o1.Data)})

	// Here the leadership was lost and won again before anybody was told: the
	// proposals are still queued and get their verdicts in the log as it is.
	s.term = 3
	s.mustKeep(lStale, lDup)
	s.commitAll()
	if _, err := result(t, stale); errs.CodeOf(err) != errs.ExpectationFailed {
		t.Fatalf("stale expectation: %v", err)
	}
	if a, err := result(t, dup); err != nil || !a.Duplicate || a.BaseOffset != 0 || a.Epoch != 2 {
		t.Fatalf("duplicate of another leader's entry: %+v, %v", a, err)
	}

	// Here the end of the term came first: the proposer was told that nothing
	// happened, and whatever Raft hands over later changes nothing.
	gone, lGone := s.propose(batch("gone"), meta{})
	s.proposals.lead(1, false)
	if _, err := result(t, gone); errs.CodeOf(err) != errs.NotLeaderOrFollower || errs.OutcomeUnknown(err) {
		t.Fatalf("withdrawn: %v", err)
	}
	s.proposals.lead(5, true)
	s.term = 5
	s.mustKeep(lGone)
	if m := s.metaAt(s.next - 1); m.verdict != withdrawn || s.log.EndOffset() != 1 {
		t.Fatalf("stored as %+v, log ends at %d", m, s.log.EndOffset())
	}
}

func TestStoredProposalsOfAnEndedTermAreUnknown(t *testing.T) {
	s := newShelf(t, nil)
	p, l := s.propose(batch("a"), meta{})
	s.mustKeep(l)
	s.proposals.lead(1, false)
	if _, err := result(t, p); errs.CodeOf(err) != errs.NotLeaderOrFollower || !errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
}

// A leader that is handing over its leadership turns requests away without a word.
func TestProposalsThatRaftTurnedAwayAreNotDone(t *testing.T) {
	s := newShelf(t, nil)
	lost, _ := s.propose(batch("a"), meta{})
	kept, l := s.propose(batch("b"), meta{})
	s.mustKeep(l)
	s.commitAll()
	if _, err := result(t, lost); errs.CodeOf(err) != errs.NotLeaderOrFollower || errs.OutcomeUnknown(err) {
		t.Fatalf("got %v", err)
	}
	if a, err := result(t, kept); err != nil || a.BaseOffset != 0 {
		t.Fatalf("got %+v, %v", a, err)
	}
	if n := len(s.proposals.slots); n != 0 {
		t.Fatalf("%d places are still taken", n)
	}
}

// follow copies leader's entries to follower as AppendEntries does.
func follow(leader, follower *shelf, change func(i uint64, l *raft.Log)) error {
	for i := follower.next; i < leader.next; i++ {
		var l raft.Log
		if err := leader.GetLog(i, &l); err != nil {
			return err
		}
		l.Data = slices.Clone(l.Data)
		if change != nil {
			change(i, &l)
		}
		follower.next++
		if err := follower.StoreLogs([]*raft.Log{&l}); err != nil {
			return err
		}
	}
	return nil
}

func TestReplicasOfOneLogHaveOneState(t *testing.T) {
	rng, _ := seeded(t)
	leader, follower := newShelf(t, nil), newShelf(t, nil)
	leader.mustKeep(&raft.Log{Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{})})
	leader.mustKeep(&raft.Log{Type: raft.LogNoop})
	for range 400 {
		var logs []*raft.Log
		for range 1 + rng.IntN(5) {
			b := batch(names("v", 1+rng.IntN(3))...)
			if rng.IntN(3) > 0 {
				b.SetProducer(rng.Int64N(9), int16(rng.IntN(2)), rng.Int32N(6))
			}
			_, l := leader.propose(b, meta{conditional: rng.IntN(4) == 0, expect: leader.state.end + record.Offset(rng.IntN(2))})
			logs = append(logs, l)
		}
		leader.mustKeep(logs...)
	}
	if err := follow(leader, follower, nil); err != nil {
		t.Fatal(err)
	}
	if leader.state.hash() != follower.state.hash() {
		t.Fatal("leader and follower differ")
	}
	sidecar, from := follower.log.ActiveState()
	again, err := replay(follower.log, sidecar, from, releaseLimits)
	if err != nil || again.hash() != leader.state.hash() {
		t.Fatalf("replay differs: %v", err)
	}
	if follower.log.Stats().Segments < 2 {
		t.Fatal("the log never rolled: the test shows nothing about sidecars")
	}
}

func TestFollowersStopOnADifference(t *testing.T) {
	for name, change := range map[string]func(m *meta, l *raft.Log){
		"another base offset":    func(m *meta, _ *raft.Log) { m.offset++ },
		"another verdict":        func(m *meta, l *raft.Log) { m.verdict = refused; m.code = 45; l.Data = l.Data[:metaBytes+claimBytes] },
		"no verdict":             func(m *meta, _ *raft.Log) { m.verdict = log.Void },
		"log time goes back":     func(m *meta, _ *raft.Log) { m.time -= 10 },
		"a damaged batch":        func(_ *meta, l *raft.Log) { l.Data[len(l.Data)-1] ^= 1 },
		"the batch's own offset": func(_ *meta, l *raft.Log) { record.Raw(l.Data[metaBytes:]).SetBaseOffset(77) },
		"the batch's own epoch":  func(_ *meta, l *raft.Log) { record.Raw(l.Data[metaBytes:]).SetLeaderEpoch(77) },
	} {
		t.Run(name, func(t *testing.T) {
			leader, follower := newShelf(t, nil), newShelf(t, nil)
			follower.proposals.lead(1, false)
			_, l1 := leader.propose(batch("a"), meta{})
			_, l2 := leader.propose(batch("b"), meta{})
			leader.mustKeep(l1, l2)
			err := follow(leader, follower, func(i uint64, l *raft.Log) {
				if i != 2 {
					return
				}
				m, _ := parseMeta(l.Data)
				change(&m, l)
				m.put(l.Data)
			})
			if err == nil || follower.next != 3 {
				t.Fatalf("accepted: %v", err)
			}
			if again := follower.keep(&raft.Log{Type: raft.LogNoop}); again == nil {
				t.Fatal("goes on after a difference")
			}
		})
	}
}

func TestTruncationRebuildsTheState(t *testing.T) {
	rng, _ := seeded(t)
	for range 20 {
		s := newShelf(t, nil)
		hashes := []uint64{s.state.hash()}
		for range 100 {
			b := numbered(rng.Int64N(4), 0, rng.Int32N(4), strings.Repeat("x", 2000))
			_, l := s.propose(b, meta{})
			s.mustKeep(l)
			hashes = append(hashes, s.state.hash())
		}
		from := 1 + rng.Uint64N(100)
		if from == 1 {
			from = 2
		}
		if err := s.DeleteRange(from, 100); err != nil {
			t.Fatal(err)
		}
		if s.state.hash() != hashes[from-1] {
			t.Fatalf("after the truncation at %d the state is another", from)
		}
		if n := s.proposals.stored.len(); n != int(from-1) {
			t.Fatalf("%d proposals are left, want %d", n, from-1)
		}
		s.next, s.term = from, 2
		_, l := s.propose(batch("new"), meta{})
		s.mustKeep(l)
	}
}

func TestCommittedEntriesAreNeverTruncated(t *testing.T) {
	s := newShelf(t, nil)
	for range 5 {
		_, l := s.propose(batch("a"), meta{})
		s.mustKeep(l)
	}
	s.commitAll()
	if err := s.DeleteRange(5, 5); errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("got %v", err)
	}
}

func TestManyLargeBatchesAtOnceFillSeveralSegments(t *testing.T) {
	s := newShelf(t, func(c *TopicConfig) { c.SegmentBytes = 64 << 10 })
	b := batch(strings.Repeat("x", 200_000))
	var logs []*raft.Log
	for range 60 {
		_, l := s.propose(b, meta{})
		logs = append(logs, l)
	}
	s.mustKeep(logs...)
	if n := s.log.Stats().Segments; n != 60 {
		t.Fatalf("%d segments", n)
	}
	sidecar, from := s.log.ActiveState()
	if again, err := replay(s.log, sidecar, from, releaseLimits); err != nil || again.hash() != s.state.hash() {
		t.Fatalf("replay differs: %v", err)
	}
}

func TestPrefixDeletionIsOnlyAHint(t *testing.T) {
	s := newShelf(t, nil)
	for range 5 {
		_, l := s.propose(batch("a"), meta{})
		s.mustKeep(l)
	}
	if err := s.DeleteRange(1, 3); err != nil {
		t.Fatal(err)
	}
	if first, _ := s.FirstIndex(); first != 1 {
		t.Fatalf("first index is %d", first)
	}
	var l raft.Log
	if err := s.GetLog(99, &l); err != raft.ErrLogNotFound { // Raft compares
		t.Fatalf("got %v", err)
	}
}

func TestAcksLeaderIsAnsweredWhenDurable(t *testing.T) {
	for flush, durable := range map[string]bool{flushCommit: true, flushOS: false, flushInterval: false} {
		t.Run(flush, func(t *testing.T) {
			s := newShelf(t, func(c *TopicConfig) { c.Flush = flush })
			s.mustKeep(&raft.Log{Type: raft.LogNoop})
			p, l := s.propose(batch("a"), meta{})
			p.acks = AcksLeader
			refusal, l2 := s.propose(batch("b"), meta{conditional: true, expect: 7})
			refusal.acks = AcksLeader
			s.mustKeep(l, l2)
			if a, err := result(t, p); err != nil || a.Acked != AcksLeader || a.Durable != durable {
				t.Fatalf("got %+v, %v", a, err)
			}
			if _, err := result(t, refusal); errs.CodeOf(err) != errs.ExpectationFailed {
				t.Fatalf("got %v", err)
			}
			if err := s.flush(); err != nil || s.log.Durable() != 3 {
				t.Fatalf("after a flush: durable %d, %v", s.log.Durable(), err)
			}
		})
	}
}

func TestConfigurationEntriesAreDurableInEveryMode(t *testing.T) {
	s := newShelf(t, func(c *TopicConfig) { c.Flush = flushOS })
	_, l := s.propose(batch("a"), meta{})
	s.mustKeep(l)
	s.mustKeep(&raft.Log{Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{})})
	if s.log.Durable() != 2 {
		t.Fatalf("durable through %d", s.log.Durable())
	}
	if s.state.configIndex != 2 {
		t.Fatalf("configuration at %d", s.state.configIndex)
	}
}

func TestLogAppendTimeNeverGoesBack(t *testing.T) {
	s := newShelf(t, func(c *TopicConfig) { c.LogAppendTime = true })
	clk := s.clock.(*clock.Manual)
	var last int64
	for i := range 10 {
		clk.Advance(time.Duration(i%3-1) * 7 * time.Second) // back and forth
		p, l := s.propose(batch("a"), meta{})
		p.appendAt = true
		s.mustKeep(l)
		s.commitAll()
		a, err := result(t, p)
		if err != nil || a.LogAppendTime < last || a.LogAppendTime == -1 {
			t.Fatalf("got %+v, %v after %d", a, err, last)
		}
		last = a.LogAppendTime
		b, err := record.Check(l.Data[metaBytes:])
		if err != nil || b.MaxTimestamp() != last || b.TimestampType() != record.LogAppendTime {
			t.Fatalf("batch %v: %v", b, err)
		}
	}
}
