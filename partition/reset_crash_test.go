package partition

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
)

// scene is a leader's offer and the disk of a follower that needs it.
type scene struct {
	leader *rig
	offer  offered
	term   uint64
	disk   *sim.FS
	base   log.Index
	last   log.Index // of the old generation
	state  []byte    // of the old generation
}

// newScene has a follower that lags, or one whose tail disagrees. It stands in generation generations.
func newScene(t testing.TB, divergent bool, generations int) *scene {
	t.Helper()
	leader, whole := retained(t)
	s := &scene{leader: leader, base: leader.log.FirstIndex() - 1, term: leader.group.Load().Term()}
	f := joining(t, sim.New())
	f.start()
	f.heartbeat(s.term)
	if generations > 0 { // reset once before, by the same leader when it had retained more
		early := earlierOrigin(t, whole, s.base)
		early.req.Term = s.term
		if resp, err := early.to(f.Replica); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		f.reopen()
		f.heartbeat(s.term)
	}
	if divergent {
		f.mustFeed(whole, s.term, s.base-3, s.base-3)
		s.term++
		f.noops(s.term, 9)
	} else {
		f.mustFeed(whole, s.term, s.base-1, s.base-3)
	}
	s.last, s.state = f.log.LastIndex(), f.store.now().encoded
	s.offer = offering(t, leader.Replica, s.term)
	f.stop()
	s.disk = f.fs.(*sim.FS).Clone()
	return s
}

// earlierOrigin is what the leader would have offered when its log still began earlier.
func earlierOrigin(t testing.TB, whole *log.Log, before log.Index) offered {
	t.Helper()
	st := newState(releaseLimits)
	at := log.Index(7)
	for i := log.Index(1); i <= at; i++ {
		e, err := whole.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.follow(e); err != nil {
			t.Fatal(err)
		}
	}
	if at >= before {
		t.Fatalf("entry %d is not below %d", at, before)
	}
	o := log.Origin{Index: st.index, Term: st.term, Offset: st.end, State: st.encode()}
	return offerOf(o, st, uint64(st.term))
}

// follower starts a replica on a copy of the scene's disk.
func (s *scene) follower(t testing.TB) *follower {
	t.Helper()
	f := joining(t, s.disk.Clone())
	f.start()
	f.heartbeat(s.term)
	return f
}

// check tells whether a follower is wholly the old one or wholly the new one.
func (s *scene) check(f *follower) (isNew bool, err error) {
	first, last, state := f.log.FirstIndex(), f.log.LastIndex(), f.store.now().encoded
	switch {
	case first == s.base+1 && last == s.base:
		o, err := log.DecodeOrigin(s.offer.state, f.cfg.Topic, f.cfg.Partition)
		if err == nil && !bytes.Equal(state, o.State) {
			err = errors.New("the new replica has another state than its leader had")
		}
		if v := f.View(); err == nil && (v.LogStart != o.Offset || v.LogEnd != o.Offset || v.HighWatermark != o.Offset) {
			err = fmt.Errorf("the new replica begins at %+v, not at %d", v, o.Offset)
		}
		return true, err
	case last == s.last && bytes.Equal(state, s.state):
		return false, nil
	}
	return false, fmt.Errorf("the replica holds [%d,%d]; the old one ended at %d, the new one begins behind %d", first, last, s.last, s.base)
}

// goOn brings a follower to where the leader is, by whatever it takes.
func (s *scene) goOn(f *follower, isNew bool) error {
	f.heartbeat(s.term)
	if !isNew {
		if resp, err := s.offer.to(f.Replica); err != nil || !resp.Success {
			return fmt.Errorf("the offer comes again: %+v, %w", resp, err)
		}
		f.reopen()
		f.heartbeat(s.term)
	}
	last := s.leader.log.LastIndex()
	if err := f.feed(s.leader.log, s.term, last, last); err != nil {
		return err
	}
	f.awaitHigh(s.leader.View().HighWatermark)
	s.leader.same(f.t, f.rig)
	return nil
}

func scenes(t *testing.T, run func(t *testing.T, s *scene)) {
	for _, divergent := range []bool{false, true} {
		for generations := range 2 {
			if testing.Short() && divergent != (generations == 1) {
				continue
			}
			t.Run(fmt.Sprintf("divergent=%t/generation=%d", divergent, generations), func(t *testing.T) {
				run(t, newScene(t, divergent, generations))
			})
		}
	}
}

// A power cut at every operation of a reset, or the end of the process there with the machine left on, and
// a power cut at every operation of the start after it: the replica is wholly the old one or wholly the new one, and the new one once the leader was answered.
func TestPowerCutAtEveryOperationOfAReset(t *testing.T) {
	scenes(t, func(t *testing.T, s *scene) {
		old, renewed, double := 0, 0, 0
		stride := 2
		if testing.Short() {
			stride = 4
		}
		for n := 1; ; n++ {
			f := s.follower(t)
			fs := f.fs.(*sim.FS)
			fs.CrashAt(n)
			_, err := s.offer.to(f.Replica)
			answered := err == nil
			if answered {
				<-f.reset
			}
			_ = f.tryStop()
			if err != nil && !errors.Is(err, sim.ErrCrashed) {
				t.Fatalf("cut at %d: %v", n, err)
			}
			for second := 1; ; second++ {
				ended := true
				for k := 0; k < 4; k += stride {
					isNew, done := s.cutAgain(t, fs, n, second, (n+second+k)%4, answered)
					if ended = ended && done; !done {
						double++
					}
					if isNew {
						renewed++
					} else {
						old++
					}
				}
				if ended {
					break
				}
			}
			if answered {
				break
			}
		}
		if old == 0 || renewed == 0 || double == 0 {
			t.Fatalf("%d times the old one, %d times the new one, %d double cuts", old, renewed, double)
		}
		t.Logf("%d times the old one, %d times the new one, %d double cuts", old, renewed, double)
	})
}

// cutAgain starts a replica from what the first cut left, cuts the power at an operation of that start, and
// checks what the next one finds. done says that the second cut lay beyond the start.
func (s *scene) cutAgain(t *testing.T, cut *sim.FS, first, second, mode int, answered bool) (isNew, done bool) {
	t.Helper()
	what := fmt.Sprintf("cut at %d, again at %d, mode %d, answered %t", first, second, mode, answered)
	tear, rng := mode%2 == 0, rand.New(rand.NewPCG(uint64(first), uint64(second)))
	fs := cut.Clone() // the machine stays on
	if mode < 2 {
		fs = fs.Reboot(rng, tear)
	}
	again := joining(t, fs)
	fs.CrashAt(second)
	err := again.tryStart()
	if err != nil && !errors.Is(err, sim.ErrCrashed) {
		t.Fatalf("%s: %v", what, err)
	}
	if done = err == nil; done {
		_ = again.tryStop()
	}
	last := joining(t, fs.Reboot(rng, tear))
	if err := last.tryStart(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	isNew, err = s.check(last)
	if err != nil || answered && !isNew {
		t.Fatalf("%s, new %t: %v", what, isNew, err)
	}
	if (second+mode)%9 == 1 {
		if err := s.goOn(last, isNew); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if err := last.tryStop(); err != nil {
		t.Fatal(err)
	}
	return isNew, done
}

// Where there is no room the old replica goes on as if nothing had been, and is reset when there is.
func TestWithoutRoomAResetChangesNothing(t *testing.T) {
	scenes(t, func(t *testing.T, s *scene) {
		failAtEvery(t, s, syscall.ENOSPC, func(n int, op sim.Op, f *follower, err error) {
			switched := op.Kind == sim.OpSyncDir && current(t, f) != f.gen.n
			if switched {
				if f.failure() == nil {
					t.Fatalf("failure at %d (%s %s): nobody knows which generation is in force, and the replica goes on", n, op.Kind, op.Name)
				}
				return
			}
			if !errors.Is(err, syscall.ENOSPC) || f.failure() != nil {
				t.Fatalf("failure at %d (%s %s): %v, %v", n, op.Kind, op.Name, err, f.failure())
			}
			if isNew, err := s.check(f); isNew || err != nil {
				t.Fatalf("failure at %d (%s %s): new %t, %v", n, op.Kind, op.Name, isNew, err)
			}
			if n%3 == 0 { // it goes on in the old generation, also over a restart
				f.again()
			}
			if err := s.goOn(f, false); err != nil {
				t.Fatalf("failure at %d (%s %s): %v", n, op.Kind, op.Name, err)
			}
		})
	})
}

// Any other error of the disk ends the replica; a start finds the old one or the new one.
func TestAFailedOperationOfAResetEndsTheReplica(t *testing.T) {
	scenes(t, func(t *testing.T, s *scene) {
		failAtEvery(t, s, syscall.EIO, func(n int, op sim.Op, f *follower, err error) {
			if !errors.Is(err, syscall.EIO) || f.failure() == nil {
				t.Fatalf("failure at %d (%s %s): %v, and the replica goes on", n, op.Kind, op.Name, err)
			}
			if err := <-f.died; !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			if resp, err := s.offer.to(f.Replica); err == nil {
				t.Fatalf("failure at %d: the offer comes again and is answered %+v", n, resp)
			}
			_ = f.tryStop()
			fs := f.fs.(*sim.FS)
			fs.SetHook(nil)
			fs = fs.Kill()
			if n%2 == 0 {
				fs = fs.Reboot(rand.New(rand.NewPCG(uint64(n), 7)), n%4 == 0)
			}
			again := joining(t, fs)
			again.start()
			isNew, err := s.check(again)
			if err != nil {
				t.Fatalf("failure at %d (%s %s): %v", n, op.Kind, op.Name, err)
			}
			if err := s.goOn(again, isNew); err != nil {
				t.Fatalf("failure at %d (%s %s): %v", n, op.Kind, op.Name, err)
			}
		})
	})
}

// failAtEvery fails each operation of a reset in turn, and lets judge look.
func failAtEvery(t *testing.T, s *scene, fault error, judge func(n int, op sim.Op, f *follower, err error)) {
	for n := 1; ; n++ {
		f := s.follower(t)
		fs := f.fs.(*sim.FS)
		at := fs.Ops() + n
		var failed sim.Op
		fs.SetHook(func(op sim.Op) sim.Fault {
			if op.N == at && op.Kind.Mutates() {
				failed = op
				return sim.Fault{Err: fault, Short: op.Len / 2}
			}
			return sim.Fault{}
		})
		_, err := s.offer.to(f.Replica)
		fs.SetHook(nil)
		if failed.Kind == "" {
			if err != nil {
				t.Fatal(err)
			}
			if n < 15 {
				t.Fatalf("a reset has only %d operations", n)
			}
			return
		}
		if strings.Contains(failed.Name, "stable") {
			continue
		}
		judge(n, failed, f, err)
	}
}

func current(t testing.TB, f *follower) uint64 {
	t.Helper()
	n, err := readCurrent(f.fs, f.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The process ends right behind the rename of CURRENT, and the power goes during the next start: nothing of the old
// replica may be removed before the switch is durable, whichever of the names survive.
func TestPowerCutInTheStartAfterASwitchThatWasNotSynced(t *testing.T) {
	s := newScene(t, true, 1)
	f := s.follower(t)
	fs := f.fs.(*sim.FS)
	renamed := false
	fs.SetHook(func(op sim.Op) sim.Fault {
		crash := renamed
		renamed = renamed || op.Kind == sim.OpRename && strings.HasSuffix(op.Name, "/"+currentName)
		return sim.Fault{Crash: crash}
	})
	if _, err := s.offer.to(f.Replica); !errors.Is(err, sim.ErrCrashed) || !renamed {
		t.Fatalf("%t, %v", renamed, err)
	}
	_ = f.tryStop()
	news := 0
	for second, done := 1, false; !done; second++ {
		for seed := range 12 {
			var isNew bool
			isNew, done = s.cutAgain(t, fs, seed, second, 2, false)
			if isNew {
				news++
			}
		}
	}
	if news == 0 {
		t.Fatal("the switch was lost each time")
	}
}
