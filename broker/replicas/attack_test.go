package replicas

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/check"
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

	sources []*attacker

	mu       sync.Mutex
	ops      []*check.Op   // guarded by mu; what was done and what the checker has to know of earlier rounds
	mayStart record.Offset // guarded by mu; highest log start asked for
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
	open   []*check.Op   // guarded: attempts at that value, without an answer
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

var begun = time.Now()

func now() int64 { return int64(time.Since(begun)) }

func (g *target) key() check.Key { return check.Key{Topic: g.name} }

// record adds an operation and returns it. Those of all targets are on one clock.
func (g *target) record(op check.Op) *check.Op {
	op.Key, op.Complete = g.key(), now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ops = append(g.ops, &op)
	return &op
}

// sent records what became of one attempt at value i. Whoever sends something only once, or under a
// number, finds it there once, and behind what it sent before.
func (g *target) sent(a *attacker, i int, seq int32, invoke int64, done partition.Appended, err error) *check.Op {
	op := check.Op{
		Kind: check.Send, Process: a.name, Invoke: invoke, Outcome: check.OK,
		Records:  []check.Record{{Offset: int64(done.BaseOffset), Value: id(a.value(i, 0))}},
		Producer: &check.Producer{ID: a.pid, Seq: seq, Idempotent: true},
	}
	if a.pid < 0 {
		op.Producer.Seq = -1
	}
	switch {
	case err == nil:
		op.Weak = g.volatil && !done.Durable
		return g.record(op)
	case errs.OutcomeUnknown(err):
		op.Outcome = check.Unknown
	default:
		op.Outcome = check.Fail
	}
	op.Records[0].Offset, op.Error = check.NoOffset, err.Error()
	return g.record(op)
}

// refuse says that no attempt at the open value was done or will be.
func (g *target) refuse(a *attacker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, op := range a.open {
		op.Outcome, op.Complete = check.Fail, max(op.Complete, op.Invoke)
	}
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
	var invoked [5]int64
	first, seq := a.next, a.seq
	for k := range invoked {
		invoked[k] = now()
		p, err := h.m.Produce(ctx, g.name, 0, partition.Append{Batch: a.batch(first+k, a.seq+int32(k), g.size), Acks: a.acks, Enqueue: 50 * time.Millisecond})
		if err != nil {
			if errs.OutcomeUnknown(err) {
				return fmt.Errorf("%s: Produce itself answers with an unknown outcome: %w", id(a.value(first+k, 0)), err)
			}
			g.sent(a, first+k, seq+int32(k), invoked[k], partition.Appended{}, err)
			if a.pid < 0 {
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
		value := id(a.value(first+k, 0))
		done, err := p.Result(context.Background())
		g.sent(a, first+k, seq+int32(k), invoked[k], done, err)
		switch {
		case err == nil:
			if a.pid >= 0 && open {
				return fmt.Errorf("%s was appended, and one before it was not", value)
			}
			if a.pid >= 0 {
				a.next, a.seq = first+k+1, a.seq+1
			}
		case a.pid >= 0 && errs.CodeOf(err) == errs.OutOfOrderSequenceNumber && !open:
			return fmt.Errorf("%s: %w", value, err)
		default:
			open = true
		}
	}
	return nil
}

// guardedOnce makes one conditional append, the same again where the last had no answer.
func (g *target) guardedOnce(ctx context.Context, h *house, a *attacker) error {
	value := id(a.value(a.next, 0))
	again := a.expect >= 0
	if !again {
		r, err := h.m.Find(g.name, 0)
		if err != nil {
			return nil
		}
		a.expect = r.View().LogEnd
	}
	invoke := now()
	p, err := h.m.Produce(ctx, g.name, 0, partition.Append{Batch: a.batch(a.next, a.seq, g.size), Acks: a.acks, Conditional: true, Expect: a.expect})
	if err != nil {
		g.sent(a, a.next, a.seq, invoke, partition.Appended{}, err)
		if !again {
			a.next, a.expect = a.next+1, -1
		}
		return nil
	}
	done, err := p.Result(context.Background())
	a.open = append(a.open, g.sent(a, a.next, a.seq, invoke, done, err))
	switch {
	case err == nil && done.BaseOffset != a.expect:
		return fmt.Errorf("%s expected the end at %d and was appended at %d", value, a.expect, done.BaseOffset)
	case err == nil:
		a.next, a.seq, a.expect, a.open = a.next+1, a.seq+1, -1, nil
	case errs.CodeOf(err) == errs.ExpectationFailed, !again && !errs.OutcomeUnknown(err):
		g.refuse(a)
		a.next, a.expect, a.open = a.next+1, -1, nil
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
		op := check.Op{Kind: check.Trim, Process: "trim", Invoke: now(), Outcome: check.OK, Offset: int64(to)}
		if _, err := r.Trim(ctx, to); err != nil {
			op.Outcome, op.Error = check.Unknown, err.Error()
		}
		g.record(op)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
		}
	}
}

// check reads everything and has it judged with all that was done before. cut says that the power was
// cut, not only the process killed.
func (g *target) check(h *house, cut bool) (*check.Report, error) {
	var r *partition.Replica
	waitFor(h.t, func() bool {
		var err error
		r, err = h.m.Find(g.name, 0)
		return err == nil && r.View().Leader
	})
	release := r.Hold(1) // what is being compared stays
	defer release()
	final := check.Op{Kind: check.Final, Process: "final", Invoke: now(), Outcome: check.OK}
	if err := r.Linearize(context.Background()); err != nil {
		return nil, err
	}
	v := r.View()
	if !g.retains && v.LogStart > g.mayStart {
		return nil, fmt.Errorf("log start %d, and nobody asked for more than %d", v.LogStart, g.mayStart)
	}
	var err error
	if final.Records, err = readAll(r, v); err != nil {
		return nil, err
	}
	start := g.record(check.Op{Kind: check.LogStart, Process: "final", Invoke: final.Invoke, Outcome: check.OK, Offset: int64(v.LogStart)})
	final.Offset, final.End = int64(v.LogStart), int64(v.HighWatermark)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.volatil && cut {
		g.takeLocked()
	}
	final.Key, final.Complete = g.key(), now()
	g.ops = append(g.ops, &final)
	report := check.Check(g.historyLocked())
	g.pruneLocked(&final, start)
	return report, report.Err(nil)
}

// readAll reads all records. Offsets are dense.
func readAll(r *partition.Replica, v partition.View) (list []check.Record, err error) {
	next := v.LogStart
	for next < v.HighWatermark {
		batches, _, err := r.Read(next, 1<<20)
		if err != nil {
			return nil, err
		}
		if len(batches) == 0 {
			return nil, fmt.Errorf("nothing at offset %d below the high watermark %d", next, v.HighWatermark)
		}
		for _, b := range batches {
			for rec, err := range b.Records(0) {
				if err != nil {
					return nil, err
				}
				if rec.Offset < next {
					continue
				}
				if rec.Offset != next {
					return nil, fmt.Errorf("offset %d follows %d", rec.Offset, next-1)
				}
				list = append(list, check.Record{Offset: int64(next), Value: id(string(rec.Value))})
				next++
			}
		}
	}
	return list, nil
}

// takeLocked forgets what a power cut may take: what was acknowledged as not durable,
// and what was read in earlier rounds.
func (g *target) takeLocked() {
	g.ops = slices.DeleteFunc(g.ops, func(op *check.Op) bool { return op.Kind == check.Final })
	for _, op := range g.ops {
		if op.Weak {
			op.Outcome = check.Unknown
		}
	}
}

// historyLocked is what the checker is to see. What was not durable is as good as durable as
// long as the power stays on.
func (g *target) historyLocked() *check.History {
	h := &check.History{Header: check.Header{Suite: g.name}}
	for _, op := range g.ops {
		seen := *op
		seen.Weak = false
		h.Ops = append(h.Ops, seen)
	}
	return h
}

// pruneLocked keeps what the next round is judged by: what was found just now, and sends that may be there. One that
// was refused and is found after all is then a record that nobody sent.
func (g *target) pruneLocked(final, start *check.Op) {
	g.ops = slices.DeleteFunc(g.ops, func(op *check.Op) bool {
		switch op.Kind {
		case check.Send:
			return op.Outcome == check.Fail || op.Outcome == check.OK && op.Records[0].Offset < final.Offset
		default:
			return op != final && op != start
		}
	})
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
	total := tally{result: check.Result{Suite: "attack", Seed: seed, Runs: 1, Verdict: check.Pass, Counts: map[check.Anomaly]int64{}, Saw: map[string]int64{}}}
	for round := range rounds {
		mode := rng.IntN(5)
		if mode < 4 {
			h.fs.CrashAt(1 + rng.IntN(1500))
		}
		h.assault(t, rng, targets)
		cut := h.halt(rng, mode)
		h.reopen()
		for _, g := range targets {
			total.sends(g.ops)
			report, err := g.check(h, cut)
			total.add(report)
			if err != nil {
				t.Log(total.result)
				t.Fatalf("round %d, stopped by %d: %s: %v\n%s", round, mode, g.name, err, h.logged)
			}
		}
		total.counted = now()
		if err := h.m.Trouble(); err != nil {
			t.Fatalf("round %d, stopped by %d: %v\n%s", round, mode, err, h.logged)
		}
	}
	h.must(h.close())
	t.Log(total.result)
	for _, name := range []string{check.SawAcked, check.SawUnknown, check.SawFailed, check.Checked(check.Lost), check.Checked(check.DuplicateIdempotent),
		check.Checked(check.SequenceGap), check.Checked(check.SendNonmonotonic), check.Checked(check.RealtimeOrder), check.Checked(check.LogStartRegress), check.SawTrimmed} {
		if total.result.Saw[name] == 0 {
			t.Errorf("FAIL: vacuous: %s=0", name)
		}
	}
}

// tally sums the rounds up. A round is judged with what is left of those before it, so that sends
// are counted when they are new.
type tally struct {
	result  check.Result
	counted int64 // until then
}

func (s *tally) sends(ops []*check.Op) {
	names := map[check.Outcome]string{check.OK: check.SawAcked, check.Unknown: check.SawUnknown, check.Fail: check.SawFailed}
	for _, op := range ops {
		if op.Kind == check.Send && op.Complete > s.counted {
			s.result.Saw[names[op.Outcome]]++
		}
	}
}

func (s *tally) add(r *check.Report) {
	if r == nil {
		s.result.Verdict = check.Failed
		return
	}
	for a, n := range r.Counts {
		s.result.Counts[a] += n
	}
	for a, n := range r.Checked {
		s.result.Saw[check.Checked(a)] += n
	}
	s.result.Saw[check.SawTrimmed] += r.Saw[check.SawTrimmed]
	if r.Err(nil) != nil {
		s.result.Verdict = check.Failed
	}
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
