package partition

import (
	"slices"
	"sync"
	"sync/atomic"
)

// watchers are the channels to be told when the replica's view changes. Waking takes no lock.
type watchers struct {
	mu   sync.Mutex // one change at a time
	list atomic.Pointer[[]*watcher]
}

type watcher struct{ ch chan<- struct{} }

func (w *watchers) add(ch chan<- struct{}) (cancel func()) {
	me := &watcher{ch}
	w.change(func(l []*watcher) []*watcher { return append(l, me) })
	return func() {
		w.change(func(l []*watcher) []*watcher {
			return slices.DeleteFunc(l, func(x *watcher) bool { return x == me })
		})
	}
}

// change replaces the list, so that wake may walk over the old one.
func (w *watchers) change(f func([]*watcher) []*watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var now []*watcher
	if old := w.list.Load(); old != nil {
		now = slices.Clone(*old)
	}
	now = f(now)
	w.list.Store(&now)
}

// wake tells all watchers. Who has not taken the last notice yet needs no other.
func (w *watchers) wake() {
	l := w.list.Load()
	if l == nil {
		return
	}
	for _, x := range *l {
		select {
		case x.ch <- struct{}{}:
		default:
		}
	}
}
