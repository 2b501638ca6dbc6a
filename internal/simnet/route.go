package simnet

import (
	"container/heap"
	"context"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// send takes a message on its way. arrive is called, from the network's goroutine, once for
// each copy that gets there; it must not block.
func (n *Net) send(m *Message, arrive func(*Message)) {
	n.mu.Lock()
	if m.life != nil && m.life.dead {
		n.mu.Unlock()
		return
	}
	tap := n.tap
	n.stats.Sent++
	n.mu.Unlock()
	var fate Fate
	if tap != nil {
		fate = tap(m)
	}
	switch {
	case fate.Drop:
		n.mu.Lock()
		n.stats.Lost++
		n.mu.Unlock()
	case fate.Gate != nil:
		fate.Gate.hold(func() { n.route(m, fate, arrive) })
	default:
		n.route(m, fate, arrive)
	}
}

// route decides what becomes of a message that leaves its host now.
func (n *Net) route(m *Message, fate Fate, arrive func(*Message)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[m.From]; h.paused {
		h.held = append(h.held, func() { n.route(m, fate, arrive) })
		return
	}
	w := way{m.From, m.To}
	p := n.pathLocked(w)
	if p.Cut || n.chanceLocked(p.Loss) {
		n.stats.Lost++
		return
	}
	copies := 1 + fate.Copies
	if !m.Answer && n.chanceLocked(p.Duplicate) {
		copies++
	}
	n.stats.Duplicated += copies - 1
	m.flight.copies.Add(int32(copies - 1))
	for i := range copies {
		one := m
		if i < copies-1 {
			one = m.clone()
		}
		n.scheduleLocked(w, n.delayLocked(p)+fate.Delay, p.Reorder || fate.Delay > 0, func() { n.land(one, arrive) })
	}
}

func (n *Net) pathLocked(w way) Path {
	p, ok := n.paths[w]
	if !ok && w.from != w.to {
		p = n.normal
	}
	p.Cut = p.Cut || n.cut[w]
	return p
}

func (n *Net) chanceLocked(p float64) bool { return p > 0 && n.rng.Float64() < p }

func (n *Net) delayLocked(p Path) time.Duration {
	if p.Jitter <= 0 {
		return p.Delay
	}
	return p.Delay + time.Duration(n.rng.Int64N(int64(p.Jitter)))
}

// land is the end of a message's way.
func (n *Net) land(m *Message, arrive func(*Message)) {
	n.mu.Lock()
	if n.pathLocked(way{m.From, m.To}).Cut {
		n.stats.Lost++
		n.mu.Unlock()
		return
	}
	if h := n.hosts[m.To]; h.paused {
		h.held = append(h.held, func() { n.land(m, arrive) })
		n.mu.Unlock()
		return
	}
	n.stats.Delivered++
	n.mu.Unlock()
	arrive(m)
}

// event is something that happens at a time. What happens at the same time happens
// in the order in which it was scheduled.
type event struct {
	at  time.Duration // since the network began
	seq uint64
	do  func()
}

func (n *Net) scheduleLocked(w way, delay time.Duration, overtake bool, do func()) {
	at := clock.Since(n.began) + delay
	if !overtake {
		at = max(at, n.last[w])
		n.last[w] = at
	}
	n.seq++
	heap.Push(&n.events, event{at, n.seq, do})
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// deliver makes events happen. It is the only goroutine that does.
func (n *Net) deliver(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		e, wait := n.next()
		if e.do != nil {
			e.do()
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-n.wake:
		case <-ctx.Done():
			return
		}
	}
}

// next takes the event that is due, or tells how long there is none.
func (n *Net) next() (e event, wait time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.events) == 0 {
		return e, time.Hour
	}
	if wait = n.events[0].at - clock.Since(n.began); wait > 0 {
		return e, wait
	}
	return heap.Pop(&n.events).(event), 0
}

// events is a heap.
type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}
