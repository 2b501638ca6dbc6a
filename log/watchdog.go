package log

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
)

// WatchdogConfig says when a write or sync is too slow.
type WatchdogConfig struct {
	Stall time.Duration // from then on the gauge is stalled; 3 s by default
	Hang  time.Duration // from then on OnHang is called; 30 s by default
	// OnStall is called when a gauge becomes stalled and when it no longer is.
	OnStall func(name string, stalled bool)
	// OnHang is called once per hanging step. The owner of the process ends it:
	// a leader whose disk hangs would otherwise lead for ever, because heartbeats
	// do not touch the disk.
	OnHang func(name string, after time.Duration)
}

// Watchdog notices disk steps that do not return. One goroutine serves all
// logs of a broker. It measures in its own ticks: while the process or the
// machine stands still (SIGSTOP, a paused VM), the disk is not to blame.
type Watchdog struct {
	cfg   WatchdogConfig
	tick  time.Duration
	group *run.Group

	mu     sync.Mutex
	gauges map[*Gauge]struct{} // guarded by mu
}

// Gauge is one kind of step of one file: at most one of them runs at a time.
type Gauge struct {
	dog     *Watchdog
	name    string
	seq     atomic.Uint64 // odd while a step runs
	stalled atomic.Bool

	seen uint64        // the watchdog's; the seq it saw last
	age  time.Duration // the watchdog's; how long seq stayed the same and odd
	hung bool          // the watchdog's
}

// NewWatchdog returns a watchdog that looks from Start to Stop.
func NewWatchdog(cfg WatchdogConfig) *Watchdog {
	if cfg.Stall <= 0 {
		cfg.Stall = 3 * time.Second
	}
	if cfg.Hang <= 0 {
		cfg.Hang = 30 * time.Second
	}
	return &Watchdog{
		cfg: cfg, tick: max(min(cfg.Stall, cfg.Hang)/8, time.Millisecond), group: run.Owned("watchdog"),
		gauges: make(map[*Gauge]struct{}),
	}
}

// Start begins to look.
func (w *Watchdog) Start() { w.group.Go("look", w.run) }

// Stop ends the goroutine.
func (w *Watchdog) Stop() { w.group.Stop() }

// Gauge registers steps under a name. A nil Watchdog gives a gauge that nobody looks at.
func (w *Watchdog) Gauge(name string) *Gauge {
	g := &Gauge{dog: w, name: name}
	if w != nil {
		w.mu.Lock()
		w.gauges[g] = struct{}{}
		w.mu.Unlock()
	}
	return g
}

// Begin and End enclose a step.
func (g *Gauge) Begin() { g.seq.Add(1) }

// End says that the step returned.
func (g *Gauge) End() { g.seq.Add(1) }

// step runs f as a step.
func (g *Gauge) step(f func() error) error {
	g.Begin()
	defer g.End()
	return f()
}

// Stalled tells whether the running step is older than the stall limit.
func (g *Gauge) Stalled() bool { return g.stalled.Load() }

// Close takes the gauge off the watchdog.
func (g *Gauge) Close() {
	if g == nil || g.dog == nil {
		return
	}
	g.dog.mu.Lock()
	delete(g.dog.gauges, g)
	g.dog.mu.Unlock()
	if g.stalled.Swap(false) && g.dog.cfg.OnStall != nil {
		g.dog.cfg.OnStall(g.name, false)
	}
}

func (w *Watchdog) run(ctx context.Context) {
	ticker := time.NewTicker(w.tick)
	defer ticker.Stop()
	last := clock.Monotonic()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := clock.Monotonic()
		// A tick that comes late counts as two at most: the time in between was ours.
		w.look(min(now.Sub(last), 2*w.tick))
		last = now
	}
}

// look ages the steps that run by d, and tells what has become too old.
func (w *Watchdog) look(d time.Duration) {
	type news struct {
		g       *Gauge
		stalled bool
		hung    time.Duration
	}
	var all []news
	w.mu.Lock()
	for g := range w.gauges {
		seq := g.seq.Load()
		if seq%2 == 0 || seq != g.seen {
			g.seen, g.age, g.hung = seq, 0, false
		} else {
			g.age += d
		}
		n := news{g: g, stalled: g.age >= w.cfg.Stall}
		if g.age >= w.cfg.Hang && !g.hung {
			g.hung, n.hung = true, g.age
		}
		if g.stalled.Swap(n.stalled) != n.stalled || n.hung > 0 {
			all = append(all, n)
		}
	}
	w.mu.Unlock()
	for _, n := range all {
		if w.cfg.OnStall != nil && n.hung == 0 {
			w.cfg.OnStall(n.g.name, n.stalled)
		}
		if w.cfg.OnHang != nil && n.hung > 0 {
			w.cfg.OnHang(n.g.name, n.hung)
		}
	}
}
