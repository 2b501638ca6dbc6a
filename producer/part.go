package producer

import (
	"slices"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// part is what waits and travels for one partition. Everything but the names is guarded
// by Producer.mu.
//
// queue holds every batch without a delivered result, in order. Batches are sent in that
// order; once one has to be sent again, nothing more is sent until all that are
// in flight have been answered, and then sending starts over at the front.
type part struct {
	topic  string
	number int32

	queue    []*batch
	open     *batch // last of queue while it takes records, else nil
	inFlight int    // batches on a stream, given up ones included
	draining bool   // a batch must be sent again, once inFlight is 0
	delayed  bool   // a retry waits for its time
	attempts int    // retries since the last success
	queued   bool   // stands in a link's ready list
	linger   *time.Timer
	retry    *time.Timer
	missing  int // refreshes that did not know the topic
	limit    int // of a batch, learnt when the topic refused a larger one; 0: none
	lastSize int // bytes of the last batch, to size the next one's memory

	// The identity that numbers batches. A new one is taken (reset) after a
	// batch with a number was given up, because the broker waits for that number.
	hasID   bool
	hadID   bool // pid was used
	known   bool // the broker has acknowledged a batch of pid
	reset   bool
	pid     int64
	epoch   int16
	nextSeq int32
}

// next picks the batch to send now, marks it as in flight, and numbers it.
func (t *part) nextLocked(p *Producer) *batch {
	if t.delayed || t.inFlight >= p.cfg.maxInFlight || (t.draining && t.inFlight > 0) {
		return nil
	}
	// A broker takes any number as the first of a producer that it does not know. So the second batch
	// waits until the first is in: else it could be taken while the first is
	// refused and comes later, and the order would be turned around.
	if p.cfg.idempotent && t.inFlight > 0 && !t.known {
		return nil
	}
	t.draining = false
	at := t.candidate()
	// The broker remembers the last five batches of a producer. So the fifth after one
	// without a result must wait, even where those between have theirs: else the
	// first, sent once more, would look like a gap instead of a duplicate.
	if at < 0 || at >= p.cfg.maxInFlight && p.cfg.idempotent {
		return nil
	}
	b := t.queue[at]
	if !t.mayTravel(b) || !t.ripe(b, p) {
		return nil
	}
	if p.cfg.idempotent && !t.numberLocked(b, p) {
		return nil
	}
	if b == t.open {
		p.sealLocked(t)
	}
	b.state = inFlight
	t.inFlight++
	return b
}

// candidate is the place of the batch whose turn it is, or -1: the first that waits.
// Before a new identity is taken, those that may have been appended under the
// old one are settled first.
func (t *part) candidate() int {
	if t.reset {
		if at := slices.IndexFunc(t.queue, func(b *batch) bool { return b.state == waiting && b.maybe }); at >= 0 {
			return at
		}
	}
	return slices.IndexFunc(t.queue, func(b *batch) bool { return b.state == waiting })
}

func (t *part) firstWaiting() *batch {
	for _, b := range t.queue {
		if b.state == waiting {
			return b
		}
	}
	return nil
}

// mayTravel keeps conditional batches alone: a refusal must not leave a gap in
// the sequence numbers of others.
func (t *part) mayTravel(b *batch) bool {
	if t.inFlight == 0 {
		return true
	}
	return !b.conditional && !slices.ContainsFunc(t.queue, func(o *batch) bool { return o.conditional && o.state == inFlight })
}

// ripe tells whether an open batch need not wait for more records.
func (t *part) ripe(b *batch, p *Producer) bool {
	return b.sealed || t.inFlight == 0 || p.flushing > 0 || clock.Since(b.started) >= p.cfg.linger
}

// number gives b a producer id and sequence; false while there is none to give.
func (t *part) numberLocked(b *batch, p *Producer) bool {
	if b.numbered && !t.reset {
		return true
	}
	if t.reset {
		if b.maybe {
			return true // keeps its number; the broker refuses or knows it
		}
		if slices.ContainsFunc(t.queue, func(o *batch) bool { return o.state != finished && o.maybe }) || t.inFlight > 0 {
			return false
		}
		t.reset, t.hasID = false, false
		for _, o := range t.queue {
			o.numbered = false
		}
	}
	if !t.hasID && !p.identifyLocked(t) {
		return false
	}
	b.numbered, b.stamped = true, false
	b.pid, b.epoch, b.seq = t.pid, t.epoch, t.nextSeq
	t.nextSeq = record.AddSequence(t.nextSeq, int32(len(b.records)))
	return true
}

// unnumber is called when b failed: the number it held is free again where b
// certainly was not appended and nothing was numbered after it; else
// the partition needs a new identity.
func (t *part) unnumberLocked(b *batch) {
	if !b.numbered {
		return
	}
	after := t.queue[slices.Index(t.queue, b)+1:]
	if !b.maybe && !slices.ContainsFunc(after, func(o *batch) bool { return o.numbered && o.state != finished }) && b.pid == t.pid && !t.reset {
		t.nextSeq = b.seq
		return
	}
	t.reset = true
}

// behind tells whether a batch before b has no result yet.
func (t *part) behind(b *batch) bool {
	for _, o := range t.queue {
		if o == b {
			return false
		}
		if o.state != finished {
			return true
		}
	}
	return false
}
