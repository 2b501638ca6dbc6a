package partition

import (
	"fmt"
	"sync"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/log"
)

// Configure changes the configuration while the replica runs.
func (r *Replica) Configure(c TopicConfig) {
	t := c.withDefaults()
	old := r.topic.Swap(t)
	r.log.SetRetention(t.retention())
	r.log.SetSegment(t.SegmentBytes, t.SegmentAge)
	if old.Flush == t.Flush || r.failure() != nil {
		return
	}
	// What was written in the old mode may find nobody to flush it in the new one.
	if err := r.store.flushAll(); err != nil {
		r.fatal(err)
	}
}

// Retain gives up what retention allows, never beyond what a restart or a reseed still
// needs, and returns how many segments went. The owner calls it now and then.
func (r *Replica) Retain() (segments int, err error) {
	if err := r.failure(); err != nil {
		return 0, err
	}
	// An old segment is sealed although nothing is appended any more: only sealed segments can go.
	if err := r.store.rollAged(); err != nil {
		r.fatal(err)
		return 0, err
	}
	if err := r.checkpointAtRoll(); err != nil {
		r.fatal(err)
		return 0, err
	}
	n, err := r.log.Retain(r.barrier())
	if err != nil {
		r.fatal(err)
	}
	return n, err
}

// checkpointAtRoll lets retention reach the active segment on topics that are too quiet for
// a checkpoint by bytes: what the segment's sidecar says is a checkpoint, once it has committed.
func (r *Replica) checkpointAtRoll() error {
	sidecar, from := r.log.ActiveState()
	if from <= 1 || r.snapshots.index() >= from-1 || !r.checkpointing.CompareAndSwap(false, true) {
		return nil
	}
	defer r.checkpointing.Store(false)
	begin, err := decodeState(sidecar, r.store.limits)
	if err != nil {
		return fmt.Errorf("%w: start state of the active segment: %w", log.ErrCorrupt, err)
	}
	if c := begin.frozen(); r.settled(c) {
		return r.checkpoint(c)
	}
	return nil
}

// barrier is the last index that may be given up: what is above is not known to be
// committed, or is read by the next start, or by a replica that is being seeded.
func (r *Replica) barrier() log.Index {
	b := min(log.Index(r.applied.Load()), r.snapshots.index())
	if bug.On(bug.RetentionBeforeCheckpoint) {
		b = log.Index(r.applied.Load())
	}
	if bug.On(bug.RetentionIgnoresHold) {
		return b
	}
	if h, ok := r.holds.lowest(); ok && h > 0 {
		b = min(b, h-1)
	}
	if first, ok := r.lease.holds(); ok {
		b = min(b, first-1)
	}
	return b
}

// Hold keeps the entries from index on from being given up, until release. Its owner bounds how long.
func (r *Replica) Hold(index log.Index) (release func()) { return r.holds.add(index) }

// Flush makes what was written durable. The owner calls it at the topic's FlushInterval
// when Flush is "interval"; with "commit" there is nothing left to do.
func (r *Replica) Flush() error {
	if err := r.failure(); err != nil {
		return err
	}
	err := r.store.flush()
	if err != nil {
		r.fatal(err)
	}
	return err
}

// InSync is called when the in-sync replicas, or what they have on disk, have changed.
func (r *Replica) InSync() { r.proposals.insync() }

// holds keep parts of the log from retention.
type holds struct {
	mu   sync.Mutex
	next uint64               // guarded by mu
	from map[uint64]log.Index // guarded by mu
}

func (h *holds) add(from log.Index) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.from == nil {
		h.from = map[uint64]log.Index{}
	}
	h.next++
	id := h.next
	h.from[id] = from
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.from, id)
	}
}

func (h *holds) lowest() (lowest log.Index, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, from := range h.from {
		if !ok || from < lowest {
			lowest, ok = from, true
		}
	}
	return lowest, ok
}
