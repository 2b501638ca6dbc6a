package partition

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/log"
)

const (
	// defaultLag is Kafka's replica.lag.time.max.ms, shortened.
	defaultLag = 2 * time.Second
	// lagSteps is into how many steps the lag is divided, and so how early a follower may be given up.
	lagSteps = 16
)

// tracker is the ISR of a group whose replicas are linked: the leader, and every voter that holds the
// first entry of the leader's term, and all that the leader's log held one lag ago.
//
// It learns from the store where this log ends, and from the link what a follower has answered. Only
// answers of the term count in which this replica leads: those of an earlier one may speak of entries
// that are gone.
//
// changed is called without mu: the proposals' lock is taken there, under which Reached takes mu. All
// of them may be taken under store.mu.
type tracker struct {
	self    raft.ServerID
	lag     time.Duration
	changed func() // called when size or durable may have changed

	size     atomic.Int64 // written with mu held; 0: this replica does not lead
	majority atomic.Int64 // of the voters

	mu      sync.Mutex
	term    uint64                   // guarded by mu; newest in which an entry was stored or acknowledged
	first   uint64                   // guarded by mu; index of the term's first entry; 0: not stored yet
	leads   uint64                   // guarded by mu; term in which appends are taken; 0: none
	voters  []raft.ServerID          // guarded by mu; the others
	matches map[raft.ServerID]uint64 // guarded by mu; what followers hold under term
	durable uint64                   // guarded by mu; least match of the followers in sync

	end    uint64        // guarded by mu; index of the last entry here
	before uint64        // guarded by mu; the same, one lag ago
	growth queue[growth] // guarded by mu; what came between the two

	expiry  *time.Timer // guarded by mu; nil: none runs
	expires deadline    // guarded by mu; of expiry
	closed  bool        // guarded by mu
}

// growth says that the log grew to end after a moment, and soon after.
type growth struct {
	from clock.Mono
	end  uint64
}

// deadline is a moment on the monotonic clock.
type deadline struct {
	from clock.Mono
	in   time.Duration
}

func (d deadline) left() time.Duration { return d.in - clock.Since(d.from) }

func newTracker(self raft.ServerID, lag time.Duration, end log.Index, changed func()) *tracker {
	if lag <= 0 {
		lag = defaultLag
	}
	return &tracker{self: self, lag: lag, changed: changed,
		end: uint64(end), before: uint64(end), matches: map[raft.ServerID]uint64{}}
}

// Size implements ISR.
func (t *tracker) Size() int { return int(t.size.Load()) }

// Majority implements ISR.
func (t *tracker) Majority() int { return int(t.majority.Load()) }

// Reached implements ISR.
func (t *tracker) Reached(index log.Index) (size int, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Size(), t.durable >= uint64(index)
}

// members are the replicas in sync, this one first; nil where it does not lead.
func (t *tracker) members() []raft.ServerID {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.leadsLocked() {
		return nil
	}
	t.ageLocked()
	out := []raft.ServerID{t.self}
	for _, id := range t.voters {
		if t.inSyncLocked(t.matches[id]) {
			out = append(out, id)
		}
	}
	return out
}

// hasAll tells whether a follower holds all that is stored here.
func (t *tracker) hasAll(id raft.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.leadsLocked() && t.first != 0 && t.matches[id] >= t.end
}

// lead says that this replica takes appends in term, or, with 0, no longer.
func (t *tracker) lead(term uint64, c raft.Configuration) {
	t.mu.Lock()
	t.leads = term
	if term != 0 {
		t.configureLocked(c)
	}
	t.reviewLocked()
	t.mu.Unlock()
	t.changed()
}

// stored says that these entries now end the log. The append lock is held.
func (t *tracker) stored(logs []*raft.Log) {
	last := logs[len(logs)-1]
	t.mu.Lock()
	if last.Term > t.term {
		t.beginLocked(last.Term)
	}
	if t.first == 0 && last.Term == t.term {
		t.first = logs[slices.IndexFunc(logs, func(l *raft.Log) bool { return l.Term == t.term })].Index
	}
	t.growLocked(last.Index)
	for _, l := range logs {
		if l.Type == raft.LogConfiguration { // it is in force from now on, committed or not
			t.configureLocked(raft.DecodeConfiguration(l.Data))
		}
	}
	changed := t.reviewLocked()
	t.mu.Unlock()
	if changed {
		t.changed()
	}
}

// match says that a follower holds all entries through index under the leader's term.
func (t *tracker) match(term uint64, follower raft.ServerID, index uint64) {
	t.mu.Lock()
	if term < t.term || t.closed {
		t.mu.Unlock()
		return
	}
	if term > t.term {
		t.beginLocked(term) // its first entry is not stored yet
	}
	t.matches[follower] = max(t.matches[follower], index)
	changed := t.reviewLocked()
	t.mu.Unlock()
	if changed {
		t.changed()
	}
}

func (t *tracker) beginLocked(term uint64) {
	t.term, t.first = term, 0
	clear(t.matches)
}

func (t *tracker) leadsLocked() bool { return t.leads != 0 && t.leads == t.term }

// growLocked notes when the log grew, in steps.
func (t *tracker) growLocked(end uint64) {
	t.end = end
	if n := t.growth.len(); n > 0 {
		last := t.growth.at(n - 1)
		if clock.Since(last.from) < t.lag/lagSteps {
			t.growth.drop()
			t.growth.push(growth{last.from, end})
			return
		}
	}
	t.growth.push(growth{clock.Monotonic(), end})
}

// ageLocked brings before up to now.
func (t *tracker) ageLocked() {
	for g, ok := t.growth.front(); ok && clock.Since(g.from) >= t.lag; g, ok = t.growth.front() {
		t.before = g.end
		t.growth.pop()
	}
}

func (t *tracker) inSyncLocked(match uint64) bool {
	return t.first != 0 && match >= t.first && match >= min(t.before, t.end)
}

// lateLocked is when a follower that is in sync ceases to be, if it stays where it is; ok is false for never.
func (t *tracker) lateLocked(match uint64) (in time.Duration, ok bool) {
	for i := range t.growth.len() {
		if g := t.growth.at(i); g.end > match {
			return t.lag - clock.Since(g.from), true
		}
	}
	return 0, false
}

// configureLocked takes over who has a vote.
func (t *tracker) configureLocked(c raft.Configuration) {
	t.voters = t.voters[:0]
	here := map[raft.ServerID]bool{}
	all := 0
	for _, s := range c.Servers {
		here[s.ID] = true
		if s.Suffrage != raft.Voter {
			continue
		}
		all++
		if s.ID != t.self {
			t.voters = append(t.voters, s.ID)
		}
	}
	for id := range t.matches {
		if !here[id] {
			delete(t.matches, id)
		}
	}
	t.majority.Store(int64(all/2 + 1))
}

// reviewLocked counts anew who is in sync, and tells whether that changed anything. While
// somebody in sync is behind, a timer sees to it that he does not stay so for ever.
func (t *tracker) reviewLocked() (changed bool) {
	t.ageLocked()
	size, durable := int64(0), uint64(0)
	if t.leadsLocked() {
		size, durable = 1, math.MaxUint64
		for _, id := range t.voters {
			match := t.matches[id]
			if !t.inSyncLocked(match) {
				continue
			}
			size++
			durable = min(durable, match)
			if in, ok := t.lateLocked(match); ok {
				t.expireLocked(in)
			}
		}
	}
	changed = t.size.Load() != size || t.durable != durable
	t.size.Store(size)
	t.durable = durable
	return changed
}

// expireLocked has expire called in a while, and not later.
func (t *tracker) expireLocked(in time.Duration) {
	switch {
	case t.closed || t.expiry != nil && t.expires.left() <= in:
		return
	case t.expiry == nil:
		t.expiry = time.AfterFunc(in, t.expire)
	default:
		t.expiry.Reset(in)
	}
	t.expires = deadline{clock.Monotonic(), in}
}

// expire looks whether somebody has lagged out.
func (t *tracker) expire() {
	t.mu.Lock()
	t.expiry = nil
	changed := t.reviewLocked()
	t.mu.Unlock()
	if changed {
		t.changed()
	}
}

// close ends the timer. Answers that come later change nothing.
func (t *tracker) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.expiry != nil {
		t.expiry.Stop()
	}
}
