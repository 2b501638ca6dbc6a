package partition

import (
	"math"
	"time"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// remembered is how many batches of a producer are recognised when they come
// again. Clients keep at most as many in flight.
const remembered = 5

// limits bound what is remembered of producers. Every replica of a cluster must
// use the same numbers: they decide verdicts, and a replica that decides
// differently from its leader stops.
type limits struct {
	producers int   // of one partition
	expiry    int64 // in ms of log time since the producer's last batch
}

var releaseLimits = limits{producers: 100_000, expiry: int64(24 * time.Hour / time.Millisecond)}

// past is one batch that a producer has appended.
type past struct {
	first, last int32 // sequences
	base        record.Offset
	time        int64 // log time
}

// producer is what is known of one producer id. It is a node of the list in
// producers, which is ordered by the last batch.
type producer struct {
	id         int64
	epoch      int16
	count      int8 // of batches
	at         int8 // where the oldest batch is
	batches    [remembered]past
	prev, next *producer
}

func (p *producer) batch(i int) *past { return &p.batches[(int(p.at)+i)%remembered] }

// newest is the last batch; there is always one.
func (p *producer) newest() *past { return p.batch(int(p.count) - 1) }

func (p *producer) remember(b past) {
	if p.count == remembered {
		p.at = (p.at + 1) % remembered
		p.count--
	}
	p.count++
	*p.newest() = b
}

// find looks for a batch that was appended with exactly these sequences.
func (p *producer) find(c claim) (past, bool) {
	if c.epoch != p.epoch {
		return past{}, false
	}
	for i := range int(p.count) {
		if b := p.batch(i); b.first == c.first && b.last == c.last {
			return *b, true
		}
	}
	return past{}, false
}

// producers remembers the last batches of each producer of a partition. It
// changes only by add and expire, with arguments that stand in the log, so all
// replicas remember the same.
type producers struct {
	limits limits
	byID   map[int64]*producer
	// oldest and newest end the list of producers in the order of their last
	// batches. Log time never goes back, so it is in the order of time as well.
	oldest, newest *producer
}

func newProducers(l limits) producers {
	return producers{limits: l, byID: map[int64]*producer{}}
}

// judge tells what becomes of an idempotent batch: known as the batch dup, or refused with code, or
// in order. The rules are those of Kafka's ProducerStateManager.
func (ps *producers) judge(c claim, end record.Offset) (dup past, known bool, code errs.Code) {
	p := ps.byID[c.producer]
	if p == nil {
		// The state of a producer may have expired, so any sequence may begin.
		// Where nothing was ever appended, though, an earlier batch of
		// the producer is still to come: taking this one now would reorder them.
		if end == 0 && c.first != 0 {
			return past{}, false, errs.OutOfOrderSequenceNumber
		}
		return past{}, false, errs.None
	}
	if b, ok := p.find(c); ok {
		return b, true, errs.None
	}
	switch {
	case c.epoch < p.epoch:
		return past{}, false, errs.InvalidProducerEpoch
	case c.epoch > p.epoch && c.first != 0, c.epoch == p.epoch && !follows(p.newest().last, c.first):
		return past{}, false, errs.OutOfOrderSequenceNumber
	}
	return past{}, false, errs.None
}

func follows(last, first int32) bool {
	if last == math.MaxInt32 {
		return first == 0
	}
	return first == last+1
}

// add remembers an accepted batch.
func (ps *producers) add(c claim, base record.Offset, now int64) {
	p := ps.byID[c.producer]
	if p == nil {
		if len(ps.byID) >= ps.limits.producers {
			ps.forget(ps.oldest)
		}
		p = &producer{id: c.producer, epoch: c.epoch}
		ps.byID[c.producer] = p
	} else {
		ps.unlink(p)
	}
	if c.epoch != p.epoch {
		p.epoch, p.count, p.at = c.epoch, 0, 0
	}
	p.remember(past{first: c.first, last: c.last, base: base, time: now})
	ps.link(p)
}

// expire forgets the producers that have appended nothing for long.
func (ps *producers) expire(now int64) {
	for ps.oldest != nil && now-ps.oldest.newest().time >= ps.limits.expiry {
		ps.forget(ps.oldest)
	}
}

func (ps *producers) forget(p *producer) {
	ps.unlink(p)
	delete(ps.byID, p.id)
}

func (ps *producers) link(p *producer) {
	p.prev, p.next = ps.newest, nil
	if ps.newest != nil {
		ps.newest.next = p
	} else {
		ps.oldest = p
	}
	ps.newest = p
}

func (ps *producers) unlink(p *producer) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		ps.oldest = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		ps.newest = p.prev
	}
	p.prev, p.next = nil, nil
}
