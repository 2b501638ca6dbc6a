package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

func TestANewReplicaGetsAllThatIsRetained(t *testing.T) {
	leader, _ := retained(t)
	f := joining(t, sim.New())
	f.start()
	term := leader.group.Load().Term()
	f.heartbeat(term)
	offer := offering(t, leader.Replica, term)
	if resp, err := offer.to(f.Replica); err != nil || !resp.Success || resp.Term != term {
		t.Fatalf("%+v, %v", resp, err)
	}
	if _, err := f.append(Append{Batch: batch("x")}); !errors.Is(err, errReset) || !errs.Retriable(err) {
		t.Fatalf("append after the reset: %v", err)
	}
	if _, _, err := f.Read(0, 1<<20); !errors.Is(err, errReset) {
		t.Fatalf("read after the reset: %v", err)
	}
	f.reopen()
	v := f.View()
	if start := leader.View().LogStart; v.LogStart != start || v.HighWatermark != start || v.LogEnd != start || start == 0 {
		t.Fatalf("%+v, the leader's log starts at %d", v, start)
	}
	if term := f.group.Load().Term(); term != leader.group.Load().Term() {
		t.Fatalf("the term is %d after the reset", term)
	}
	if _, _, err := f.Read(v.LogStart-1, 1<<20); !errors.Is(err, log.ErrOutOfRange) {
		t.Fatalf("read below the base: %v", err)
	}
	last := leader.log.LastIndex()
	f.mustFeed(leader.log, term, last, last)
	f.awaitHigh(leader.View().HighWatermark)
	leader.same(t, f.rig)
	if a, b := leader.values(), f.values(); len(a) == 0 || len(a) != len(b) {
		t.Fatalf("%d and %d values", len(a), len(b))
	}
	f.stop()
	f.start() // from the new generation, once more
	leader.same(t, f.rig)
	if len(f.values()) != len(leader.values()) {
		t.Fatal("values are lost after another start")
	}
}

// A batch below the base that comes again is recognised by the replica that never saw it.
func TestAResetReplicaKnowsTheProducersBelowItsBase(t *testing.T) {
	leader, _ := retained(t)
	f := joining(t, sim.New())
	f.start()
	term := leader.group.Load().Term()
	f.heartbeat(term)
	if _, err := offering(t, leader.Replica, term).to(f.Replica); err != nil {
		t.Fatal(err)
	}
	f.reopen()
	o, err := leader.log.Origin()
	if err != nil {
		t.Fatal(err)
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	known := f.store.state.producers.byID[1].newest()
	if known.base >= o.Offset {
		t.Fatalf("producer 1 appended last at %d, the base is %d", known.base, o.Offset)
	}
	dup, ok, code := f.store.state.producers.judge(claim{producer: 1, first: known.first, last: known.last}, f.store.state.end)
	if !ok || code != errs.None || dup.base != known.base {
		t.Fatalf("%+v, %t, %v", dup, ok, code)
	}
}

// Raft asks for the entry before the first one, and takes any error but exactly this one for a
// failure below it.
func TestTheEntryBeforeTheFirstOneHasItsTerm(t *testing.T) {
	leader, whole := retained(t)
	base := leader.log.FirstIndex() - 1
	want, err := whole.Entry(base)
	if err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := leader.store.GetLog(uint64(base), &l); err != nil || l.Index != uint64(base) || l.Term != uint64(want.Term) {
		t.Fatalf("%+v, %v", l, err)
	}
	for i := range uint64(base) {
		if err := leader.store.GetLog(i, &l); err != raft.ErrLogNotFound {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
}

// Raft goes on in memory with a term that the disk did not take, until it is fenced. No reset rests on it.
func TestAnOfferOfATermThatIsNotDurableIsRefused(t *testing.T) {
	leader, _ := retained(t)
	term := leader.group.Load().Term() + 1
	for range 20 {
		f := joining(t, sim.New())
		f.start()
		f.fs.(*sim.FS).SetHook(func(op sim.Op) sim.Fault {
			if op.Kind == sim.OpSync && strings.HasSuffix(op.Name, "/stable") {
				return sim.Fault{Err: syscall.EIO}
			}
			return sim.Fault{}
		})
		_, _ = f.send(&raft.AppendEntriesRequest{Term: term})
		if got := f.group.Load().Raft().CurrentTerm(); got != term {
			t.Fatalf("the term is %d: this tests nothing", got)
		}
		if resp, err := offering(t, leader.Replica, term).to(f.Replica); err == nil || current(t, f) != 0 {
			t.Fatalf("%+v, %v", resp, err)
		}
	}
}

// Two leaders of one term cannot be. Should it seem so, nobody's log goes.
func TestALeaderIsNotReset(t *testing.T) {
	leader, _ := retained(t)
	other := simRig(t)
	term := max(leader.group.Load().Term(), other.group.Load().Term())
	for other.group.Load().Term() < term {
		other.restart()
	}
	if resp, err := offering(t, leader.Replica, other.group.Load().Term()).to(other.Replica); err == nil || other.failure() != nil {
		t.Fatalf("%+v, %v", resp, err)
	}
}

// what an offer meets at a follower, and what becomes of it.
func TestAnOfferResetsOnlyWhoEndsBelowOrDisagrees(t *testing.T) {
	leader, whole := retained(t)
	base := leader.log.FirstIndex() - 1
	last, term := leader.log.LastIndex(), leader.group.Load().Term()
	for name, c := range map[string]struct {
		prepare func(*follower)
		term    uint64
		success bool
		reset   bool
	}{
		"ends below":                   {func(f *follower) { f.mustFeed(whole, term, base-2, base-4) }, term, true, true},
		"ends at the base":             {func(f *follower) { f.mustFeed(whole, term, base, base-4) }, term, true, false},
		"ends above, uncommitted":      {func(f *follower) { f.mustFeed(whole, term, last, base-1) }, term, true, false},
		"ends above, committed":        {func(f *follower) { f.mustFeed(whole, term, last, last) }, term, true, false},
		"committed up to the base":     {func(f *follower) { f.mustFeed(whole, term, base, base) }, term, true, false},
		"disagrees at the base":        {func(f *follower) { f.mustFeed(whole, term, base-2, base-3); f.noops(term+1, 7) }, term + 1, true, true},
		"disagrees and ends below":     {func(f *follower) { f.mustFeed(whole, term, base-3, base-3); f.noops(term+1, 1) }, term + 1, true, true},
		"of a deposed leader":          {func(f *follower) { f.mustFeed(whole, term, base-2, base-4); f.heartbeat(term + 1) }, term, false, false},
		"of a term that is not known":  {func(f *follower) { f.mustFeed(whole, term, base-2, base-4) }, term + 1, false, false},
		"deposed, and disagrees there": {func(f *follower) { f.mustFeed(whole, term, base-2, base-3); f.noops(term+1, 7) }, term, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := joining(t, sim.New())
			f.start()
			c.prepare(f)
			before, first := f.log.LastIndex(), f.log.FirstIndex()
			own := f.group.Load().Term()
			resp, err := offering(t, leader.Replica, c.term).to(f.Replica)
			if err != nil || resp.Success != c.success || resp.Term != own {
				t.Fatalf("%+v, %v", resp, err)
			}
			if was := errors.Is(f.failure(), errReset); was != c.reset {
				t.Fatalf("reset: %t", was)
			}
			if c.reset {
				f.reopen()
				if f.log.FirstIndex() != base+1 || f.log.LastIndex() != base || f.gen.n != 1 {
					t.Fatalf("[%d,%d], generation %d", f.log.FirstIndex(), f.log.LastIndex(), f.gen.n)
				}
				f.heartbeat(own)
				f.mustFeed(leader.log, own, last, last)
				f.awaitHigh(leader.View().HighWatermark)
				leader.same(t, f.rig)
				return
			}
			f.again()
			if f.log.FirstIndex() != first || f.log.LastIndex() != before || f.gen.n != 0 {
				t.Fatalf("[%d,%d], was [%d,%d]; generation %d", f.log.FirstIndex(), f.log.LastIndex(), first, before, f.gen.n)
			}
		})
	}
}

// again stops the follower and starts it from the same files.
func (f *follower) again() {
	f.t.Helper()
	f.stop()
	f.start()
}

// Offers that come late, twice, and out of their order.
func TestOffersThatComeLateChangeNothing(t *testing.T) {
	leader, whole := retained(t)
	base, last, term := leader.log.FirstIndex()-1, leader.log.LastIndex(), leader.group.Load().Term()
	early := earlierOrigin(t, whole, base)
	early.req.Term = term
	late := offering(t, leader.Replica, term)
	unchanged := func(f *follower, what string, o offered, success bool) {
		t.Helper()
		first, end, before := f.log.FirstIndex(), f.log.LastIndex(), f.store.now().encoded
		resp, err := o.to(f.Replica)
		if err != nil || resp.Success != success || resp.Term != f.group.Load().Term() {
			t.Fatalf("%s: %+v, %v", what, resp, err)
		}
		if f.failure() != nil || f.log.FirstIndex() != first || f.log.LastIndex() != end || !bytes.Equal(f.store.now().encoded, before) {
			t.Fatalf("%s: [%d,%d], was [%d,%d]; %v", what, f.log.FirstIndex(), f.log.LastIndex(), first, end, f.failure())
		}
	}

	f := joining(t, sim.New())
	f.start()
	f.heartbeat(term)
	if resp, err := late.to(f.Replica); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	if resp, err := early.to(f.Replica); err == nil {
		t.Fatalf("between the reset and the new start: %+v", resp)
	}
	f.reopen()
	for _, stage := range []string{"after the reset", "after the entries", "after a restart"} {
		unchanged(f, "the same "+stage, late, true)
		unchanged(f, "an earlier one "+stage, early, true)
		if stage == "after the reset" {
			f.mustFeed(leader.log, term, last, base)
		} else {
			f.again()
		}
	}
	f.heartbeat(term + 1)
	unchanged(f, "the same after a new term", late, false)

	// The earlier one first: it is a reset, and the later one another.
	f = joining(t, sim.New())
	f.start()
	f.heartbeat(term)
	for gen, o := range []offered{early, late} {
		if resp, err := o.to(f.Replica); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		f.reopen()
		if f.gen.n != uint64(gen)+1 {
			t.Fatalf("generation %d", f.gen.n)
		}
	}
	// Entries below the later base were fed in the meantime, as another leader would have.
	f = joining(t, sim.New())
	f.start()
	f.heartbeat(term)
	if _, err := early.to(f.Replica); err != nil {
		t.Fatal(err)
	}
	f.reopen()
	f.mustFeed(whole, term, last, 0)
	unchanged(f, "the later one, which the entries overtook", late, true)
	f.mustFeed(whole, term, last, last)
	f.awaitHigh(leader.View().HighWatermark)
	unchanged(f, "the earlier one, which the entries overtook", early, true)
}

// The checkpoint at the base is what a start finds when nothing above it is known to be committed.
func TestAResetReplicaStartsWithUncommittedSegments(t *testing.T) {
	leader, whole := retained(t)
	base, last, term := leader.log.FirstIndex()-1, leader.log.LastIndex(), leader.group.Load().Term()
	f := joining(t, sim.New(), withTopic(func(c *TopicConfig) { c.SegmentBytes = log.MinSegmentBytes }))
	f.start()
	f.heartbeat(term)
	o := earlierOrigin(t, whole, base)
	o.req.Term = term
	if _, err := o.to(f.Replica); err != nil {
		t.Fatal(err)
	}
	f.reopen()
	f.mustFeed(whole, term, last, 0)
	if n := f.Stats().Segments; n < 3 {
		t.Fatalf("%d segments", n)
	}
	for range 2 {
		f.again()
	}
	if f.log.LastIndex() != last {
		t.Fatalf("the log ends at %d", f.log.LastIndex())
	}
}

// Readers, the owner's other calls, and a reset beside them: reads give what was there, or say that the replica starts anew.
func TestAResetBesideEverythingElse(t *testing.T) {
	leader, whole := retained(t)
	base, term := leader.log.FirstIndex()-1, leader.group.Load().Term()
	offer := offering(t, leader.Replica, term)
	for range 10 {
		f := joining(t, sim.New(), withTopic(func(c *TopicConfig) { c.SegmentBytes = log.MinSegmentBytes }))
		f.start()
		f.heartbeat(term)
		f.mustFeed(whole, term, base-2, base-2)
		f.awaitHigh(10)
		var all sync.WaitGroup
		begun := make(chan struct{}, 4)
		beside := func(call func() error) {
			all.Go(func() {
				for i := 0; ; i++ {
					if err := call(); errors.Is(err, errReset) {
						return
					} else if err != nil {
						t.Error(err)
						return
					}
					if i == 0 {
						begun <- struct{}{}
					}
				}
			})
		}
		beside(func() error {
			batches, _, err := f.Read(3, 1<<16)
			if err == nil && (len(batches) == 0 || batches[0].BaseOffset() != 3) {
				return fmt.Errorf("read %d batches", len(batches))
			}
			return err
		})
		beside(func() error { _, err := f.Retain(); return err })
		beside(func() error {
			f.View()
			f.Configure(f.cfg.TopicConfig)
			_, err := f.append(Append{Batch: batch("x")})
			if errors.Is(err, errNotLeader) {
				return nil
			}
			return err
		})
		beside(f.Flush)
		for range 4 {
			<-begun
		}
		if resp, err := offer.to(f.Replica); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		all.Wait()
		f.reopen()
		if f.log.LastIndex() != base {
			t.Fatalf("the log ends at %d", f.log.LastIndex())
		}
	}
}

// The owner may stop the replica at any moment of a reset. Nothing touches the disk afterwards, and the
// next start finds one generation or the other.
func TestAResetRacesWithStop(t *testing.T) {
	s := newScene(t, false, 0)
	rng, _ := seeded(t)
	stopped := 0
	for range 60 {
		f := s.follower(t)
		fs := f.fs.(*sim.FS)
		wait, begin := rng.IntN(300), make(chan struct{})
		var answer error
		var offer, stop sync.WaitGroup
		offer.Go(func() {
			<-begin
			for range wait {
				runtime.Gosched()
			}
			_, answer = s.offer.to(f.Replica)
		})
		stop.Go(func() { <-begin; f.stop() })
		close(begin)
		stop.Wait()
		ops := fs.Ops()
		offer.Wait()
		if fs.Ops() != ops {
			t.Fatal("the disk was touched after Stop")
		}
		if answer != nil {
			stopped++
		}
		again := joining(t, fs)
		again.start()
		isNew, err := s.check(again)
		if err != nil || isNew != (answer == nil) {
			t.Fatalf("new %t, answered with %v: %v", isNew, answer, err)
		}
	}
	t.Logf("%d of 60 were stopped before the reset", stopped)
}

// What comes from outside is checked before it is believed, and before memory is taken for it.
func TestADamagedOfferIsRefused(t *testing.T) {
	leader, _ := retained(t)
	term := leader.group.Load().Term()
	f := joining(t, sim.New())
	f.start()
	f.heartbeat(term)
	good := offering(t, leader.Replica, term)
	ops := f.fs.(*sim.FS).Ops()
	refused := func(what string, o offered) {
		t.Helper()
		if resp, err := o.to(f.Replica); err == nil {
			t.Fatalf("%s: %+v", what, resp)
		}
		if f.failure() != nil || f.fs.(*sim.FS).Ops() != ops {
			t.Fatalf("%s: the disk was touched; %v", what, f.failure())
		}
	}
	for i := range good.state {
		o := offered{good.req, bytes.Clone(good.state)}
		o.state[i] ^= 1 << (i % 8)
		refused(fmt.Sprint("byte ", i), o)
	}
	for what, change := range map[string]func(*raft.InstallSnapshotRequest){
		"no size":           func(r *raft.InstallSnapshotRequest) { r.Size = 0 },
		"negative size":     func(r *raft.InstallSnapshotRequest) { r.Size = -1 },
		"huge size":         func(r *raft.InstallSnapshotRequest) { r.Size = math.MaxInt64 },
		"more announced":    func(r *raft.InstallSnapshotRequest) { r.Size++ },
		"less announced":    func(r *raft.InstallSnapshotRequest) { r.Size-- },
		"another index":     func(r *raft.InstallSnapshotRequest) { r.LastLogIndex++ },
		"index 0":           func(r *raft.InstallSnapshotRequest) { r.LastLogIndex = 0 },
		"last index":        func(r *raft.InstallSnapshotRequest) { r.LastLogIndex = math.MaxUint64 },
		"another term":      func(r *raft.InstallSnapshotRequest) { r.LastLogTerm-- },
		"term 0":            func(r *raft.InstallSnapshotRequest) { r.LastLogTerm = 0 },
		"later term":        func(r *raft.InstallSnapshotRequest) { r.LastLogTerm = r.Term + 1 },
		"another config":    func(r *raft.InstallSnapshotRequest) { r.ConfigurationIndex++ },
		"version 0":         func(r *raft.InstallSnapshotRequest) { r.SnapshotVersion = 0 },
		"version of future": func(r *raft.InstallSnapshotRequest) { r.SnapshotVersion = 9 },
	} {
		o := good
		change(&o.req)
		refused(what, o)
	}
	o, err := log.DecodeOrigin(good.state, f.cfg.Topic, f.cfg.Partition)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*log.Origin, *state){
		"state of another entry":      func(_ *log.Origin, s *state) { s.index-- },
		"state of another term":       func(_ *log.Origin, s *state) { s.term-- },
		"state at another offset":     func(_ *log.Origin, s *state) { s.end++ },
		"log start above the end":     func(_ *log.Origin, s *state) { s.start = s.end + 1 },
		"negative log start":          func(_ *log.Origin, s *state) { s.start = -1 },
		"no configuration":            func(_ *log.Origin, s *state) { s.config, s.configIndex = nil, 0 },
		"empty configuration":         func(_ *log.Origin, s *state) { s.config = raft.EncodeConfiguration(raft.Configuration{}) },
		"configuration of no kind":    func(_ *log.Origin, s *state) { s.config = []byte{0xff, 0, 1} },
		"configuration of the future": func(o *log.Origin, s *state) { s.configIndex = o.Index + 1 },
		"negative offset":             func(o *log.Origin, s *state) { o.Offset, s.end, s.start = -1, -1, -1 },
		"producer's batch above":      func(_ *log.Origin, s *state) { s.producers.byID[1].newest().base = s.end },
	} {
		s, err := decodeState(o.State, releaseLimits)
		if err != nil {
			t.Fatal(err)
		}
		o := o
		change(&o, s)
		o.State = s.encode()
		refused(what, offerOf(o, s, term))
	}
	for what, b := range map[string][]byte{
		"another topic":     o.Encode(log.UUID{8}, 3),
		"another partition": o.Encode(log.UUID{7}, 4),
	} {
		refused(what, offered{good.req, b})
	}
	if resp, err := good.to(f.Replica); err != nil || !resp.Success {
		t.Fatalf("and the good one: %+v, %v", resp, err)
	}
}

func FuzzOffer(f *testing.F) {
	s := newState(releaseLimits)
	s.index, s.term, s.end, s.configIndex = 9, 2, 5, 1
	s.config = raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "1/a", Address: "1/a"}}})
	s.producers.add(claim{producer: 4, last: 3}, 1, 7)
	f.Add(log.Origin{Index: 9, Term: 2, Offset: 5, State: s.encode()}.Encode(log.UUID{7}, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		reseal(b)
		o, err := log.DecodeOrigin(b, log.UUID{7}, 3)
		if err != nil {
			return
		}
		if s, err := stateAt(o, releaseLimits); err == nil {
			again := offerOf(o, s, 1<<60).state
			if p, err := log.DecodeOrigin(again, log.UUID{7}, 3); err != nil || !reflect.DeepEqual(o, p) {
				t.Fatalf("written again it is %+v, was %+v: %v", p, o, err)
			}
		}
	})
}

// reseal gives a mutated origin a good checksum, so that what is behind it is reached.
func reseal(b []byte) {
	if len(b) >= 16 {
		binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
	}
}
