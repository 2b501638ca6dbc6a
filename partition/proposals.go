package partition

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// proposals are the commands of this replica that have no answer yet, or whose
// memory Raft still holds.
//
// A proposal moves through queues. In queued it was handed to Raft, in the
// order of its number, and no entry has been stored for it. In stored it has an
// index and a term, in the order of the index. It leaves stored when its index is
// applied; in held it has committed, and waits for the last in-sync replica. When a term ends
// here, what is stored has an unknown outcome; what is only queued is withdrawn, for certain:
// should Raft's queue, which outlives terms, hand it over later, then take does not know its
// number and the store voids it.
type proposals struct {
	mark    uint64        // begins the numbers of this process's proposals
	slots   chan struct{} // one for each place in Raft's queue
	answers answers

	mu     sync.Mutex
	term   log.Term        // guarded by mu; in which we lead; 0: we do not
	closed error           // guarded by mu; why no more proposals are taken
	number uint64          // guarded by mu; of the last proposal; begins with mark
	queued queue[*Pending] // guarded by mu
	stored queue[*Pending] // guarded by mu
	held   queue[*Pending] // guarded by mu
	idle   chan struct{}   // guarded by mu; closed when all queues are empty; nil: nobody waits
	freed  []func()        // guarded by mu; release callbacks to be called without the lock
}

func newProposals(slots int, a answers) *proposals {
	mark := rand.Uint64N(1<<24) << 40
	return &proposals{mark: mark, number: mark, slots: make(chan struct{}, slots), answers: a}
}

// reserve takes a place in Raft's queue. While all are taken it waits, at most for the
// time that the caller allows.
func (ps *proposals) reserve(ctx context.Context, wait time.Duration) error {
	select {
	case ps.slots <- struct{}{}:
		return nil
	default:
	}
	var timeout <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case ps.slots <- struct{}{}:
		return nil
	case <-timeout:
		return errs.Errorf(errs.RequestTimedOut, "nothing was appended: the partition's queue was full for %v; retry, or send less at once", wait)
	case <-ctx.Done():
		return errs.Errorf(errs.RequestTimedOut, "nothing was appended: gave up while the partition's queue was full: %w", ctx.Err())
	}
}

// unreserve gives a place back. It never blocks: there are as many tokens as places taken.
func (ps *proposals) unreserve() { <-ps.slots }

// enter numbers a proposal and queues it. The caller has reserved a place, and
// hands the command to Raft before anybody else may enter.
func (ps *proposals) enter(p *Pending) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed != nil {
		return ps.closed
	}
	if ps.term == 0 {
		return errNotLeader
	}
	ps.number++
	p.number = ps.number
	ps.queued.push(p)
	if p.acks == AcksNone {
		p.answer(Appended{BaseOffset: -1, EndOffset: -1, LogAppendTime: -1, LogStart: -1, Acked: AcksNone}, nil)
	}
	return nil
}

// ours tells whether a number was given by enter, here and not in another process. Only a
// leader's own requests come without a verdict; from elsewhere they would be a fault.
func (ps *proposals) ours(number uint64) bool { return number&^(1<<40-1) == ps.mark }

// take finds the proposal of a command that is about to be stored, or nil
// when it was withdrawn. Raft's queue keeps the order: whatever was queued before was
// turned away by Raft without a word, as happens while leadership is being transferred.
func (ps *proposals) take(number uint64, index log.Index, term log.Term) *Pending {
	ps.mu.Lock()
	defer ps.unlock()
	for {
		p, ok := ps.queued.front()
		if !ok || p.number > number {
			return nil
		}
		ps.queued.pop()
		ps.unreserve()
		if p.number < number {
			ps.finish(p, Appended{}, errNotLeader)
			continue
		}
		p.index, p.term = index, term
		ps.stored.push(p)
		return p
	}
}

// written answers those who asked for the leader's copy alone: all that is stored
// is written, and durable or not.
func (ps *proposals) written(durable bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for i := ps.stored.len() - 1; i >= 0; i-- {
		p := ps.stored.at(i)
		if p.written {
			break
		}
		p.written, p.durable = true, durable
		if p.acks == AcksLeader || bug.On(bug.AckBeforeCommit) {
			p.answer(ps.answers.of(p, p.acks))
		}
	}
}

// applied says that the entry of that index and term has committed and is applied.
func (ps *proposals) applied(index log.Index, term log.Term) {
	ps.mu.Lock()
	defer ps.unlock()
	for {
		p, ok := ps.stored.front()
		if !ok || p.index > index {
			return
		}
		ps.stored.pop()
		switch {
		case p.index != index || p.term != term:
			ps.finish(p, Appended{}, errLeadershipLost)
		case p.acks == AcksAll && !ps.reached(p) && !bug.On(bug.AllIsMajority):
			ps.free(p)
			ps.held.push(p)
		default:
			ps.finish(p, Appended{}, nil)
		}
	}
}

// finish answers a proposal, unless it has an answer, and gives its memory back.
// Without an error the answer is what the store ruled.
func (ps *proposals) finish(p *Pending, a Appended, err error) {
	if !p.answered {
		if err == nil {
			a, err = ps.answers.of(p, p.acks)
		}
		p.answer(a, err)
	}
	ps.free(p)
}

func (ps *proposals) free(p *Pending) {
	if p.release != nil {
		ps.freed = append(ps.freed, p.release)
		p.release = nil
	}
}

// reached tells whether every in-sync replica has an append, and notes how many these are.
func (ps *proposals) reached(p *Pending) (all bool) {
	p.copies, all = ps.answers.isr.Reached(p.index)
	return all
}

// insync answers those that waited for the last in-sync replica.
func (ps *proposals) insync() {
	ps.mu.Lock()
	defer ps.unlock()
	for {
		p, ok := ps.held.front()
		if !ok || !ps.reached(p) {
			return
		}
		ps.held.pop()
		ps.finish(p, Appended{}, nil)
	}
}

// lead says that this replica begins to lead in term, or ceases to.
func (ps *proposals) lead(term log.Term, leads bool) {
	ps.mu.Lock()
	defer ps.unlock()
	if !leads {
		term = 0
	}
	ps.term = term
	ps.abandon(term, errNotLeader, errLeadershipLost)
}

// leading tells whether enter would take a proposal.
func (ps *proposals) leading() bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.closed == nil && ps.term != 0
}

// refusal is why enter would not.
func (ps *proposals) refusal() error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed != nil {
		return ps.closed
	}
	return errNotLeader
}

// close refuses all further proposals with err.
func (ps *proposals) close(err error) {
	ps.mu.Lock()
	defer ps.unlock()
	if ps.closed == nil {
		ps.closed = err
	}
}

// end answers everything: not done, or unknown, as it is.
func (ps *proposals) end(notDone, unknown error) {
	ps.mu.Lock()
	defer ps.unlock()
	if ps.closed == nil {
		ps.closed = notDone
	}
	ps.abandon(0, notDone, unknown)
}

// abandon answers what does not belong to term.
func (ps *proposals) abandon(term log.Term, notDone, unknown error) {
	for p, ok := ps.queued.front(); ok; p, ok = ps.queued.front() {
		ps.queued.pop()
		ps.unreserve()
		ps.finish(p, Appended{}, notDone)
	}
	for _, q := range []*queue[*Pending]{&ps.held, &ps.stored} {
		for p, ok := q.front(); ok && p.term != term; p, ok = q.front() {
			q.pop()
			ps.finish(p, Appended{}, unknown)
		}
	}
}

// truncated gives up what was stored from index on: another leader's entries take its place.
func (ps *proposals) truncated(from log.Index) {
	ps.mu.Lock()
	defer ps.unlock()
	for ps.stored.len() > 0 && ps.stored.at(ps.stored.len()-1).index >= from {
		ps.finish(ps.stored.at(ps.stored.len()-1), Appended{}, errLeadershipLost)
		ps.stored.drop()
	}
}

// drained is closed when nothing waits for an answer any more.
func (ps *proposals) drained() <-chan struct{} {
	ps.mu.Lock()
	defer ps.unlock()
	if ps.idle == nil {
		ps.idle = make(chan struct{})
	}
	return ps.idle
}

// unlock releases mu and then calls what must be called without it.
func (ps *proposals) unlock() {
	if ps.idle != nil && ps.queued.len()+ps.stored.len()+ps.held.len() == 0 {
		close(ps.idle)
		ps.idle = nil
	}
	freed := ps.freed
	ps.freed = nil
	ps.mu.Unlock()
	for _, f := range freed {
		f()
	}
}
