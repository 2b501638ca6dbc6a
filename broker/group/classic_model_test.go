package group

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// TestClassicClientsAgree runs classic clients that come, crash, leave and come
// back under failovers. In every generation there is one leader, everybody gets what that
// leader assigned in that generation, and in the end all are in one generation.
func TestClassicClientsAgree(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var failure any
		synctest.Test(t, func(t *testing.T) {
			defer func() { failure = recover() }()
			runClassicModel(t, rt)
		})
		if failure != nil {
			panic(failure)
		}
	})
}

type classicModel struct {
	*world
	mu      sync.Mutex
	leaders map[int32]string         // generation -> who leads
	stable  map[string]int32         // client -> generation it works in; absent while it does not
	wrong   []string                 // what must not happen
	stop    map[string]func() string // ends a client and returns its member id
}

func runClassicModel(t *testing.T, rt *rapid.T) {
	m := &classicModel{
		world:   newWorld(t, Config{InitialRebalanceDelay: -1}),
		leaders: map[int32]string{}, stable: map[string]int32{}, stop: map[string]func() string{},
	}
	defer m.world.stop()
	defer func() {
		for _, end := range m.stop {
			end()
		}
	}()
	// An offset keeps the group, and its generations, while it is empty.
	m.topics.set("t", 1)
	m.c.CommitOffsets(m.ctx, CommitRequest{Group: "g", Offsets: []OffsetCommit{{Topic: "t"}}})
	for i := range rapid.IntRange(3, 15).Draw(rt, "steps") {
		switch what := rapid.SampledFrom([]string{"start", "start", "crash", "leave", "failover", "wait"}).Draw(rt, "step"); what {
		case "start":
			m.start(fmt.Sprintf("c%d", i), rapid.Bool().Draw(rt, "require"))
		case "crash", "leave":
			if len(m.stop) == 0 {
				continue
			}
			name := rapid.SampledFrom(slices.Sorted(maps.Keys(m.stop))).Draw(rt, "who")
			id := m.stop[name]()
			delete(m.stop, name)
			if what == "leave" && id != "" {
				m.c.LeaveGroup(m.ctx, "g", []MemberIdentity{{MemberID: id}})
			}
		case "failover":
			m.sg.failover()
		}
		<-time.After(time.Duration(rapid.IntRange(0, 8000).Draw(rt, "ms")) * time.Millisecond)
	}
	<-time.After(2 * time.Minute)
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.wrong) > 0 {
		rt.Fatal(m.wrong)
	}
	generations := slices.Compact(slices.Sorted(maps.Values(m.stable)))
	if len(m.stable) != len(m.stop) || len(m.stop) > 0 && len(generations) != 1 {
		rt.Fatalf("%d clients run; these work, in these generations: %v", len(m.stop), m.stable)
	}
	m.checkReplicas()
}

func (m *classicModel) start(name string, require bool) {
	ctx, cancel := context.WithCancel(m.ctx)
	var wg sync.WaitGroup
	id := ""
	wg.Go(func() {
		for ctx.Err() == nil {
			id = m.round(ctx, name, id, require)
			m.mu.Lock()
			delete(m.stable, name)
			m.mu.Unlock()
		}
	})
	m.stop[name] = func() string {
		cancel()
		wg.Wait()
		return id
	}
}

// round is one generation of a client: join, sync, heartbeat until told otherwise.
func (m *classicModel) round(ctx context.Context, name, id string, require bool) string {
	j, err := m.c.JoinGroup(ctx, JoinRequest{
		Group: "g", MemberID: id, ClientID: name, ProtocolType: "consumer", RequireMemberID: require,
		SessionTimeout: 10 * time.Second, RebalanceTimeout: 20 * time.Second, Protocols: []ClassicProtocol{{"range", []byte(name)}},
	})
	switch errs.CodeOf(err) {
	case errs.None, errs.MemberIDRequired:
		id = j.MemberID
	case errs.UnknownMemberID:
		return ""
	}
	if err != nil {
		select { // a client waits before it tries again
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
		return id
	}
	m.lead(j)
	r := SyncRequest{Group: "g", MemberID: id, Generation: j.Generation, Assignments: map[string][]byte{}}
	for _, jm := range j.Members {
		r.Assignments[jm.MemberID] = fmt.Appendf(nil, "%d/%s", j.Generation, jm.MemberID)
	}
	got, err := m.c.SyncGroup(ctx, r)
	if err != nil {
		if errs.CodeOf(err) == errs.UnknownMemberID {
			return ""
		}
		return id
	}
	if want := fmt.Sprintf("%d/%s", j.Generation, id); string(got.Assignment) != want {
		m.mu.Lock()
		m.wrong = append(m.wrong, fmt.Sprintf("%s got %q, not %q", name, got.Assignment, want))
		m.mu.Unlock()
	}
	m.mu.Lock()
	m.stable[name] = j.Generation
	m.mu.Unlock()
	for {
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return id
		}
		err := m.c.ClassicHeartbeat(ctx, ClassicHeartbeatRequest{Group: "g", MemberID: id, Generation: j.Generation})
		if errs.CodeOf(err) == errs.UnknownMemberID {
			return ""
		}
		if err != nil {
			return id
		}
	}
}

func (m *classicModel) lead(j JoinResponse) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l, ok := m.leaders[j.Generation]; ok && l != j.Leader {
		m.wrong = append(m.wrong, fmt.Sprintf("generation %d is led by %s and by %s", j.Generation, l, j.Leader))
	}
	m.leaders[j.Generation] = j.Leader
}
