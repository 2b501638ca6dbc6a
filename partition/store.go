package partition

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// maxWriteBytes is about what is written at once, however much Raft hands over.
const maxWriteBytes = 16 << 20

// store is the raft.LogStore of a data group: the Raft log is the partition log.
//
// StoreLogs takes the verdicts, in log order: a command that no leader has
// stored yet is judged and stamped, one that was stored elsewhere is
// compared with our own ruling. An error of any method but "not found" is
// final; raftgroup fences the group with it.
type store struct {
	log       *log.Log
	clock     clock.Clock
	limits    limits
	proposals *proposals
	topic     *atomic.Pointer[TopicConfig]
	commit    func() log.Index // what is known to be committed
	isr       *tracker         // nil: none has to know
	due       checkpointDue
	began     clock.Mono   // what busy counts from
	busy      atomic.Int64 // when the disk call under way began; 0: none

	// mu is the append lock: it is held across disk calls, and nothing else is locked
	// inside but the proposals' lock.
	mu      sync.Mutex
	state   *state      // guarded by mu; of all entries that were passed to the log
	scratch []log.Entry // guarded by mu
	times   logClock    // guarded by mu
	stamp   int64       // guarded by mu; last LogAppendTime, which never goes back
	failed  error       // guarded by mu; nothing is stored after the first failure
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. It returns when the entries are durable, or
// written, as the topic's flush mode has it.
func (s *store) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	ours, err := s.storeLocked(logs)
	if err != nil {
		s.failed = err
		return err
	}
	failpoint.Hit("partition/store/stored")
	if s.isr != nil {
		s.isr.stored(logs)
	}
	if ours {
		s.proposals.written(s.log.Durable() >= s.state.index)
	}
	return nil
}

func (s *store) storeLocked(logs []*raft.Log) (ours bool, err error) {
	topic := s.topic.Load()
	entries, bytes := s.scratch[:0], 0
	sync := topic.Flush == flushCommit
	limit := topic.writeBytes()
	for _, l := range logs {
		// First a long write ends, then the segment is looked at again: it is never found full while empty.
		for roll := s.log.NeedsRoll(bytes + len(l.Data)); roll || bytes >= limit; roll = s.log.NeedsRoll(len(l.Data)) {
			if err := s.makeRoom(entries, roll); err != nil {
				return false, err
			}
			s.due.add(len(entries), bytes)
			entries, bytes = entries[:0], 0
		}
		e, own, err := s.admit(l, topic)
		if err != nil {
			return false, err
		}
		entries = append(entries, e)
		bytes += len(e.Body)
		ours = ours || own
		// Raft's own entries are durable in every mode: a configuration that
		// a crash takes back could leave two disjoint majorities.
		sync = sync || l.Type != raft.LogCommand
	}
	s.due.add(len(entries), bytes)
	err = s.write(entries, sync)
	clear(entries)
	s.scratch = entries[:0]
	s.due.consider(s.state)
	return ours, err
}

// admit turns what Raft hands over into what the log stores, and moves the state on.
func (s *store) admit(l *raft.Log, topic *TopicConfig) (e log.Entry, ours bool, err error) {
	e = log.Entry{
		Index:      log.Index(l.Index),
		Term:       log.Term(l.Term),
		Type:       log.EntryType(l.Type),
		BaseOffset: s.state.end,
		Body:       l.Data,
		AppendedAt: millis(l.AppendedAt),
	}
	if l.Type != raft.LogCommand {
		return e, false, s.state.follow(e)
	}
	m, err := parseMeta(l.Data)
	if err != nil {
		return e, false, fmt.Errorf("entry %d of term %d: %w", l.Index, l.Term, err)
	}
	if ours = m.verdict == log.Void; ours {
		if !s.proposals.ours(uint64(m.time)) {
			return e, false, errs.Errorf(errs.ReplicaQuarantined, "entry %d of term %d came without a verdict from another replica", l.Index, l.Term)
		}
		m = s.decide(l, m, topic)
	}
	e.Verdict, e.Body, e.MetaBytes = m.verdict, l.Data, metaBytes
	if ours {
		return e, true, nil
	}
	s.times.learn(m.time)
	return e, false, s.verify(l, m, e)
}

// verify is a follower's part: the batch is whole, and we would have decided alike.
func (s *store) verify(l *raft.Log, m meta, e log.Entry) error {
	if m.verdict == log.Accepted {
		if _, err := record.Check(l.Data[metaBytes:]); err != nil {
			return fmt.Errorf("entry %d of term %d came damaged from the leader: %w", l.Index, l.Term, err)
		}
	}
	if err := s.state.follow(e); err != nil {
		return errs.Errorf(errs.ReplicaQuarantined, "this replica and the leader disagree; it must be replaced: %w", err)
	}
	return nil
}

// decide is the leader's part: it rules on a command, stamps it in place, and
// tells the proposal. Raft hands the entry on to followers and to the state
// machine only after StoreLogs has returned.
func (s *store) decide(l *raft.Log, m meta, topic *TopicConfig) meta {
	p := s.proposals.take(uint64(m.time), log.Index(l.Index), log.Term(l.Term))
	wall := millis(s.clock.Now())
	s.state.advance(max(s.state.time, s.times.now(wall)))
	s.stamp = max(s.stamp, s.state.time, wall)
	m.time, m.offset = s.state.time, s.state.end
	if p == nil && bug.On(bug.ZombieRequest) {
		p = &Pending{}
	}
	switch {
	case p == nil:
		// The proposer gave up before this was stored: Raft's queue outlives terms.
		// It was told that nothing happened, so nothing does.
		m.verdict, m.conditional, m.expect = withdrawn, false, 0
		l.Data = l.Data[:metaBytes:metaBytes]
	case m.kind == kindTrim:
		m.verdict = trimmed
		s.state.start = max(s.state.start, m.expect)
		p.rule(ruling{verdict: trimmed, offset: m.offset, time: m.time})
	default:
		m = s.decideBatch(l, m, p, topic)
	}
	m.put(l.Data)
	s.state.passed(log.Index(l.Index), log.Term(l.Term))
	return m
}

func (s *store) decideBatch(l *raft.Log, m meta, p *Pending, topic *TopicConfig) meta {
	b := record.Raw(l.Data[metaBytes:])
	c := claimOf(b)
	r := s.state.judge(m, c)
	p.rule(r)
	m.verdict, m.code, m.offset = r.verdict, r.code, r.offset
	if r.verdict != log.Accepted {
		l.Data = l.Data[: metaBytes+claimBytes : metaBytes+claimBytes]
		c.put(l.Data[metaBytes:])
		return m
	}
	if topic.LogAppendTime {
		b.SetLogAppendTime(s.stamp)
		r.time = s.stamp
		p.rule(r)
	}
	b.SetBaseOffset(m.offset)
	b.SetLeaderEpoch(record.Epoch(l.Term))
	s.state.accept(c, b.Count())
	return m
}

// writeBytes is where one write ends and the log may roll.
func (c *TopicConfig) writeBytes() int {
	if c.SegmentBytes > 0 {
		return int(min(c.SegmentBytes, maxWriteBytes))
	}
	return maxWriteBytes
}

func (s *store) makeRoom(waiting []log.Entry, roll bool) error {
	if roll {
		return s.roll(waiting)
	}
	return s.write(waiting, false)
}

// roll writes what is waiting and starts the next segment, whose sidecar
// holds the state at exactly this index.
func (s *store) roll(waiting []log.Entry) error {
	if err := s.write(waiting, false); err != nil {
		return err
	}
	s.onDisk()
	defer s.offDisk()
	return s.log.Roll(s.state.encode())
}

func (s *store) write(entries []log.Entry, sync bool) error {
	s.onDisk()
	defer s.offDisk()
	if len(entries) > 0 {
		if err := s.log.Write(entries, s.commit()); err != nil {
			return err
		}
	}
	if !sync {
		return nil
	}
	return s.log.Sync()
}

// flush makes what was written durable.
func (s *store) flush() error {
	if s.log.Durable() >= s.log.LastIndex() {
		return nil
	}
	return s.flushAll()
}

// flushAll waits, unlike flush, for what is being written: it may be written without a sync.
func (s *store) flushAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	if err := s.write(nil, true); err != nil {
		s.failed = err
		return err
	}
	return nil
}

// now is a frozen copy of the state at the end of the log; nil after a failure, and while
// something is being stored, which may take as long as the disk hangs.
func (s *store) now() *state {
	if !s.mu.TryLock() {
		return nil
	}
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil
	}
	return s.state.frozen()
}

// rollAged seals the active segment when it is old, so that retention can take it
// although nothing is appended any more.
func (s *store) rollAged() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil || !s.log.NeedsRoll(0) {
		return s.failed
	}
	if err := s.roll(nil); err != nil {
		s.failed = err
		return err
	}
	return nil
}

// FirstIndex implements raft.LogStore.
func (s *store) FirstIndex() (uint64, error) { return uint64(s.log.FirstIndex()), nil }

// LastIndex implements raft.LogStore.
func (s *store) LastIndex() (uint64, error) { return uint64(s.log.LastIndex()), nil }

// GetLog implements raft.LogStore. The data shares the log's memory.
func (s *store) GetLog(index uint64, out *raft.Log) error {
	e, err := s.log.Entry(log.Index(index))
	if errors.Is(err, log.ErrNotFound) {
		return raft.ErrLogNotFound // exactly this one: Raft compares
	}
	if err != nil {
		return err
	}
	*out = raft.Log{
		Index: uint64(e.Index),
		Term:  uint64(e.Term),
		Type:  raft.LogType(e.Type),
		Data:  e.Body,
	}
	if e.AppendedAt != 0 {
		out.AppendedAt = time.UnixMilli(e.AppendedAt)
	}
	return nil
}

// DeleteRange implements raft.LogStore. A prefix goes by the topic's
// retention, not when Raft says so. A suffix that conflicts with the leader's log goes now.
func (s *store) DeleteRange(first, last uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	if last < uint64(s.log.LastIndex()) {
		return nil
	}
	err := s.truncateLocked(log.Index(first))
	if err != nil {
		s.failed = err
	}
	return err
}

func (s *store) truncateLocked(from log.Index) error {
	if c := s.commit(); from <= c {
		return errs.Errorf(errs.ReplicaQuarantined, "the leader wants entries from %d on replaced, but %d is committed here: the logs have diverged", from, c)
	}
	sidecar, replayFrom, err := s.truncateLog(from)
	if err != nil {
		return err
	}
	s.due.truncated(from)
	s.proposals.truncated(from)
	s.state, err = replay(s.log, sidecar, replayFrom, s.limits)
	return err
}

func (s *store) truncateLog(from log.Index) (sidecar []byte, replayFrom log.Index, err error) {
	s.onDisk()
	defer s.offDisk()
	return s.log.TruncateSuffix(from)
}

// replay rebuilds the state at the log's end from a segment's start sidecar.
func replay(l *log.Log, sidecar []byte, from log.Index, lim limits) (*state, error) {
	st, err := decodeState(sidecar, lim)
	if err != nil {
		return nil, fmt.Errorf("start state of the segment that begins at entry %d: %w", from, err)
	}
	return st, st.catchUp(l, from)
}

// catchUp follows the entries from index from to the end of the log.
func (s *state) catchUp(l *log.Log, from log.Index) error {
	for i := from; i <= l.LastIndex() && i > 0; i++ {
		e, err := l.Entry(i)
		if err != nil {
			return fmt.Errorf("replay entry %d: %w", i, err)
		}
		if err := s.follow(e); err != nil {
			return fmt.Errorf("%w: %w", log.ErrCorrupt, err)
		}
	}
	if l.LastIndex() >= from && s.end != l.EndOffset() {
		return fmt.Errorf("%w: the log ends at offset %d, its replay at %d", log.ErrCorrupt, l.EndOffset(), s.end)
	}
	return nil
}

// onDisk and offDisk bracket every call that may hang with the disk.
func (s *store) onDisk() { s.busy.Store(max(1, int64(clock.Since(s.began)))) }

func (s *store) offDisk() { s.busy.Store(0) }

// stalled is how long the disk call under way has been taking.
func (s *store) stalled() time.Duration {
	since := s.busy.Load()
	if since == 0 {
		return 0
	}
	return max(0, clock.Since(s.began)-time.Duration(since))
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
