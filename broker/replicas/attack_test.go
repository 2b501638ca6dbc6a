package replicas

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// target is a topic under attack and what its producers know of it.
type target struct {
	name    string
	configs map[string]string
	size    int  // of a value
	trims   bool // log start moves by request
	retains bool // log start moves by itself
	volatil bool // a power cut may take what was not said to be durable

	mu       sync.Mutex
	acked    map[record.Offset]string // guarded by mu
	durable  map[record.Offset]bool   // guarded by mu; said to be on disk
	refused  map[string]bool          // guarded by mu; said to be not done
	start    record.Offset            // guarded by mu; highest log start seen
	mayStart record.Offset            // guarded by mu; highest log start asked for
	sources  []*attacker
}

// attacker is a producer that survives the broker. Numbered ones repeat what has no answer, others
// never repeat anything. A guarded one says at which offset it expects the log to end.
type attacker struct {
	name    string
	pid     int64 // -1: not idempotent
	acks    partition.Acks
	guarded bool

	next   int           // the first value without an answer
	seq    int32         // of that value
	expect record.Offset // guarded: of the attempt without an answer; -1: none
}

func (a *attacker) value(i, size int) string {
	return fmt.Sprintf("%s-%d|%s", a.name, i, strings.Repeat("x", size))
}

func (a *attacker) batch(i int, seq int32, size int) []byte {
	b := record.NewBuilder(record.BuilderConfig{})
	b.Append(record.Record{Timestamp: time.Now().UnixMilli(), Value: []byte(a.value(i, size))})
	raw, err := b.Build()
	if err != nil {
		panic(err)
	}
	if a.pid >= 0 {
		raw.SetProducer(a.pid, 0, seq)
	}
	return raw
}

func id(value string) string { name, _, _ := strings.Cut(value, "|"); return name }

func (g *target) ack(value string, a partition.Appended) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.acked[a.BaseOffset] = id(value)
	if a.Durable {
		g.durable[a.BaseOffset] = true
	}
}

func (g *target) refuse(value string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused[id(value)] = true
}

// attack produces until ctx ends or the replica is gone.
func (g *target) attack(ctx context.Context, h *house, a *attacker) error {
	for ctx.Err() == nil && len(h.fatal) == 0 {
		var err error
		if a.guarded {
			err = g.guardedOnce(ctx, h, a)
		} else {
			err = g.burst(ctx, h, a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// burst keeps five in flight.
func (g *target) burst(ctx context.Context, h *house, a *attacker) error {
	var flight []*partition.Pending
	first := a.next
	for k := range 5 {
		value := a.value(first+k, g.size)
		p, err := h.m.Produce(ctx, g.name, 0, partition.Append{Batch: a.batch(first+k, a.seq+int32(k), g.size), Acks: a.acks, Enqueue: 50 * time.Millisecond})
		if err != nil {
			if errs.OutcomeUnknown(err) {
				return fmt.Errorf("%s: Produce itself answers with an unknown outcome: %w", value[:20], err)
			}
			if a.pid < 0 {
				g.refuse(value)
				a.next++
			}
			break
		}
		flight = append(flight, p)
	}
	if a.pid < 0 {
		a.next += len(flight)
	}
	open := false
	for k, p := range flight {
		value := a.value(first+k, g.size)
		done, err := p.Result(context.Background())
		switch {
		case err == nil:
			g.ack(value, done)
			if a.pid >= 0 && open {
				return fmt.Errorf("%s was appended, and one before it was not", id(value))
			}
			if a.pid >= 0 {
				a.next, a.seq = first+k+1, a.seq+1
			}
		case a.pid < 0 && !errs.OutcomeUnknown(err):
			g.refuse(value)
		case a.pid >= 0 && errs.CodeOf(err) == errs.OutOfOrderSequenceNumber && !open:
			return fmt.Errorf("%s: %w", id(value), err)
		default:
			open = true
		}
	}
	return nil
}

// guardedOnce makes one conditional append, the same again where the last had no answer.
func (g *target) guardedOnce(ctx context.Context, h *house, a *attacker) error {
	value := a.value(a.next, g.size)
	again := a.expect >= 0
	if !again {
		r, err := h.m.Find(g.name, 0)
		if err != nil {
			return nil
		}
		a.expect = r.View().LogEnd
	}
	p, err := h.m.Produce(ctx, g.name, 0, partition.Append{Batch: a.batch(a.next, a.seq, g.size), Acks: a.acks, Conditional: true, Expect: a.expect})
	if err != nil {
		if !again {
			g.refuse(value)
			a.next, a.expect = a.next+1, -1
		}
		return nil
	}
	done, err := p.Result(context.Background())
	switch {
	case err == nil && done.BaseOffset != a.expect:
		return fmt.Errorf("%s expected the end at %d and was appended at %d", id(value), a.expect, done.BaseOffset)
	case err == nil:
		g.ack(value, done)
		a.next, a.seq, a.expect = a.next+1, a.seq+1, -1
	case errs.CodeOf(err) == errs.ExpectationFailed, !again && !errs.OutcomeUnknown(err):
		g.refuse(value)
		a.next, a.expect = a.next+1, -1
	}
	return nil
}

// trim moves the log start now and then.
func (g *target) trim(ctx context.Context, h *house, rng *rand.Rand) {
	for ctx.Err() == nil && len(h.fatal) == 0 {
		r, err := h.m.Find(g.name, 0)
		if err != nil {
			return
		}
		v := r.View()
		g.mu.Lock()
		to := v.LogStart + record.Offset(rng.Int64N(int64(v.HighWatermark-v.LogStart)+1))
		g.mayStart = max(g.mayStart, to)
		g.mu.Unlock()
		if at, err := r.Trim(ctx, to); err == nil {
			g.mu.Lock()
			g.start = max(g.start, at)
			g.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
		}
	}
}

// check reads everything and compares. cut says that the power was cut, not only the process killed.
func (g *target) check(h *house, cut bool) error {
	var r *partition.Replica
	waitFor(h.t, func() bool {
		var err error
		r, err = h.m.Find(g.name, 0)
		return err == nil && r.View().Leader
	})
	release := r.Hold(1) // what is being compared stays
	defer release()
	if err := r.Linearize(context.Background()); err != nil {
		return err
	}
	v := r.View()
	found, at := map[string]record.Offset{}, map[record.Offset]string{}
	next := v.LogStart
	for next < v.HighWatermark {
		batches, _, err := r.Read(next, 1<<20)
		if err != nil {
			return err
		}
		if len(batches) == 0 {
			return fmt.Errorf("nothing at offset %d below the high watermark %d", next, v.HighWatermark)
		}
		for _, b := range batches {
			for rec, err := range b.Records(0) {
				if err != nil {
					return err
				}
				if rec.Offset < next {
					continue
				}
				name := id(string(rec.Value))
				if rec.Offset != next {
					return fmt.Errorf("offset %d follows %d", rec.Offset, next-1)
				}
				if before, twice := found[name]; twice {
					return fmt.Errorf("%s is at offsets %d and %d", name, before, next)
				}
				found[name], at[next] = next, name
				next++
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for name := range g.refused {
		if o, ok := found[name]; ok {
			return fmt.Errorf("%s was refused, and is at offset %d", name, o)
		}
	}
	if v.LogStart < g.start {
		return fmt.Errorf("log start went back from %d to %d", g.start, v.LogStart)
	}
	if !g.retains && v.LogStart > g.mayStart {
		return fmt.Errorf("log start %d, and nobody asked for more than %d", v.LogStart, g.mayStart)
	}
	g.start = v.LogStart
	for o, name := range g.acked {
		switch {
		case o < v.LogStart:
		case at[o] == name:
			continue
		case g.volatil && cut && !g.durable[o]:
		default:
			return fmt.Errorf("%s was acknowledged at offset %d, there is %q; log [%d,%d)", name, o, at[o], v.LogStart, v.HighWatermark)
		}
		delete(g.acked, o)
		delete(g.durable, o)
	}
	return g.ordered(at, v)
}

// ordered checks that the values of each numbered producer are there in their order, without a gap.
func (g *target) ordered(at map[record.Offset]string, v partition.View) error {
	last := map[string]int{}
	for o := v.LogStart; o < v.HighWatermark; o++ {
		cutAt := strings.LastIndexByte(at[o], '-')
		name := at[o][:cutAt]
		n, err := strconv.Atoi(at[o][cutAt+1:])
		if err != nil {
			return err
		}
		for _, a := range g.sources {
			if a.name != name || a.pid < 0 {
				continue
			}
			if before, seen := last[name]; seen && (n <= before || !a.guarded && n != before+1) {
				return fmt.Errorf("%s follows %s-%d", at[o], name, before)
			}
			last[name] = n
		}
	}
	return nil
}

func newTargets() []*target {
	numbered := func(name string, pid int64, acks partition.Acks) *attacker {
		return &attacker{name: name, pid: pid, acks: acks, expect: -1}
	}
	plain := func(name string, acks partition.Acks) *attacker { return numbered(name, -1, acks) }
	list := []*target{
		{
			name: "trimmed", configs: map[string]string{"segment.bytes": "64KiB"}, size: 300, trims: true,
			sources: []*attacker{plain("plain", partition.AcksAll), plain("leader", partition.AcksLeader), numbered("idem", 1, partition.AcksAll), {name: "cas", pid: 2, guarded: true, expect: -1}},
		},
		{
			name: "quiet", configs: map[string]string{"segment.bytes": "64KiB"}, size: 100,
			sources: []*attacker{{name: "cas", pid: 3, guarded: true, expect: -1}, {name: "cas2", pid: 4, guarded: true, expect: -1, acks: partition.AcksLeader}},
		},
		{
			name: "short", configs: map[string]string{"segment.bytes": "64KiB", "retention.bytes": "64KiB"}, size: 2000, trims: true, retains: true,
			sources: []*attacker{plain("plain", partition.AcksQuorum), numbered("idem", 5, partition.AcksLeader)},
		},
		{
			name: "aged", configs: map[string]string{"segment.ms": "20", "retention.ms": "50"}, size: 20, retains: true,
			sources: []*attacker{numbered("idem", 6, partition.AcksAll)},
		},
		{
			name: "recycled", configs: map[string]string{"segment.bytes": "1200KiB", "retention.bytes": "1MiB"}, size: 60_000, retains: true,
			sources: []*attacker{plain("plain", partition.AcksAll), numbered("idem", 7, partition.AcksAll)},
		},
		{
			name: "interval", configs: map[string]string{"segment.bytes": "64KiB", "flush": "interval", "flush.ms": "5"}, size: 300, trims: true, volatil: true,
			sources: []*attacker{plain("plain", partition.AcksAll), plain("leader", partition.AcksLeader)},
		},
	}
	for _, g := range list {
		g.acked, g.durable, g.refused = map[record.Offset]string{}, map[record.Offset]bool{}, map[string]bool{}
	}
	return list
}

// fromEnv lets a person run this for hours: TIDEMARK_SEED, TIDEMARK_ROUNDS.
func fromEnv(name string, other uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return other
}

// Everything at once: producers of all kinds, rolls, trims, retention by size and age, recycled
// files and three flush modes, while the power is cut or the process killed at a random step.
func TestNothingIsLostDoubledOrMadeUpWhateverStopsTheBroker(t *testing.T) {
	seed := fromEnv("TIDEMARK_SEED", uint64(time.Now().UnixNano()))
	rounds := fromEnv("TIDEMARK_ROUNDS", 16)
	t.Logf("TIDEMARK_SEED=%d TIDEMARK_ROUNDS=%d", seed, rounds)
	rng := rand.New(rand.NewPCG(seed, 2))
	h := newHouse(t)
	targets := newTargets()
	for _, g := range targets {
		_, _, err := h.ctl.CreateTopic(context.Background(), controller.NewTopic{Name: g.name, Configs: g.configs})
		h.must(err)
	}
	for _, g := range targets { // until it is formed
		waitFor(t, func() bool { r, err := h.m.Find(g.name, 0); return err == nil && r.View().Leader })
	}
	acked := 0
	for round := range rounds {
		mode := rng.IntN(5)
		if mode < 4 {
			h.fs.CrashAt(1 + rng.IntN(1500))
		}
		h.assault(t, rng, targets)
		cut := h.halt(rng, mode)
		h.reopen()
		for _, g := range targets {
			acked += len(g.acked)
			if err := g.check(h, cut); err != nil {
				t.Fatalf("round %d, stopped by %d: %s: %v\n%s", round, mode, g.name, err, h.logged)
			}
		}
		if err := h.m.Trouble(); err != nil {
			t.Fatalf("round %d, stopped by %d: %v\n%s", round, mode, err, h.logged)
		}
	}
	h.must(h.close())
	t.Logf("%d rounds, %d acknowledged records compared", rounds, acked)
}

// halt stops the broker: 0 and 1 cut the power and tear what was not synced, 2 cuts it without
// tearing, 3 kills the process alone, 4 stops it properly.
func (h *house) halt(rng *rand.Rand, mode int) (cut bool) {
	if mode == 3 {
		h.fs.CrashAt(1)
		_ = h.close()
		h.fs = h.fs.Kill()
		return false
	}
	err := h.close()
	if mode == 4 {
		h.must(err)
		h.fs = h.fs.Kill()
		return false
	}
	h.fs = h.fs.Reboot(rng, mode < 2)
	return true
}

func (h *house) reopen() {
	for len(h.fatal) > 0 {
		<-h.fatal
	}
	h.open()
}

func (h *house) assault(t *testing.T, rng *rand.Rand, targets []*target) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(50+rng.IntN(300))*time.Millisecond)
	defer cancel()
	var load sync.WaitGroup
	for _, g := range targets {
		for _, a := range g.sources {
			load.Go(func() {
				if err := g.attack(ctx, h, a); err != nil {
					t.Errorf("%s: %v", g.name, err)
				}
			})
		}
		if g.trims {
			own := rand.New(rand.NewPCG(rng.Uint64(), 3))
			load.Go(func() { g.trim(ctx, h, own) })
		}
	}
	load.Wait()
}

// A process that is killed leaves names that it has not made durable. The next one finds
// them there, and must not take them for durable.
func TestNamesOfAKilledProcessAreMadeDurable(t *testing.T) {
	h := newHouse(t)
	created, _, err := h.ctl.CreateTopic(t.Context(), controller.NewTopic{Name: "before"})
	h.must(err)
	h.mustProduce(created.Name, 0, "x")
	h.must(h.close())
	// Nobody leads it yet, so the call does not wait for that.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, _ = h.ctl.CreateTopic(gone, controller.NewTopic{Name: "orders"})
	made, ok := h.ctl.Topic("orders")
	if !ok {
		t.Fatal("the topic was not made")
	}
	// As far as openOne came.
	h.must(h.fs.MkdirAll(h.m.replicaDir(made.ID, 0), 0o700))
	h.fs = h.fs.Kill()
	h.open()
	a := h.mustProduce("orders", 0, "acknowledged")
	_ = h.close()
	h.fs = h.fs.Reboot(nil, false)
	h.open()
	if err := h.m.Trouble(); err != nil {
		t.Fatal(err)
	}
	if got := h.read("orders", 0); got[a.BaseOffset] != "acknowledged" {
		t.Errorf("offset %d holds %q", a.BaseOffset, got[a.BaseOffset])
	}
	h.must(h.close())
}
