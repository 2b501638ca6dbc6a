package replicas

import (
	"context"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// retain gives up old segments, one replica after the other.
func (m *Manager) retain(ctx context.Context) {
	for pause(ctx, m.cfg.RetentionInterval) == nil {
		m.each(func(h *hosted) {
			r := h.running()
			if r == nil || ctx.Err() != nil {
				return
			}
			n, err := r.Retain()
			if err != nil {
				m.cfg.Logger.Warn("retention", "topic", h.name, "partition", h.partition, "err", err)
			}
			if n > 0 {
				m.cfg.Logger.Info("segments given up", "topic", h.name, "partition", h.partition, "segments", n)
			}
		})
	}
}

// flush makes the topics with flush=interval durable. It sleeps while there are none.
func (m *Manager) flush(ctx context.Context) {
	last := map[*hosted]clock.Mono{}
	for {
		next := m.flushDue(last)
		var due <-chan time.Time
		var timer *time.Timer
		if next > 0 {
			timer = time.NewTimer(next)
			due = timer.C
		}
		select {
		case <-due:
		case <-m.flushers:
		case <-ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// flushDue flushes what is due and tells when the next is; 0: never.
func (m *Manager) flushDue(last map[*hosted]clock.Mono) (next time.Duration) {
	live := map[*hosted]bool{}
	m.each(func(h *hosted) {
		every, r := h.flushEvery()
		if r == nil {
			return
		}
		live[h] = true
		at, known := last[h]
		if !known {
			at = clock.Monotonic()
			last[h] = at
		}
		left := every - clock.Since(at)
		if left <= 0 {
			last[h] = clock.Monotonic()
			left = every
			// The replica stops itself, and the process, when the disk failed.
			if err := r.Flush(); err != nil {
				m.cfg.Logger.Error("flush", "topic", h.name, "partition", h.partition, "err", err)
			}
		}
		if next == 0 || left < next {
			next = left
		}
	})
	for h := range last {
		if !live[h] {
			delete(last, h)
		}
	}
	return next
}
