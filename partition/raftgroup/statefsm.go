package raftgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// A command travels in an envelope that names its proposer, so that the replica
// that proposed it, and no other, hands the result to whoever waits. Raft's own futures are not
// used: those in a queue at shutdown are never answered.
const (
	envelopeBytes   = 18
	envelopeVersion = 1
	kindCommand     = 0 // there is no other
)

var errBadEnvelope = errs.New(errs.UnsupportedVersion, "a command of a newer or damaged format was not applied")

type proposalID struct{ session, sequence uint64 }

func encodeEnvelope(id proposalID, command []byte) []byte {
	b := make([]byte, envelopeBytes, envelopeBytes+len(command))
	b[0], b[1] = envelopeVersion, kindCommand
	binary.LittleEndian.PutUint64(b[2:], id.session)
	binary.LittleEndian.PutUint64(b[10:], id.sequence)
	return append(b, command...)
}

func decodeEnvelope(b []byte) (id proposalID, command []byte, err error) {
	if len(b) < envelopeBytes || b[0] != envelopeVersion || b[1] != kindCommand {
		return id, nil, errBadEnvelope
	}
	id = proposalID{binary.LittleEndian.Uint64(b[2:]), binary.LittleEndian.Uint64(b[10:])}
	return id, b[envelopeBytes:], nil
}

// stateFSM drives a StateMachine from Raft's FSM goroutine.
type stateFSM struct {
	sm      StateMachine
	waits   *waits
	metrics *Metrics
	// applied is told how many bytes each applied entry had.
	applied func(bytes int)
	done    progress
	raft    uint64 // what Raft has passed; below done after a restart; of Raft's FSM goroutine, and of restart
}

// Apply implements raft.FSM. It never panics on what the log holds.
func (m *stateFSM) Apply(entry *raft.Log) any {
	m.raft = entry.Index
	if was, _ := m.done.now(); entry.Index <= was {
		return nil // Raft was started anew
	}
	defer m.done.reach(entry.Index)
	id, command, err := decodeEnvelope(entry.Data)
	if err != nil {
		return err
	}
	began := clock.Monotonic()
	result := m.sm.Apply(entry.Index, command)
	m.metrics.apply.Observe(clock.Since(began).Seconds())
	m.waits.answer(id, result)
	m.applied(len(entry.Data))
	return nil
}

// Snapshot implements raft.FSM.
func (m *stateFSM) Snapshot() (raft.FSMSnapshot, error) {
	// Raft would give it the index that it has passed.
	if is, _ := m.done.now(); m.raft < is {
		return nil, fmt.Errorf("the state is at entry %d, Raft has come to %d again", is, m.raft)
	}
	state, err := m.sm.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("snapshot of the state machine: %w", err)
	}
	return stateSnapshot(state), nil
}

// Restore implements raft.FSM. Raft never calls it: it finds the state restored at its start, and the leader's
// snapshots do not reach it.
func (m *stateFSM) Restore(r io.ReadCloser) error {
	return errors.Join(errors.New("raft restores no state machine here"), r.Close())
}

// restart prepares for a Raft that starts at the newest snapshot: there is none, or it ends at index. A state that is
// further stays, for it is being read: Raft passes the same entries once more.
func (m *stateFSM) restart(index uint64, snapshot []byte) error {
	m.raft = index
	if is, _ := m.done.now(); is > index {
		return nil
	}
	if err := m.sm.Restore(snapshot); err != nil {
		return err
	}
	m.done.reach(index)
	return nil
}

// progress is up to which index commands are applied.
type progress struct {
	mu    sync.Mutex
	index uint64        // guarded by mu
	moved chan struct{} // guarded by mu; nil: nobody waits
}

func (p *progress) reach(index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index = max(p.index, index)
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// now is where it stands, and a channel that is closed when that changes.
func (p *progress) now() (index uint64, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moved == nil {
		p.moved = make(chan struct{})
	}
	return p.index, p.moved
}

type stateSnapshot []byte

func (s stateSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return err
	}
	return sink.Close()
}

func (s stateSnapshot) Release() {}

// waits holds the proposals that wait for their result.
type waits struct {
	session uint64 // of this start of the group
	mu      sync.Mutex
	next    uint64                 // guarded by mu
	open    map[proposalID]*waiter // guarded by mu
	free    chan struct{}          // a token for each proposal that may be open
}

type waiter struct {
	id     proposalID
	term   uint64
	answer chan answer // capacity 1
}

type answer struct {
	result any
	err    error
}

func newWaits(session uint64, limit int) *waits {
	w := &waits{session: session, open: map[proposalID]*waiter{}, free: make(chan struct{}, limit)}
	for range limit {
		w.free <- struct{}{}
	}
	return w
}

// add registers a waiter. The caller holds one of the tokens; it goes back when the waiter is
// answered, not when the caller gives up, since the entry still lies in Raft's queue.
func (w *waits) add(term uint64) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	o := &waiter{id: proposalID{w.session, w.next}, term: term, answer: make(chan answer, 1)}
	w.open[o.id] = o
	return o
}

// drop forgets a waiter whose entry was never handed to Raft. It tells whether it was still open.
func (w *waits) drop(o *waiter) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removeLocked(o)
}

func (w *waits) removeLocked(o *waiter) bool {
	if w.open[o.id] != o {
		return false
	}
	delete(w.open, o.id)
	w.free <- struct{}{} // never blocks: the token was taken from there
	return true
}

func (w *waits) answer(id proposalID, result any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.open[id]; o != nil && w.removeLocked(o) {
		o.answer <- answer{result: result}
	}
}

// fail answers all that were proposed in a term up to the given one.
func (w *waits) fail(term uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.open {
		if o.term <= term && w.removeLocked(o) {
			o.answer <- answer{err: err}
		}
	}
}
