package simnet

import (
	"errors"
	"fmt"
	"sync/atomic"
)

var (
	// ErrNoAnswer says that no answer arrived: whether the request did is unknown.
	ErrNoAnswer = errors.New("simnet: no answer arrived; the outcome is unknown")
	// ErrRefused says that nobody was there to take the request, nor any copy of it.
	ErrRefused = errors.New("simnet: the host refused the request; nothing was done")
)

// flight is a request from its sending until its first answer.
type flight struct {
	copies   atomic.Int32 // that were not refused
	answered atomic.Bool
	answers  chan<- answer // has room for this flight's
}

type answer struct {
	body any
	err  error
}

// launch sends a request whose copies are taken by accept, at its target. At most one answer comes to
// answers, which must have room for it.
func (n *Net) launch(m *Message, accept func(*Message), answers chan<- answer) {
	m.flight = &flight{answers: answers}
	m.flight.copies.Store(1)
	n.send(m, accept)
}

// reply sends an answer of a process, or of a machine without one, back to where the request came from.
func (n *Net) reply(by *life, to *Message, body any, err error) {
	n.send(&Message{
		From: to.To, To: to.From, Answer: true, Group: to.Group, Source: to.Target, Target: to.Source,
		Body: copyOf(body), Asked: to.Body, Err: err, life: by, flight: to.flight,
	}, func(m *Message) {
		if m.flight.answered.CompareAndSwap(false, true) {
			m.flight.answers <- answer{m.Body, m.Err}
		}
	})
}

// refuse answers that nobody is there, once all copies have found that.
func (n *Net) refuse(m *Message) {
	n.mu.Lock()
	n.stats.Refused++
	n.mu.Unlock()
	if m.flight.copies.Add(-1) == 0 {
		n.reply(nil, m, nil, fmt.Errorf("%w: nobody at %s %s", ErrRefused, m.To, m.Target))
	}
}
