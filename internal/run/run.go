// Package run owns goroutines: each has an owner, a name and a stop.
//
// It is the only package that may say "go"; a test in internal/arch keeps this
// true. A Group stops all of its goroutines and waits for them, so an owner
// that has stopped its group may close what they used.
package run

import (
	"context"
	"fmt"
	"runtime/pprof"
	"sync"
)

// Group is a set of goroutines with one owner. The zero Group is not usable;
// NewGroup makes one. It is safe for concurrent use.
type Group struct {
	name   string
	ctx    context.Context // canceled by Stop; the life of the group, not of a request
	cancel context.CancelFunc

	mu      sync.Mutex
	stopped bool // guarded by mu
	wg      sync.WaitGroup
}

// NewGroup returns a group whose goroutines live until Stop, or until parent
// is done. The name prefixes the names of the goroutines in profiles.
func NewGroup(parent context.Context, name string) *Group {
	ctx, cancel := context.WithCancel(parent)
	return &Group{name: name, ctx: ctx, cancel: cancel}
}

// Owned returns a group that lives until Stop, for owners that have no
// context of their own.
func Owned(name string) *Group { return NewGroup(context.Background(), name) }

// Context is done when the group is told to stop.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs f in a goroutine of the group. f must return soon after ctx is done.
// After Stop it does nothing and returns false.
func (g *Group) Go(name string, f func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return false
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		labels := pprof.Labels("goroutine", g.name+"/"+name)
		pprof.Do(g.ctx, labels, f)
	}()
	return true
}

// Cancel tells the goroutines to stop and does not wait for them.
func (g *Group) Cancel() {
	g.mu.Lock()
	g.stopped = true
	g.mu.Unlock()
	g.cancel()
}

// Wait waits until all goroutines have returned, and tells them nothing.
func (g *Group) Wait() { g.wg.Wait() }

// Stop tells the goroutines to stop and waits until all have returned. It may
// be called again, but not from a goroutine of the group.
func (g *Group) Stop() {
	g.Cancel()
	g.wg.Wait()
}

// StopWithin is Stop that gives up waiting when ctx is done.
func (g *Group) StopWithin(ctx context.Context) error {
	g.Cancel()
	done := make(chan struct{})
	go func() { g.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", g.name, ctx.Err())
	}
}
