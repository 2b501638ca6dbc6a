package raftgroup

import (
	"bytes"
	"fmt"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
)

// stableSlot is one group's face of the store, for Raft.
//
// Raft writes a vote in two calls, term first. A crash between them would leave the new term beside
// the old candidate, and that candidate would be granted a second vote without a look at
// its log. So the first call only remembers; the second writes both. That is
// safe because Raft answers the candidate after the second.
type stableSlot struct {
	store *StableStore
	slot  *slot
	id    [16]byte
}

// Set implements raft.StableStore.
func (f stableSlot) Set(key, value []byte) error {
	if string(key) != keyCandidate {
		return fmt.Errorf("stable store: unknown key %q", key)
	}
	if len(value) > newCandidate {
		return fmt.Errorf("stable store: candidate of %d bytes, at most %d are possible", len(value), newCandidate)
	}
	return f.change(func(r *record) {
		r.candidate = bytes.Clone(value)
		if r.buffered != 0 {
			r.voteTerm, r.buffered = r.buffered, 0
		}
	})
}

// SetUint64 implements raft.StableStore.
func (f stableSlot) SetUint64(key []byte, value uint64) error {
	switch string(key) {
	case keyCurrentTerm:
		return f.change(func(r *record) { r.term = value })
	case keyVoteTerm:
		if bug.On(bug.SplitVote) {
			return f.change(func(r *record) { r.voteTerm = value })
		}
		f.store.mu.Lock()
		defer f.store.mu.Unlock()
		if err := f.usableLocked(); err != nil {
			return err
		}
		f.slot.want.buffered = value
		failpoint.Hit("raftgroup/vote/term")
		return nil
	}
	return fmt.Errorf("stable store: unknown key %q", key)
}

// Get implements raft.StableStore.
func (f stableSlot) Get(key []byte) ([]byte, error) {
	if string(key) != keyCandidate {
		return nil, fmt.Errorf("stable store: unknown key %q", key)
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	if err := f.usableLocked(); err != nil {
		return nil, err
	}
	if len(f.slot.has.candidate) == 0 {
		return nil, nil // Raft takes nil for "no vote yet"
	}
	return bytes.Clone(f.slot.has.candidate), nil
}

// GetUint64 implements raft.StableStore. A buffered vote is not seen.
func (f stableSlot) GetUint64(key []byte) (uint64, error) {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	if err := f.usableLocked(); err != nil {
		return 0, err
	}
	switch string(key) {
	case keyCurrentTerm:
		return f.slot.has.term, nil
	case keyVoteTerm:
		return f.slot.has.voteTerm, nil
	}
	return 0, fmt.Errorf("stable store: unknown key %q", key)
}

// change makes a change durable. What changes nothing is not written: NewRaft sets
// the term that it has just read.
func (f stableSlot) change(change func(*record)) error {
	f.store.mu.Lock()
	if err := f.usableLocked(); err != nil {
		f.store.mu.Unlock()
		return err
	}
	want := f.slot.want
	change(&want)
	if want.same(f.slot.has) && want.same(f.slot.want) {
		f.slot.want.buffered = want.buffered
		f.store.mu.Unlock()
		return nil
	}
	b := f.store.changeLocked(f.slot, change)
	f.store.mu.Unlock()
	return f.store.commit(b)
}

// usableLocked refuses a face whose group was forgotten: the slot may belong to another one.
func (f stableSlot) usableLocked() error {
	if f.store.err != nil {
		return f.store.err
	}
	if !f.slot.want.holds(f.id) {
		return fmt.Errorf("stable store: group %x was forgotten", f.id)
	}
	return nil
}
