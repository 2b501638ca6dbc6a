package raftgroup_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/simnet"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// register counts what clients did, and what they were answered.
type register struct {
	mu    sync.Mutex
	next  int            // guarded by mu
	acked []string       // guarded by mu
	known map[string]int // guarded by mu; outcomes
}

func (r *register) note(outcome string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[outcome]++
}

// write proposes a new key at a member, whether or not it leads.
func (r *register) write(t *testing.T, m *member) {
	r.mu.Lock()
	r.next++
	key := fmt.Sprint("k", r.next)
	r.mu.Unlock()
	_, err := m.Propose(t.Context(), []byte(key+"=1"))
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.acked = append(r.acked, key)
		r.known["acked"]++
	case errs.OutcomeUnknown(err):
		r.known["unknown"]++
	default:
		r.known["refused"]++
	}
}

// read asks a member, whether or not it leads: what was acknowledged before must be there.
func (r *register) read(t *testing.T, m *member) {
	r.mu.Lock()
	before := r.acked[max(0, len(r.acked)-100):]
	r.mu.Unlock()
	if m.Read(t.Context()) != nil {
		r.note("no read")
		return
	}
	r.note("reads")
	for _, key := range before {
		if m.sm.get(key) != "1" {
			t.Errorf("%s was acknowledged before the read at %s, which does not have it", key, m.cfg.ID)
		}
	}
}

// Everything at once: cuts, one-way cuts, loss, hung disks, transfers, snapshots that are installed. No acknowledged command is
// lost, and no read is stale.
func TestAStateGroupUnderFaults(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("seed: TIDEMARK_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	all := map[string]int{}
	for range 4 {
		onThree(t, func(c *three, t *testing.T) {
			r := &register{known: map[string]int{}}
			c.faults(t, r, rng)
			for k, n := range r.known {
				all[k] += n
			}
		}, func(cfg *raftgroup.StateConfig) { cfg.Timing, cfg.SnapshotEvery = quick, 32 })
	}
	t.Logf("%v", all)
	for _, k := range []string{"acked", "unknown", "refused", "reads", "installed", "hangs", "transfers"} {
		if all[k] == 0 {
			t.Errorf("no %s: this tests too little", k)
		}
	}
}

func (c *three) faults(t *testing.T, r *register, rng *rand.Rand) {
	end := make(chan struct{})
	var clients sync.WaitGroup
	for _, m := range c.at {
		for range 2 {
			clients.Go(func() {
				for every := time.NewTicker(20 * time.Millisecond); ; {
					select {
					case <-every.C:
						r.write(t, m)
					case <-end:
						every.Stop()
						return
					}
				}
			})
		}
		clients.Go(func() {
			group := m.Group()
			for every := time.NewTicker(30 * time.Millisecond); ; {
				select {
				case <-every.C:
					r.read(t, m)
					if now := m.Group(); now != group {
						group = now
						r.note("installed")
					}
				case <-end:
					every.Stop()
					return
				}
			}
		})
	}
	var hung []*hangingLog // one after the other comes back, long before the process would be ended
	for range 40 {
		a, b := c.at[rng.IntN(3)], c.at[rng.IntN(3)]
		switch rng.IntN(7) {
		case 0:
			c.isolate(a)
		case 1:
			c.n.CutOneWay(string(a.cfg.ID), string(b.cfg.ID))
		case 2, 3:
			c.n.HealAll()
			c.n.SetDefault(simnet.Path{Delay: time.Millisecond})
		case 4:
			c.n.SetDefault(simnet.Path{Delay: time.Millisecond, Jitter: 20 * time.Millisecond, Loss: 0.1, Duplicate: 0.1, Reorder: true})
		case 5:
			if until := make(chan struct{}); a.log.hang.CompareAndSwap(nil, &until) {
				hung = append(hung, a.log)
				r.note("hangs")
			}
		case 6:
			for _, m := range c.at {
				if _, ok := m.Leading(); ok && m.Transfer(t.Context(), b.cfg.ID) == nil {
					r.note("transfers")
				}
			}
		}
		<-time.After(time.Duration(rng.Int64N(int64(2 * time.Second))))
		for len(hung) > 2 || len(hung) > 0 && rng.IntN(2) == 0 {
			close(*hung[0].hang.Swap(nil))
			hung = hung[1:]
		}
	}
	for _, l := range hung {
		close(*l.hang.Swap(nil))
	}
	c.n.HealAll()
	c.n.SetDefault(simnet.Path{Delay: time.Millisecond})
	c.leader(nil)
	close(end)
	clients.Wait()
	leader := c.leader(nil)
	propose(t, leader.StateGroup, "end=1")
	defer func() {
		if t.Failed() {
			c.describe(t)
		}
	}()
	c.until("all agree", func() bool {
		return c.agrees(c.at[0], c.at[1]) && c.agrees(c.at[1], c.at[2]) && c.at[2].sm.get("end") == "1"
	})
	for _, key := range r.acked {
		if c.at[0].sm.get(key) != "1" {
			t.Errorf("%s was acknowledged and is gone", key)
		}
	}
}

// describe tells where everybody stands.
func (c *three) describe(t *testing.T) {
	for _, m := range c.at {
		first, _ := m.log.FirstIndex()
		last, _ := m.log.LastIndex()
		r := m.Group().Raft()
		_, leader := r.LeaderWithID()
		t.Logf("%s: %v in term %d, follows %q, log %d to %d, commit %d, applied %d, end=%q, error %v, stalled %v",
			m.cfg.ID, r.State(), r.CurrentTerm(), leader, first, last, r.CommitIndex(), r.AppliedIndex(), m.sm.get("end"), m.Group().Err(), m.Group().Stalled())
	}
}
