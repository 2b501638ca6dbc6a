package partition

import (
	"bytes"
	"fmt"
	"hash/fnv"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// state is what verdicts are taken from. It is a function of the stored log
// alone, its uncommitted tail included: two replicas whose logs end alike have
// the same state, and replaying a log gives the state that its writer had.
// Nothing here may read a clock, a configuration of this broker, or anything
// else that another replica does not see.
type state struct {
	index log.Index // of the last entry
	term  log.Term
	end   record.Offset // log end offset
	start record.Offset // highest log start that a stored trim asks for
	time  int64         // log time, see meta.time
	// config is the last configuration entry, as Raft encodes it; nil before the first.
	config      []byte
	configIndex log.Index
	producers   producers
	// encoded is the encoding of a frozen copy, whose producers are empty.
	encoded []byte
}

func newState(l limits) *state { return &state{producers: newProducers(l)} }

// ruling is the verdict on one command and what goes with it.
type ruling struct {
	verdict log.Verdict
	code    errs.Code
	offset  record.Offset
	time    int64 // log time of the batch: of the original where this is a duplicate
}

// advance moves log time to the time that is stamped into the next entry. It
// comes before the judgement: producers that have expired by then are unknown.
func (s *state) advance(now int64) {
	s.time = now
	s.producers.expire(now)
}

// judge decides on a batch. Duplicates are found first: a conditional append
// that comes again is answered as the first time, although the end has moved on since.
func (s *state) judge(m meta, c claim) ruling {
	if c.producer >= 0 {
		dup, known, code := s.producers.judge(c, s.end)
		if known {
			return ruling{verdict: duplicate, offset: dup.base, time: dup.time}
		}
		if code != errs.None {
			return ruling{verdict: refused, code: code, offset: s.end, time: s.time}
		}
	}
	if m.conditional && m.expect != s.end {
		return ruling{verdict: refused, code: errs.ExpectationFailed, offset: s.end, time: s.time}
	}
	return ruling{verdict: log.Accepted, offset: s.end, time: s.time}
}

// accept appends a batch of so many records.
func (s *state) accept(c claim, records int32) {
	if c.producer >= 0 {
		s.producers.add(c, s.end, s.time)
	}
	s.end += record.Offset(records)
}

// passed notes that an entry was stored. It comes last.
func (s *state) passed(index log.Index, term log.Term) { s.index, s.term = index, term }

// configured notes a configuration entry.
func (s *state) configured(index log.Index, encoded []byte) {
	s.configIndex, s.config = index, bytes.Clone(encoded)
}

// follow takes over an entry that was stored before, here or at the leader,
// and fails where this state would have led to another verdict. Then the state is spoilt.
func (s *state) follow(e log.Entry) error {
	if s.index != 0 && e.Index != s.index+1 {
		return fmt.Errorf("entry %d follows entry %d", e.Index, s.index)
	}
	if e.Term < s.term {
		return fmt.Errorf("entry %d has term %d, the one before has %d", e.Index, e.Term, s.term)
	}
	switch raft.LogType(e.Type) {
	case raft.LogCommand:
		if err := s.followCommand(e); err != nil {
			return fmt.Errorf("entry %d of term %d: %w", e.Index, e.Term, err)
		}
	case raft.LogConfiguration:
		s.configured(e.Index, e.Body)
	}
	s.passed(e.Index, e.Term)
	return nil
}

func (s *state) followCommand(e log.Entry) error {
	m, err := parseMeta(e.Body)
	if err != nil {
		return err
	}
	if m.verdict == log.Void || m.verdict != e.Verdict {
		return fmt.Errorf("command has verdict %d, its frame has %d", m.verdict, e.Verdict)
	}
	if m.time < s.time {
		return fmt.Errorf("log time goes back from %d to %d", s.time, m.time)
	}
	s.advance(m.time)
	payload := e.Body[metaBytes:]
	switch m.verdict {
	case withdrawn, trimmed:
		if m.offset != s.end || (m.verdict == trimmed && m.expect > s.end) {
			return fmt.Errorf("stamped at log end %d, trims to %d; our log ends at %d", m.offset, m.expect, s.end)
		}
		if m.verdict == trimmed {
			s.start = max(s.start, m.expect)
		}
		return nil
	case log.Accepted:
		return s.followBatch(e, m, record.Raw(payload))
	}
	return s.agree(m, s.judge(m, readClaim(payload)))
}

func (s *state) followBatch(e log.Entry, m meta, b record.Raw) error {
	c := claimOf(b)
	if err := s.agree(m, s.judge(m, c)); err != nil {
		return err
	}
	if b.BaseOffset() != m.offset || b.LeaderEpoch() != record.Epoch(e.Term) {
		return fmt.Errorf("batch is stamped with offset %d and epoch %d, its envelope with %d and %d", b.BaseOffset(), b.LeaderEpoch(), m.offset, e.Term)
	}
	if n := b.Count(); n < 1 || n != b.LastOffsetDelta()+1 {
		return fmt.Errorf("batch of %d records has a last offset delta of %d", n, b.LastOffsetDelta())
	}
	if bug.On(bug.DedupeLeaderOnly) {
		c.producer = -1
	}
	s.accept(c, b.Count())
	return nil
}

// agree compares a stamp with our own ruling.
func (s *state) agree(m meta, r ruling) error {
	if m.verdict != r.verdict || m.code != r.code || m.offset != r.offset {
		return fmt.Errorf("stamped with verdict %d, code %d, offset %d; this replica finds %d, %d, %d",
			m.verdict, m.code, m.offset, r.verdict, r.code, r.offset)
	}
	return nil
}

// hash is equal for equal states.
func (s *state) hash() uint64 {
	h := fnv.New64a()
	_, _ = h.Write(s.encode())
	return h.Sum64()
}
