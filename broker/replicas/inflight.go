package replicas

import (
	"container/list"
	"context"
	"sync"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// inFlight bounds the bytes that wait for their answer. Who comes first is
// served first, so a large batch is not starved by small ones.
type inFlight struct {
	limit int64

	mu    sync.Mutex
	used  int64     // guarded by mu
	waits list.List // of *reservation, oldest first; guarded by mu
}

type reservation struct {
	bytes   int64
	granted chan struct{}
}

// acquire waits until n bytes fit. A refusal has taken nothing.
func (f *inFlight) acquire(ctx context.Context, n int64) error {
	if n > f.limit {
		return errs.Errorf(errs.MessageTooLarge, "a batch of %d bytes is larger than the %d bytes that may be in flight: send smaller batches, or raise limits.in_flight_bytes", n, f.limit)
	}
	f.mu.Lock()
	if f.waits.Len() == 0 && f.used+n <= f.limit {
		f.used += n
		f.mu.Unlock()
		return nil
	}
	r := &reservation{bytes: n, granted: make(chan struct{})}
	at := f.waits.PushBack(r)
	f.mu.Unlock()
	select {
	case <-r.granted:
		return nil
	case <-ctx.Done():
		return f.abandon(ctx, at, r)
	}
}

// abandon takes a reservation back that may have been granted in the same moment.
func (f *inFlight) abandon(ctx context.Context, at *list.Element, r *reservation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-r.granted:
		f.used -= r.bytes
	default:
		f.waits.Remove(at)
	}
	f.grantLocked()
	return errs.Errorf(errs.RequestTimedOut, "nothing was appended: %d bytes are in flight already and the time ran out: %w", f.used, ctx.Err())
}

func (f *inFlight) release(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used -= n
	f.grantLocked()
}

func (f *inFlight) grantLocked() {
	for at := f.waits.Front(); at != nil; at = f.waits.Front() {
		r := at.Value.(*reservation)
		if f.used+r.bytes > f.limit {
			return
		}
		f.used += r.bytes
		f.waits.Remove(at)
		close(r.granted)
	}
}

func (f *inFlight) bytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}
