package group

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

func TestParkedRequestsAreAnsweredWhenTheCoordinatorGoes(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *world)
		want errs.Code
	}{
		{"it stops", func(w *world) { w.c.Stop() }, errs.ShuttingDown},
		{"it loses its leadership", func(w *world) { w.sg.depose() }, errs.NotCoordinator},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, Config{HeartbeatInterval: 30 * time.Second, DefaultSessionTimeout: 90 * time.Second})
				defer w.stop()
				r, err := w.c.Heartbeat(w.ctx, HeartbeatRequest{Group: "g", MemberID: "m", Topics: []string{"t"}})
				if err != nil {
					t.Fatal(err)
				}
				var parked, joining error
				w.wg.Go(func() {
					_, parked = w.c.Heartbeat(w.ctx, HeartbeatRequest{Group: "g", MemberID: "m", MemberEpoch: r.MemberEpoch, MaxWait: time.Hour})
				})
				w.wg.Go(func() {
					_, joining = w.c.JoinGroup(w.ctx, JoinRequest{
						Group: "c", SessionTimeout: 10 * time.Second, ProtocolType: "consumer", Protocols: []ClassicProtocol{{"range", nil}},
					})
				})
				synctest.Wait()
				c.do(w)
				<-time.After(2 * watchEvery)
				synctest.Wait()
				if errs.CodeOf(parked) != c.want || errs.CodeOf(joining) != c.want {
					t.Errorf("heartbeat: %v, join: %v; want %v", parked, joining, c.want)
				}
				if _, err := w.c.Heartbeat(w.ctx, HeartbeatRequest{Group: "g", MemberID: "m"}); errs.CodeOf(err) != c.want {
					t.Errorf("afterwards: %v", err)
				}
				if err := w.c.Coordinates("g"); errs.CodeOf(err) != c.want {
					t.Errorf("coordinates: %v", err)
				}
			})
		})
	}
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{MaxGroupSize: 2, MaxGroups: 2, MaxGroupPartitions: 2, InitialRebalanceDelay: -1})
		defer w.stop()
		w.topics.set("t", 4)
		native := func(group, member string) error {
			_, err := w.c.Heartbeat(w.ctx, HeartbeatRequest{Group: group, MemberID: member})
			return err
		}
		for _, c := range []struct {
			name string
			do   func() error
			want errs.Code
		}{
			{"first member", func() error { return native("g", "a") }, errs.None},
			{"second member", func() error { return native("g", "b") }, errs.None},
			{"third member", func() error { return native("g", "c") }, errs.GroupMaxSizeReached},
			{"a member that is there", func() error { return native("g", "b") }, errs.None},
			{"second group", func() error { return native("h", "a") }, errs.None},
			{"third group", func() error { return native("i", "a") }, errs.LimitExceeded},
			{"third group by a commit", func() error {
				_, err := w.c.CommitOffsets(w.ctx, CommitRequest{Group: "i", Offsets: []OffsetCommit{{Topic: "t"}}})
				return err
			}, errs.LimitExceeded},
			{"third group by a classic member", func() error {
				_, err := w.c.JoinGroup(w.ctx, JoinRequest{Group: "i", SessionTimeout: 10 * time.Second, ProtocolType: "consumer", RequireMemberID: true, Protocols: []ClassicProtocol{{"range", nil}}})
				return err
			}, errs.LimitExceeded},
			{"long group id", func() error { return native(string(make([]byte, 300)), "a") }, errs.InvalidGroupID},
			{"control character", func() error { return native("g", "a\n") }, errs.InvalidRequest},
			{"no member id", func() error { return native("g", "") }, errs.InvalidRequest},
			{"too many classic metadata", func() error {
				_, err := w.c.JoinGroup(w.ctx, JoinRequest{Group: "h", SessionTimeout: 10 * time.Second, ProtocolType: "consumer", Protocols: []ClassicProtocol{{"range", make([]byte, 2<<20)}}})
				return err
			}, errs.InvalidRequest},
		} {
			if err := c.do(); errs.CodeOf(err) != c.want {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		}
		if err := w.c.Leave(w.ctx, LeaveRequest{Group: "h", MemberID: "a"}); err != nil {
			t.Fatal(err)
		}
		bad, err := w.c.CommitOffsets(w.ctx, CommitRequest{Group: "h", Offsets: []OffsetCommit{{Topic: "t"}, {Topic: "t", Partition: 1}, {Topic: "t", Partition: 2}}})
		if err != nil || len(bad) != 1 || errs.CodeOf(bad[0].Err) != errs.LimitExceeded {
			t.Errorf("third partition: %v, %v", bad, err)
		}
	})
}

func TestUnknownOutcomeIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.stop()
		w.topics.set("t", 1)
		w.sg.hang()
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		_, err := w.c.CommitOffsets(ctx, CommitRequest{Group: "g", Offsets: []OffsetCommit{{Topic: "t"}}})
		if !errs.OutcomeUnknown(err) || errs.CodeOf(err) != errs.RequestTimedOut || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: code %v, outcome unknown %v", err, errs.CodeOf(err), errs.OutcomeUnknown(err))
		}
	})
}

// TestManyAtOnce is for the race detector.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t, Config{InitialRebalanceDelay: -1})
	defer w.stop()
	w.topics.set("t", 16)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { w.busyMember(i) })
	}
	wg.Go(func() {
		for range 50 {
			w.c.List(w.ctx)
			w.c.Describe(w.ctx, "g0")
			w.c.TopicsChanged()
			w.c.local()
		}
	})
	wg.Wait()
	w.checkReplicas()
}

func (w *world) busyMember(i int) {
	r := HeartbeatRequest{Group: fmt.Sprintf("g%d", i%2), MemberID: fmt.Sprintf("m%d", i), Topics: []string{"t"}, MaxWait: time.Millisecond}
	for range 100 {
		resp, err := w.c.Heartbeat(w.ctx, r)
		if err != nil {
			w.t.Error(err)
			return
		}
		r.MemberEpoch, r.Owned = resp.MemberEpoch, resp.Assigned
		k := CommitRequest{Group: r.Group, MemberID: r.MemberID, MemberEpoch: r.MemberEpoch}
		for _, a := range resp.Assigned {
			for _, p := range a.Partitions {
				k.Offsets = append(k.Offsets, OffsetCommit{Topic: a.Topic, Partition: p})
			}
		}
		if bad, err := w.c.CommitOffsets(w.ctx, k); err != nil || len(bad) > 0 {
			w.t.Error(bad, err)
			return
		}
	}
}
