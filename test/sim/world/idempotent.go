package world

import (
	"context"
	"time"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	// window is how many batches of a producer may be under way: as many as a partition remembers.
	window = 5
	// patience is how long a producer repeats a batch before it takes a new epoch.
	patience = 20 * time.Second
)

// idempotent is a producer with an id: it repeats what was not answered, and each batch counts once.
type idempotent struct {
	*client
	id    int64
	epoch int16
	seq   int32 // of the next batch
	queue []*sent
	late  int32 // the next sequence of the epoch before, of which a zombie is left; -1: none
}

// sent is a batch that was not acknowledged yet.
type sent struct {
	seq     int32
	records []check.Record
	batch   record.Raw
	op      check.Op
	ticket  check.Ticket
	since   clock.Mono
	answer  *answer // of the last try; nil: none
}

func (p *idempotent) run(ctx context.Context) {
	for p.rest(ctx, 120*time.Millisecond) {
		for len(p.queue) < window {
			p.enqueue()
		}
		p.round(ctx)
		before := len(p.queue)
		if !p.settle() {
			p.rest(ctx, 200*time.Millisecond)
		}
		switch {
		case p.late >= 0 && len(p.queue) < before: // the new epoch has been there
			p.haunt(ctx)
		case p.rng.IntN(150) == 0:
			p.fence()
		}
	}
}

func (p *idempotent) enqueue() {
	s := &sent{seq: p.seq, records: p.values(1 + p.rng.IntN(3)), since: clock.Monotonic()}
	p.seq += int32(len(s.records))
	s.batch = p.batch(s.records)
	s.batch.SetProducer(p.id, p.epoch, s.seq)
	s.op = p.op(check.Send)
	s.op.Records = s.records
	s.op.Producer = &check.Producer{ID: p.id, Epoch: p.epoch, Seq: s.seq, Idempotent: true}
	s.ticket = p.world.history.Begin(s.op)
	p.queue = append(p.queue, s)
}

// round sends everything that is not acknowledged, in order, as one connection does.
func (p *idempotent) round(ctx context.Context) {
	q := &request{verb: verbProduce}
	for _, s := range p.queue {
		q.batches = append(q.batches, s.batch)
	}
	a := p.ask(ctx, q)
	for i, s := range p.queue {
		s.answer = a
		if a != nil && a.err == nil {
			s.answer = a.each[i]
		}
	}
	if last := p.queue[len(p.queue)-1].answer; last == nil || last.err != nil {
		p.lost = true
	}
}

// settle takes off the queue what is known to be appended. It returns false when something went wrong.
func (p *idempotent) settle() bool {
	var left []*sent
	for _, s := range p.queue {
		if s.answer == nil || s.answer.err != nil {
			left = append(left, s)
			continue
		}
		s.op.Records = placed(s.records, s.answer.base)
		p.world.acked(p.name, s.op, s.answer)
		p.done(s.ticket, s.op, check.OK, s.answer)
	}
	p.queue = left
	if len(left) == 0 {
		return true
	}
	first := left[0]
	p.world.trace.say(p.name, "seq %d of epoch %d: %s", first.seq, p.epoch, why(first.answer))
	switch {
	case first.answer != nil && first.answer.code() == errs.OutOfOrderSequenceNumber && !first.answer.unknown():
		// Everything before it is acknowledged, so nothing can be missing.
		p.world.trace.violation(p.name, "sequence_gap: seq %d of epoch %d: %v", first.seq, p.epoch, first.answer.err)
		p.fence()
	case clock.Since(first.since) > patience:
		p.fence()
	}
	return false
}

// haunt is the producer's earlier incarnation, which does not know that it is fenced.
func (p *idempotent) haunt(ctx context.Context) {
	op := p.op(check.Send)
	op.Records = p.values(1)
	op.Producer = &check.Producer{ID: p.id, Epoch: p.epoch - 1, Seq: p.late, Idempotent: true}
	b := p.batch(op.Records)
	b.SetProducer(p.id, p.epoch-1, p.late)
	p.late = -1
	t := p.world.history.Begin(op)
	a := p.produce(ctx, &request{batches: []record.Raw{b}})
	result := outcome(a)
	if result == check.OK {
		op.Records = placed(op.Records, a.base)
	} else if result == check.Fail {
		p.world.history.Saw("zombies_refused", 1)
	}
	p.done(t, op, result, a)
}

// fence gives up what is under way, whose outcome stays unknown, and starts over in a new epoch.
func (p *idempotent) fence() {
	for _, s := range p.queue {
		p.done(s.ticket, s.op, check.Unknown, s.answer)
	}
	p.late = p.seq
	p.queue = nil
	p.epoch++
	p.seq = 0
	p.world.trace.say(p.name, "gives up and takes epoch %d", p.epoch)
}
