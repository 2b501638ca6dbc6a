package raftgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listFSM remembers what was applied.
type listFSM struct {
	mu      sync.Mutex
	applied []string // guarded by mu
}

func (m *listFSM) Apply(l *raft.Log) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied = append(m.applied, string(l.Data))
	return len(m.applied)
}
func (m *listFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots") }
func (m *listFSM) Restore(r io.ReadCloser) error       { return r.Close() }
func (m *listFSM) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.applied...)
}

// closer is a transport whose Close must never be called.
type closer struct {
	*Loopback
	closed, handler bool
}

func (c *closer) Close() error                       { c.closed = true; return nil }
func (c *closer) SetHeartbeatHandler(func(raft.RPC)) { c.handler = true }

// brokenLog fails when it is told to.
type brokenLog struct {
	*raft.InmemStore
	mu         sync.Mutex
	store, get error // guarded by mu
}

func (l *brokenLog) fail(store, get error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.store, l.get = store, get
}

func (l *brokenLog) StoreLogs(e []*raft.Log) error {
	l.mu.Lock()
	err := l.store
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.InmemStore.StoreLogs(e)
}

func (l *brokenLog) GetLog(i uint64, out *raft.Log) error {
	l.mu.Lock()
	err := l.get
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.InmemStore.GetLog(i, out)
}

type single struct {
	cfg   Config
	parts Parts
	fsm   *listFSM
	logs  *brokenLog
	trans *closer
	disk  *sim.FS
}

func newSingle(t *testing.T) *single {
	t.Helper()
	s := &single{
		cfg:   Config{Name: "test/0", ID: "b1/r1"},
		fsm:   &listFSM{},
		logs:  &brokenLog{InmemStore: raft.NewInmemStore()},
		trans: &closer{Loopback: NewLoopback("b1/r1")},
		disk:  sim.New(),
	}
	s.parts = Parts{FSM: s.fsm, Logs: s.logs, Stable: newSlot(t, s.disk), Snapshots: raft.NewDiscardSnapshotStore(), Transport: s.trans}
	return s
}

func newSlot(t *testing.T, disk *sim.FS) raft.StableStore {
	t.Helper()
	must(t, disk.MkdirAll("data", 0o700))
	stable, err := OpenStable(disk, "data/stable", nil)
	must(t, err)
	slot, err := stable.Slot([16]byte{1})
	must(t, err)
	return slot
}

func (s *single) start(t *testing.T) *Group {
	t.Helper()
	if has, err := HasState(s.parts); err != nil || !has {
		must(t, err)
		must(t, Bootstrap(s.cfg, s.parts, []raft.Server{{ID: s.cfg.ID, Address: "b1/r1"}}))
	}
	g, err := Start(s.cfg, s.parts)
	must(t, err)
	return g
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func waitLeads(t *testing.T, g *Group) uint64 {
	t.Helper()
	var term uint64
	eventually(t, "the group leads", func() (ok bool) { term, ok = g.LeadsIn(); return ok })
	return term
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited 20 s until %s", what)
		}
	}
}

func TestSoleVoterLeadsAtOnceAndApplies(t *testing.T) {
	s := newSingle(t)
	began := time.Now()
	g := s.start(t)
	waitLeads(t, g)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("led after %v: waited for a timer", took)
	}
	must(t, g.Raft().Apply([]byte("a"), time.Second).Error())
	must(t, g.Stop(context.Background()))
	if got := s.fsm.list(); len(got) != 1 || got[0] != "a" {
		t.Errorf("applied %q", got)
	}
}

func TestRestartCommitsEarlierEntriesBeforeLeading(t *testing.T) {
	s := newSingle(t)
	g := s.start(t)
	first := waitLeads(t, g)
	for i := range 200 {
		must(t, g.Raft().Apply(fmt.Appendf(nil, "%d", i), time.Second).Error())
	}
	must(t, g.Stop(context.Background()))
	s.fsm = &listFSM{}
	s.parts.FSM = s.fsm
	g = s.start(t)
	second := waitLeads(t, g)
	if got := len(s.fsm.list()); got != 200 {
		t.Errorf("leads with %d of 200 entries applied", got)
	}
	if second <= first {
		t.Errorf("leads in term %d after term %d", second, first)
	}
	must(t, g.Stop(context.Background()))
}

func TestSharedTransportIsNeverClosedNorGivenAHeartbeatHandler(t *testing.T) {
	s := newSingle(t)
	g := s.start(t)
	waitLeads(t, g)
	must(t, g.Stop(context.Background()))
	must(t, g.Stop(context.Background()))
	if s.trans.closed {
		t.Error("the group's end closed the transport that all groups share")
	}
	if s.trans.handler {
		t.Error("Raft's heartbeat fast path is on (hashicorp/raft #695)")
	}
	called := false
	NewLoopback("x").SetHeartbeatHandler(func(raft.RPC) { called = true })
	if called {
		t.Error("Loopback runs the heartbeat handler")
	}
}

func TestBootstrapHappensOnce(t *testing.T) {
	s := newSingle(t)
	must(t, s.start(t).Stop(context.Background()))
	if err := Bootstrap(s.cfg, s.parts, []raft.Server{{ID: "b1/r1", Address: "b1/r1"}}); !errors.Is(err, raft.ErrCantBootstrap) {
		t.Errorf("second bootstrap: %v", err)
	}
}

func TestBootstrapCutShortByACrashIsDoneAgain(t *testing.T) {
	s := newSingle(t)
	s.logs.fail(errors.New("crash"), nil)
	if err := Bootstrap(s.cfg, s.parts, []raft.Server{{ID: "b1/r1", Address: "b1/r1"}}); err == nil {
		t.Fatal("bootstrap without a log")
	}
	s.logs.fail(nil, nil)
	g := s.start(t)
	waitLeads(t, g)
	must(t, g.Stop(context.Background()))
}

func TestTimingIsRefusedWithAReason(t *testing.T) {
	for name, change := range map[string]func(*Timing){
		"lease":     func(x *Timing) { x.Lease = x.Heartbeat / 5 },
		"commit":    func(x *Timing) { x.Commit = 2 * time.Second },
		"heartbeat": func(x *Timing) { x.Lease = x.Heartbeat + 1 },
		"election":  func(x *Timing) { x.Election = x.Heartbeat - 1 },
		"positive":  func(x *Timing) { x.Election = 0 },
		"twice":     func(x *Timing) { x.Lease = 2 * x.Commit },
	} {
		timing := DefaultTiming()
		change(&timing)
		s := newSingle(t)
		s.cfg.Timing = timing
		if _, err := Start(s.cfg, s.parts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, DefaultTiming().Validate())
}

// An idle leader with long timers must keep its leadership: with the lease shorter
// than a fifth of the heartbeat every leader of a test broker stepped down.
func TestIdleLeaderKeepsLeading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSingle(t)
		g := s.start(t)
		synctest.Wait()
		first, ok := g.LeadsIn()
		if !ok {
			t.Fatal("does not lead")
		}
		<-time.After(10 * time.Minute)
		if now, ok := g.LeadsIn(); !ok || now != first {
			t.Errorf("led in term %d, after ten idle minutes in %d (%v)", first, now, ok)
		}
		must(t, g.Stop(context.Background()))
	})
}

func TestListenersHearEveryTermBeginAndEnd(t *testing.T) {
	s := newSingle(t)
	g := s.start(t)
	type change struct {
		term    uint64
		leading bool
	}
	heard := make(chan change, 16)
	g.OnLeadership(func(term uint64, leading bool) { heard <- change{term, leading} })
	first := <-heard
	if !first.leading {
		t.Fatalf("heard %+v first", first)
	}
	// A leader that gets a TimeoutNow deposes itself and wins the next term.
	s.trans.Inject(raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}}, RespChan: make(chan raft.RPCResponse, 1)})
	if got := <-heard; got != (change{first.term, false}) {
		t.Fatalf("heard %+v after the end of term %d", got, first.term)
	}
	second := <-heard
	if !second.leading || second.term <= first.term {
		t.Fatalf("heard %+v after term %d", second, first.term)
	}
	must(t, g.Stop(context.Background()))
	if got := <-heard; got != (change{second.term, false}) {
		t.Fatalf("heard %+v at the end of the group", got)
	}
}

func TestCampaignNeverDeposesTheLeader(t *testing.T) {
	s := newSingle(t)
	g := s.start(t)
	for range 100 {
		g.Campaign()
	}
	first := waitLeads(t, g)
	for range 100 {
		g.Campaign()
	}
	must(t, g.Raft().Barrier(time.Second).Error())
	if now := waitLeads(t, g); now != first {
		t.Errorf("campaigns moved the term from %d to %d", first, now)
	}
	must(t, g.Stop(context.Background()))
}

func TestStoreErrorFencesTheGroup(t *testing.T) {
	s := newSingle(t)
	told := make(chan error, 2)
	s.cfg.OnFailure = func(err error) { told <- err }
	g := s.start(t)
	waitLeads(t, g)
	boom := errors.New("disk on fire")
	s.logs.fail(boom, nil)
	if err := g.Raft().Apply([]byte("lost"), time.Second).Error(); !errors.Is(err, boom) {
		t.Errorf("apply: %v", err)
	}
	if err := <-told; !errors.Is(err, boom) {
		t.Errorf("told %v", err)
	}
	<-g.Failed()
	if _, ok := g.LeadsIn(); ok {
		t.Error("a fenced group leads")
	}
	s.logs.fail(nil, nil)
	before, _ := s.logs.LastIndex()
	// Nobody may wait for this future: after a shutdown Raft may take it and never answer.
	g.Raft().Apply([]byte("later"), time.Millisecond)
	must(t, g.Stop(context.Background()))
	if after, _ := s.logs.LastIndex(); after != before {
		t.Error("a fenced group stores entries")
	}
	if !errors.Is(g.Err(), boom) {
		t.Errorf("cause %v", g.Err())
	}
}

// hashicorp/raft panics when it cannot read an entry that it is to apply.
func TestUnreadableEntryFencesInsteadOfPanicking(t *testing.T) {
	s := newSingle(t)
	g := s.start(t)
	waitLeads(t, g)
	for range 10 {
		must(t, g.Raft().Apply([]byte("x"), time.Second).Error())
	}
	must(t, g.Stop(context.Background()))
	boom := errors.New("bad sector")

	t.Run("while starting", func(t *testing.T) {
		s.parts.Logs = &brokenFrom{InmemStore: s.logs.InmemStore, reads: 5, err: boom}
		if _, err := Start(s.cfg, s.parts); !errors.Is(err, boom) {
			t.Errorf("start: %v", err)
		}
	})
	t.Run("while applying", func(t *testing.T) {
		last, _ := s.logs.LastIndex()
		s.fsm.applied = nil
		// NewRaft reads the last entry, then all of them; then they are applied.
		s.parts.Logs = &brokenFrom{InmemStore: s.logs.InmemStore, reads: int(last) + 3, err: boom}
		g, err := Start(s.cfg, s.parts)
		must(t, err)
		<-g.Failed()
		must(t, g.Stop(context.Background()))
		if got := len(s.fsm.list()); got > 3 {
			t.Errorf("%d entries applied beyond the damage", got)
		}
	})
}

type brokenFrom struct {
	*raft.InmemStore
	mu    sync.Mutex
	reads int // guarded by mu; good ones that are left
	err   error
}

func (l *brokenFrom) GetLog(i uint64, out *raft.Log) error {
	l.mu.Lock()
	l.reads--
	bad := l.reads < 0
	l.mu.Unlock()
	if bad {
		return l.err
	}
	return l.InmemStore.GetLog(i, out)
}

// A failure of the vote's disk makes hashicorp/raft panic.
func TestStableErrorFencesInsteadOfPanicking(t *testing.T) {
	s := newSingle(t)
	must(t, Bootstrap(s.cfg, s.parts, []raft.Server{{ID: s.cfg.ID, Address: "b1/r1"}}))
	boom := errors.New("no vote")
	s.disk.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpSync {
			return sim.Fault{Err: boom}
		}
		return sim.Fault{}
	})
	g, err := Start(s.cfg, s.parts)
	must(t, err)
	<-g.Failed()
	if !errors.Is(g.Err(), boom) {
		t.Errorf("cause %v", g.Err())
	}
	must(t, g.Stop(context.Background()))
	if _, ok := g.LeadsIn(); ok {
		t.Error("leads without a durable vote")
	}
	if g.Raft().CurrentTerm() < 2 {
		t.Fatal("Raft did not campaign, so this shows nothing")
	}
	if term := g.Term(); term > 1 {
		t.Errorf("shows term %d, which is not on disk", term)
	}
}

func TestStopHasADeadline(t *testing.T) {
	s := newSingle(t)
	hang := make(chan struct{})
	entered := make(chan struct{}, 1)
	s.parts.FSM = &hangingFSM{s.fsm, entered, hang}
	g := s.start(t)
	waitLeads(t, g)
	future := g.Raft().Apply([]byte("x"), time.Second)
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := g.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v", err)
	}
	close(hang)
	must(t, g.Stop(context.Background()))
	future.Error()
}

type hangingFSM struct {
	*listFSM
	entered, hang chan struct{}
}

func (m *hangingFSM) Apply(l *raft.Log) any {
	m.entered <- struct{}{}
	<-m.hang
	return m.listFSM.Apply(l)
}

func TestRaftsLogLinesComeAsSlog(t *testing.T) {
	var out bytes.Buffer
	l := newRaftLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})))
	l.Info("noise")
	l.With("last-index", 7).Warn("look", "error", errors.New("why"))
	if got := out.String(); strings.Contains(got, "noise") || !strings.Contains(got, `msg=look component=raft last_index=7 err=why`) {
		t.Errorf("logged %q", got)
	}
}

// Settings of hashicorp/raft that must not come back with an upgrade or a tidy-up.
func TestRaftSettingsThatAreTraps(t *testing.T) {
	cfg, err := Config{Name: "x", ID: "x"}.prepare()
	must(t, err)
	rc := cfg.raft(nil)
	if rc.RestoreCommittedLogs {
		t.Error("RestoreCommittedLogs blocks NewRaft above 8,192 entries and loses the configuration")
	}
	if rc.ShutdownOnRemove {
		t.Error("ShutdownOnRemove: such a shutdown cannot be waited for")
	}
	if rc.PreVoteDisabled || !rc.BatchApplyCh || !rc.NoSnapshotRestoreOnStart || !rc.NoLegacyTelemetry {
		t.Error("pre-vote, batches, no restore at start and no legacy telemetry are the rule")
	}
	var logs any = fencedLog{}
	if _, ok := logs.(raft.MonotonicLogStore); ok {
		t.Error("a monotonic store makes Raft drop the log after a snapshot (hashicorp/raft #697)")
	}
	var trans any = preVoter{}
	if _, ok := trans.(raft.WithClose); ok {
		t.Error("the transport has a Close")
	}
	must(t, raft.ValidateConfig(rc))
}

func TestRestartWithALongLog(t *testing.T) {
	s := newSingle(t)
	must(t, Bootstrap(s.cfg, s.parts, []raft.Server{{ID: s.cfg.ID, Address: "b1/r1"}}))
	const n = 130 * maxAppendEntries
	for i := uint64(2); i <= n; i++ {
		must(t, s.logs.StoreLog(&raft.Log{Index: i, Term: 1, Data: []byte("x")}))
	}
	g := s.start(t)
	waitLeads(t, g)
	if got := len(s.fsm.list()); got != n-1 {
		t.Errorf("leads with %d of %d entries applied", got, n-1)
	}
	must(t, g.Stop(context.Background()))
}
