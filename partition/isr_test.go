package partition

import (
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/log"
)

// tracked is a tracker with a leader's log that holds nothing but indexes.
type tracked struct {
	t *testing.T
	*tracker
	changes atomic.Int32
}

func config(voters ...raft.ServerID) raft.Configuration {
	var c raft.Configuration
	for _, id := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id)})
	}
	return c
}

// track leads term 5, whose first entry is 11, with the voters a (itself), b and c; both have acknowledged it.
func track(t *testing.T) *tracked {
	x := &tracked{t: t}
	x.tracker = newTracker("a", 0, 10, func() { x.changes.Add(1) })
	x.append(5, 11, 11)
	x.match(5, "b", 11)
	x.match(5, "c", 11)
	x.lead(5, config("a", "b", "c"))
	t.Cleanup(x.close)
	return x
}

func (x *tracked) append(term, first, last uint64) {
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term})
	}
	x.stored(logs)
}

func (x *tracked) want(durable log.Index, members ...raft.ServerID) {
	x.t.Helper()
	size, all := x.Reached(durable)
	_, more := x.Reached(durable + 1)
	if durable == everything {
		more = false
	}
	if got := x.members(); !slices.Equal(got, members) || size != len(members) || !all || more {
		x.t.Errorf("in sync are %v (%d), reached %d: %v, and more: %v; want %v", got, size, durable, all, more, members)
	}
}

const everything = log.Index(math.MaxUint64)

func TestTheISR(t *testing.T) {
	t.Run("begins with those who acknowledged the term's first entry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := &tracked{t: t}
			x.tracker = newTracker("a", 0, 10, func() { x.changes.Add(1) })
			x.match(5, "c", 10) // before the first entry of the term is stored: the logs agree, no more
			x.append(5, 11, 12)
			x.match(5, "b", 11)
			x.want(0)
			x.lead(5, config("a", "b", "c"))
			x.want(11, "a", "b")
			x.match(5, "c", 11)
			x.want(11, "a", "b", "c")
			x.lead(0, raft.Configuration{})
			x.want(0)
			x.close()
		})
	})
	t.Run("loses who lags, and tells so", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := track(t)
			<-time.After(time.Hour) // idle: who has everything is in sync
			x.want(11, "a", "b", "c")
			x.append(5, 12, 12)
			x.match(5, "b", 12)
			<-time.After(1800 * time.Millisecond)
			x.want(11, "a", "b", "c")
			before := x.changes.Load()
			<-time.After(201 * time.Millisecond)
			x.want(12, "a", "b")
			if x.changes.Load() == before {
				t.Error("nobody was told")
			}
			x.match(5, "c", 12)
			x.want(12, "a", "b", "c")
		})
	})
	t.Run("keeps who follows closely, but never reaches the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := track(t)
			for i := uint64(12); i < 2000; i++ {
				x.append(5, i, i)
				x.match(5, "b", i-1)
				x.match(5, "c", max(161, i)-150) // 1.5 s behind
				<-time.After(10 * time.Millisecond)
				if x.Size() != 3 {
					t.Fatalf("at entry %d only %v are in sync", i, x.members())
				}
			}
		})
	})
	t.Run("loses who follows from too far", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := track(t)
			for i := uint64(12); i < 2000; i++ {
				x.append(5, i, i)
				x.match(5, "b", i-1)
				x.match(5, "c", max(261, i)-250) // 2.5 s behind
				<-time.After(10 * time.Millisecond)
			}
			x.want(1998, "a", "b")
			x.match(5, "c", 1999)
			x.want(1998, "a", "b", "c")
		})
	})
	t.Run("knows nothing of older terms", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := track(t)
			x.append(6, 12, 12) // of another leader
			x.want(0)
			x.lead(0, raft.Configuration{})
			x.append(7, 13, 13)
			x.lead(7, config("a", "b", "c"))
			x.match(5, "b", 13)
			x.match(6, "b", 13)
			x.want(everything, "a")
			x.match(7, "b", 13)
			x.want(13, "a", "b")
		})
	})
	t.Run("survives older entries from a newer leader", func(t *testing.T) {
		x := &tracked{t: t}
		x.tracker = newTracker("a", 0, 10, func() { x.changes.Add(1) })
		x.match(5, "b", 10) // leads term 5, and is deposed before it has stored anything
		x.append(4, 11, 12)
		x.want(0)
	})
	t.Run("follows the configuration", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := track(t)
			x.match(5, "d", 11)
			change := func(index uint64, c raft.Configuration) {
				x.stored([]*raft.Log{{Index: index, Term: 5, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}})
			}
			c := config("a", "b", "c", "d")
			c.Servers[3].Suffrage = raft.Nonvoter
			change(12, c)
			x.match(5, "b", 12)
			x.match(5, "c", 12)
			x.want(12, "a", "b", "c")
			if x.Majority() != 2 {
				t.Errorf("a majority of three is %d", x.Majority())
			}
			<-time.After(3 * time.Second)
			change(13, config("a", "b", "c", "d")) // a promotion: d has not yet what it was appended before
			x.want(12, "a", "b", "c")
			if x.Majority() != 3 {
				t.Errorf("a majority of four is %d", x.Majority())
			}
			x.match(5, "d", 13)
			x.want(12, "a", "b", "c", "d")
			change(14, config("a", "c", "d"))
			x.match(5, "c", 14)
			x.match(5, "d", 14)
			x.want(14, "a", "c", "d")
		})
	})
}
