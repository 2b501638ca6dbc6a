package partition

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/log"
)

const (
	// originName is the ID under which Raft opens the log's origin. There is one at a time.
	originName = "origin"
	// maxOriginBytes bounds what a follower takes: what a checkpoint may have.
	maxOriginBytes = maxCheckpointBytes
	// offerLease is how long the front of the log stays after it was offered to a
	// follower: long enough to be some segments ahead of retention, short against a full disk.
	offerLease = 2 * time.Minute
)

// offer opens the log's origin for Raft, which sends it to a follower whose next entry
// is below. Raft goes on with the entry behind it.
func (r *Replica) offer() (*raft.SnapshotMeta, io.ReadCloser, error) {
	if err := r.failure(); err != nil {
		return nil, nil, err
	}
	r.lease.take(r.log.FirstIndex())
	o, err := r.log.Origin()
	if bug.On(bug.MetaSnapshot) {
		o = newestOrigin(r.log, r.store.limits)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("offer the log's origin: %w", err)
	}
	s, err := stateAt(o, r.store.limits)
	if err != nil {
		return nil, nil, fmt.Errorf("offer the log's origin: %w", err)
	}
	b := o.Encode(r.cfg.Topic, r.cfg.Partition)
	meta := s.snapshot()
	meta.ID, meta.Size = originName, int64(len(b))
	r.deps.Metrics.offer()
	r.logger.Info("a follower needs entries that are given up; it is offered to begin where the log begins",
		"base_index", o.Index, "base_offset", o.Offset)
	return meta, io.NopCloser(bytes.NewReader(b)), nil
}

// newestOrigin is where the active segment begins. It exists for bug.MetaSnapshot alone.
func newestOrigin(l *log.Log, lim limits) (o log.Origin) {
	o.State, _ = l.ActiveState()
	if s, err := decodeState(o.State, lim); err == nil {
		o.Index, o.Term, o.Offset = s.index, s.term, s.end
	}
	return o
}

// stateAt decodes the state of an origin and checks that it is the state there. The
// bytes may come from another broker.
func stateAt(o log.Origin, l limits) (*state, error) {
	s, err := decodeState(o.State, l)
	if err != nil {
		return nil, err
	}
	switch {
	case s.index != o.Index || s.term != o.Term || s.end != o.Offset:
		return nil, fmt.Errorf("state of entry %d, term %d, offset %d at origin %d, %d, %d", s.index, s.term, s.end, o.Index, o.Term, o.Offset)
	case s.start < 0 || s.start > s.end:
		return nil, fmt.Errorf("state with log start %d and log end %d", s.start, s.end)
	case s.configIndex == 0 || s.configIndex > s.index:
		return nil, fmt.Errorf("state of entry %d with a configuration of entry %d", s.index, s.configIndex)
	case len(s.producers.byID) > l.producers:
		return nil, fmt.Errorf("state of %d producers, at most %d are remembered", len(s.producers.byID), l.producers)
	}
	for p := s.producers.oldest; p != nil; p = p.next {
		for i := range int(p.count) {
			if base := p.batch(i).base; base < 0 || base >= s.end {
				return nil, fmt.Errorf("state in which producer %d appended at offset %d, and the log ends at %d", p.id, base, s.end)
			}
		}
	}
	return s, checkConfiguration(s.config)
}

// checkConfiguration tells whether Raft can decode a configuration: it panics where it cannot.
func checkConfiguration(b []byte) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("state with a configuration that cannot be decoded")
		}
	}()
	if c := raft.DecodeConfiguration(b); len(c.Servers) == 0 {
		return errors.New("state with an empty configuration")
	}
	return nil
}

// lease keeps the front of the log from retention after it was offered. Otherwise the log might begin
// elsewhere each time that the follower comes back for the entry behind its new base, for ever.
//
// It is bounded, and not renewed before retention has had its turn: a follower that never gets on does not
// keep the front for ever.
type lease struct {
	mu    sync.Mutex
	first log.Index  // guarded by mu; kept from here on; 0: no lease
	began clock.Mono // guarded by mu
}

func (l *lease) take(first log.Index) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == 0 {
		l.first, l.began = first, clock.Monotonic()
	}
}

// holds tells retention what to keep, and ends a lease that has lasted its time.
func (l *lease) holds() (first log.Index, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first != 0 && clock.Since(l.began) >= offerLease {
		l.first = 0
	}
	return l.first, l.first != 0
}
