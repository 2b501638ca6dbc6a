package raftgroup

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// errFenced is what a fenced group's storage and transport answer.
var (
	errFenced = errors.New("the group is fenced after an earlier failure")
	errMuted  = errors.New("the group is muted: its disk has not answered for seconds")
)

// fence stops a group at its first disk error, in an orderly way.
//
// hashicorp/raft panics when an entry cannot be read or the term cannot be
// written, and goes on with a wrong idea of its log when entries cannot be
// stored. The fence stands between Raft and the stores instead: with the first error nothing is
// stored, sent or applied any more, and Raft is shut down soon after. Where Raft would answer
// an error with a panic it gets a harmless stand-in: a no-op of term 0, which matches no
// entry of any leader and is applied by no state machine.
type fence struct {
	failed chan struct{} // closed by trip
	onTrip func(error)   // immutable; sees to it that Raft is shut down; must not wait
	stall  *stall

	mu       sync.Mutex
	err      error // guarded by mu; why the fence tripped
	armed    bool  // guarded by mu; the group runs
	told     bool  // guarded by mu; onTrip was called
	stopping bool  // guarded by mu; errors are expected from now on
}

func newFence(onTrip func(error), s *stall) *fence {
	return &fence{failed: make(chan struct{}), onTrip: onTrip, stall: s}
}

// arm has later errors go to onTrip. It returns an earlier one.
func (f *fence) arm() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = true
	return f.err
}

// stop keeps later errors from the owner, who stops the group already. They fence it all the same:
// until Raft has stopped it must not send or apply a stand-in.
func (f *fence) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopping = true
}

// trip fences the group. Only the first error counts.
func (f *fence) trip(err error) {
	f.mu.Lock()
	if f.err != nil {
		f.mu.Unlock()
		return
	}
	f.err = err
	f.told = f.armed && !f.stopping
	tell := f.told
	close(f.failed)
	f.mu.Unlock()
	if tell { // otherwise Start returns the error, or whoever stops the group looks
		f.onTrip(err)
	}
}

func (f *fence) tripped() bool {
	select {
	case <-f.failed:
		return true
	default:
		return false
	}
}

func (f *fence) muted() bool { return f.stall.longest() >= muteAfter }

// silent is why nothing may leave this replica, or nil.
func (f *fence) silent() error {
	switch {
	case f.tripped():
		return errFenced
	case f.muted():
		return errMuted
	}
	return nil
}

// onDisk runs a disk call.
func (f *fence) onDisk(call func() error) error {
	defer f.stall.end(f.stall.begin())
	return call()
}

// cause is the error that tripped the fence, or nil.
func (f *fence) cause() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// untold tells whether the owner has not heard of the error, since the group was being stopped.
func (f *fence) untold() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err != nil && !f.told
}

// fencedLog is the LogStore that Raft sees. It implements none of Raft's optional
// interfaces: a monotonic store changes what happens after a snapshot, and commit tracking
// must stay off.
type fencedLog struct {
	raft.LogStore
	fence *fence
}

func (l fencedLog) GetLog(index uint64, out *raft.Log) error {
	for again := true; !l.fence.tripped(); again = false {
		err := l.LogStore.GetLog(index, out)
		if err == nil || l.gone(index, err) {
			return err
		}
		// It may have been cut, and another stored in its place: once in a term, so not twice while one call is made.
		if again && errors.Is(err, raft.ErrLogNotFound) {
			continue
		}
		l.fence.trip(fmt.Errorf("read entry %d: %w", index, err))
	}
	*out = raft.Log{Index: index, Type: raft.LogNoop}
	return nil
}

// gone tells whether err says, truly, that the entry is not there: a leader asks for entries that
// retention has dropped, and then sends a snapshot.
func (l fencedLog) gone(index uint64, err error) bool {
	if !errors.Is(err, raft.ErrLogNotFound) {
		return false
	}
	first, err1 := l.FirstIndex()
	last, err2 := l.LastIndex()
	return err1 == nil && err2 == nil && (index < first || index > last)
}

func (l fencedLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l fencedLog) StoreLogs(entries []*raft.Log) error {
	if l.fence.tripped() {
		return errFenced
	}
	err := l.fence.onDisk(func() error { return l.LogStore.StoreLogs(entries) })
	if err != nil {
		l.fence.trip(fmt.Errorf("store %d entries: %w", len(entries), err))
	}
	return err
}

func (l fencedLog) DeleteRange(first, last uint64) error {
	if l.fence.tripped() {
		return errFenced
	}
	err := l.fence.onDisk(func() error { return l.LogStore.DeleteRange(first, last) })
	if err != nil {
		l.fence.trip(fmt.Errorf("delete entries %d to %d: %w", first, last, err))
	}
	return err
}

// fencedStable is the StableStore that Raft sees.
type fencedStable struct {
	raft.StableStore
	fence *fence
}

func (s fencedStable) Set(key, value []byte) error {
	if s.fence.tripped() {
		return errFenced // Raft takes it for a vote that was not given
	}
	err := s.fence.onDisk(func() error { return s.StableStore.Set(key, value) })
	if err != nil {
		s.fence.trip(fmt.Errorf("persist %s: %w", key, err))
	}
	return err
}

// SetUint64 never fails: Raft would panic. Once fenced it only pretends, which harms nobody since the
// group then answers nothing (see fencedTransport and Group.Failed).
func (s fencedStable) SetUint64(key []byte, value uint64) error {
	if !s.fence.tripped() {
		err := s.fence.onDisk(func() error { return s.StableStore.SetUint64(key, value) })
		if err == nil {
			return nil
		}
		s.fence.trip(fmt.Errorf("persist %s: %w", key, err))
	}
	return nil
}

// fencedFSM keeps a fenced group's entries away from the state machine.
type fencedFSM struct {
	raft.FSM
	fence *fence
}

func (m fencedFSM) Apply(entry *raft.Log) any {
	if m.fence.tripped() {
		return errFenced
	}
	return m.FSM.Apply(entry)
}

// fencedBatchFSM is a fencedFSM whose state machine takes batches.
type fencedBatchFSM struct{ fencedFSM }

func (m fencedBatchFSM) ApplyBatch(entries []*raft.Log) []any {
	if m.fence.tripped() {
		return make([]any, len(entries))
	}
	return m.FSM.(raft.BatchingFSM).ApplyBatch(entries)
}

// behind puts all parts of a group behind one fence.
func (p Parts) behind(f *fence, r *relay, o *office) (Parts, error) {
	if _, ok := p.Transport.(raft.WithPreVote); !ok {
		return p, fmt.Errorf("transport %T does not speak pre-vote: a replica that was cut off would depose healthy leaders", p.Transport)
	}
	fsm := fencedFSM{p.FSM, f}
	p.FSM = fsm
	if _, ok := fsm.FSM.(raft.BatchingFSM); ok {
		p.FSM = fencedBatchFSM{fsm}
	}
	p.Logs = fencedLog{p.Logs, f}
	p.Stable = fencedStable{p.Stable, f}
	p.Transport = preVoter{fencedTransport{p.Transport, f, r, o, p.Snapshots}}
	return p, nil
}
