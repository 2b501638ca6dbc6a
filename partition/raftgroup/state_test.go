package raftgroup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/partition/raftgroup/statetest"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// kv is a small state machine: "key=value".
type kv struct {
	mu   sync.Mutex
	data map[string]string // guarded by mu
	hang chan struct{}     // the command "hang=" waits for it
}

func newKV() *kv { return &kv{data: map[string]string{}} }

func (m *kv) Apply(_ uint64, command []byte) any {
	key, value, ok := strings.Cut(string(command), "=")
	if !ok || key == "" || !utf8.Valid(command) { // the snapshot is JSON
		return errs.New(errs.InvalidRequest, "no key")
	}
	if key == "hang" {
		<-m.hang
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[key] = value
	return len(m.data)
}

func (m *kv) Snapshot() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return json.Marshal(m.data) // maps are sorted
}

func (m *kv) Restore(state []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = map[string]string{}
	if state == nil {
		return nil
	}
	return json.Unmarshal(state, &m.data)
}

func (m *kv) get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data[key]
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
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

// broker is what a state group finds on a broker.
type broker struct {
	dir    string
	fs     fsx.FS
	stable *raftgroup.StableStore
	trans  *raftgroup.Loopback
}

func openBroker(dir string, fsys fsx.FS) (*broker, error) {
	stable, err := raftgroup.OpenStable(fsys, filepath.Join(dir, "stable"), nil)
	if err != nil {
		return nil, err
	}
	return &broker{dir: dir, fs: fsys, stable: stable, trans: raftgroup.NewLoopback("b/1")}, nil
}

func (b *broker) open(sm raftgroup.StateMachine, change ...func(*raftgroup.StateConfig)) (*raftgroup.StateGroup, error) {
	slot, err := b.stable.Slot([16]byte{1})
	if err != nil {
		return nil, err
	}
	cfg := raftgroup.StateConfig{
		Name: "meta", Dir: filepath.Join(b.dir, "meta"), FS: b.fs, ID: "b/1", Transport: b.trans, Stable: slot,
		Voters: []raft.Server{{ID: "b/1", Address: "b/1"}},
	}
	for _, c := range change {
		c(&cfg)
	}
	return raftgroup.OpenState(cfg, sm)
}

func stop(t testing.TB, b *broker, g *raftgroup.StateGroup) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	must(t, g.Stop(ctx))
	must(t, b.stable.Close())
}

func start(t *testing.T, dir string, sm raftgroup.StateMachine, change ...func(*raftgroup.StateConfig)) (*broker, *raftgroup.StateGroup) {
	t.Helper()
	b, err := openBroker(dir, fsx.OS())
	must(t, err)
	g, err := b.open(sm, change...)
	must(t, err)
	return b, g
}

func leads(t *testing.T, g *raftgroup.StateGroup) {
	t.Helper()
	eventually(t, "the group leads", func() bool { _, ok := g.Leading(); return ok })
}

func propose(t testing.TB, g *raftgroup.StateGroup, command string) any {
	t.Helper()
	result, err := g.Propose(t.Context(), []byte(command))
	if err != nil {
		t.Fatalf("propose %q: %v", command, err)
	}
	return result
}

func TestStateSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	b, g := start(t, dir, newKV())
	leads(t, g)
	for i := range 50 {
		if got := propose(t, g, fmt.Sprintf("k%d=v%d", i, i)); got != i+1 {
			t.Fatalf("result %v of command %d", got, i)
		}
	}
	must(t, g.Read(t.Context()))
	stop(t, b, g)

	sm := newKV()
	b, g = start(t, dir, sm)
	leads(t, g)
	for i := range 50 {
		if got := sm.get(fmt.Sprintf("k%d", i)); got != fmt.Sprintf("v%d", i) {
			t.Errorf("k%d is %q", i, got)
		}
	}
	stop(t, b, g)
}

func TestSnapshotsBoundTheLogAndRestoreTheState(t *testing.T) {
	dir := t.TempDir()
	every := func(c *raftgroup.StateConfig) { c.SnapshotEvery = 100 }
	b, g := start(t, dir, newKV(), every)
	leads(t, g)
	for i := range 500 {
		propose(t, g, fmt.Sprintf("k%d=%d", i%10, i))
	}
	must(t, g.Snapshot())
	stop(t, b, g)
	names, err := os.ReadDir(filepath.Join(dir, "meta", "snapshots"))
	must(t, err)
	if len(names) > 2 || len(names) == 0 {
		t.Errorf("%d snapshots are kept", len(names))
	}
	segments, err := filepath.Glob(filepath.Join(dir, "meta", "log", "g-*", "0*"))
	must(t, err)
	if len(segments) != 1 || filepath.Base(segments[0]) == "00000000000000000001" {
		t.Errorf("the log still starts at its first entry: %q", segments)
	}
	sm := newKV()
	b, g = start(t, dir, sm, every)
	leads(t, g)
	for i := range 10 {
		if got := sm.get(fmt.Sprintf("k%d", i)); got != fmt.Sprint(490+i) {
			t.Errorf("k%d is %q", i, got)
		}
	}
	stop(t, b, g)
}

func TestRefusedIsNotUnknown(t *testing.T) {
	b, g := start(t, t.TempDir(), newKV(), func(c *raftgroup.StateConfig) {
		c.Voters = append(c.Voters, raft.Server{ID: "b/2", Address: "b/2"})
	})
	_, err := g.Propose(t.Context(), []byte("a=b"))
	if errs.CodeOf(err) != errs.NotLeaderOrFollower || errs.OutcomeUnknown(err) {
		t.Errorf("propose without a majority: %v", err)
	}
	if err := g.Read(t.Context()); errs.CodeOf(err) != errs.NotLeaderOrFollower {
		t.Errorf("read without a majority: %v", err)
	}
	if _, err := g.Propose(t.Context(), make([]byte, raftgroup.MaxCommandBytes+1)); errs.CodeOf(err) != errs.MessageTooLarge || errs.OutcomeUnknown(err) {
		t.Errorf("a huge command: %v", err)
	}
	stop(t, b, g)
	if _, err := g.Propose(t.Context(), []byte("a=b")); errs.CodeOf(err) != errs.NotLeaderOrFollower || errs.OutcomeUnknown(err) {
		t.Errorf("propose after stop: %v", err)
	}
}

// A request whose caller is gone may be the late copy of one that was repeated, and must not come after newer ones.
func TestACommandWhoseCallerIsGoneIsNotProposed(t *testing.T) {
	sm := newKV()
	b, g := start(t, t.TempDir(), sm)
	leads(t, g)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		if _, err := g.Propose(gone, []byte("late=1")); errs.CodeOf(err) != errs.RequestTimedOut || errs.OutcomeUnknown(err) {
			t.Fatalf("propose for nobody: %v", err)
		}
	}
	propose(t, g, "after=1")
	if got := sm.get("late"); got != "" {
		t.Errorf("late is %q; nobody waited for it any more", got)
	}
	stop(t, b, g)
}

func TestNoAnswerInTimeIsUnknownAndBounded(t *testing.T) {
	sm := newKV()
	sm.hang = make(chan struct{})
	b, g := start(t, t.TempDir(), sm)
	leads(t, g)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.Propose(ctx, []byte("hang=1")); errs.CodeOf(err) != errs.RequestTimedOut || !errs.OutcomeUnknown(err) {
		t.Errorf("a command that hangs: %v", err)
	}
	// Every open place is taken; then commands are refused, not queued.
	var refused, unknown int
	for range 80 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := g.Propose(ctx, []byte("later=1"))
		cancel()
		if errs.OutcomeUnknown(err) {
			unknown++
		} else if errs.CodeOf(err) == errs.RequestTimedOut {
			refused++
		} else {
			t.Fatalf("propose: %v", err)
		}
	}
	if refused == 0 || unknown > 60 {
		t.Errorf("%d refused, %d unknown", refused, unknown)
	}
	close(sm.hang)
	eventually(t, "what timed out is applied all the same", func() bool { return sm.get("hang") == "1" && sm.get("later") == "1" })
	propose(t, g, "after=1")
	stop(t, b, g)
}

func TestLostLeadershipIsUnknown(t *testing.T) {
	sm := newKV()
	sm.hang = make(chan struct{})
	b, g := start(t, t.TempDir(), sm)
	leads(t, g)
	got := make(chan error, 1)
	go func() {
		_, err := g.Propose(context.Background(), []byte("hang=1"))
		got <- err
	}()
	eventually(t, "the command is committed", func() bool { return g.Group().Raft().AppliedIndex() >= 4 })
	b.trans.Inject(raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}}, RespChan: make(chan raft.RPCResponse, 1)})
	if err := <-got; !errs.OutcomeUnknown(err) {
		t.Errorf("propose across the end of a term: %v", err)
	}
	close(sm.hang)
	leads(t, g)
	if sm.get("hang") != "1" {
		t.Error("leads before the earlier command is applied")
	}
	stop(t, b, g)
}

func TestGarbageInTheLogIsNotApplied(t *testing.T) {
	dir := t.TempDir()
	b, g := start(t, dir, newKV())
	leads(t, g)
	for _, junk := range [][]byte{nil, {9}, []byte("0123456789012345678901234567890123456789")} {
		must(t, g.Group().Raft().Apply(junk, time.Second).Error())
	}
	if err, ok := propose(t, g, "no key").(error); !ok || errs.CodeOf(err) != errs.InvalidRequest {
		t.Errorf("a bad command gives %v", err)
	}
	propose(t, g, "a=b")
	stop(t, b, g)
	sm := newKV()
	b, g = start(t, dir, sm)
	leads(t, g)
	if sm.get("a") != "b" {
		t.Error("state lost")
	}
	stop(t, b, g)
}

func TestDamagedStateIsRefused(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"newest snapshot": func(t *testing.T, dir string) {
			all, err := filepath.Glob(filepath.Join(dir, "meta", "snapshots", "snapshot-*"))
			must(t, err)
			for _, s := range all {
				b, err := os.ReadFile(s)
				must(t, err)
				b[len(b)/2] ^= 1
				must(t, os.WriteFile(s, b, 0o600))
			}
		},
		"log and snapshots gone": func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, "meta"))) },
		"snapshots gone":         func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, "meta", "snapshots"))) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b, g := start(t, dir, newKV(), func(c *raftgroup.StateConfig) { c.SnapshotEvery = 1 << 40 })
			leads(t, g)
			for i := range 300 {
				propose(t, g, fmt.Sprintf("a=%d", i))
			}
			must(t, g.Snapshot())
			stop(t, b, g)
			damage(t, dir)
			b, err := openBroker(dir, fsx.OS())
			must(t, err)
			if _, err := b.open(newKV()); !errors.Is(err, raftgroup.ErrCorrupt) {
				t.Errorf("open: %v", err)
			}
			must(t, b.stable.Close())
		})
	}
}

// Large entries are dropped up to the snapshot, so the log is empty behind it. When the snapshot is damaged,
// the older one must not pass for the state.
func TestOlderSnapshotDoesNotServeWithoutTheLogBehindIt(t *testing.T) {
	dir := t.TempDir()
	b, g := start(t, dir, newKV(), func(c *raftgroup.StateConfig) { c.SnapshotBytes = 1 << 10 })
	leads(t, g)
	propose(t, g, "a=old")
	must(t, g.Snapshot())
	propose(t, g, "a="+strings.Repeat("new", 4<<10))
	must(t, g.Snapshot())
	stop(t, b, g)
	all, err := filepath.Glob(filepath.Join(dir, "meta", "snapshots", "snapshot-*"))
	must(t, err)
	if len(all) != 2 {
		t.Fatalf("snapshots %v", all)
	}
	must(t, os.Truncate(all[1], 20))
	b, err = openBroker(dir, fsx.OS())
	must(t, err)
	sm := newKV()
	if g, err := b.open(sm); !errors.Is(err, raftgroup.ErrCorrupt) {
		t.Errorf("open: %v, a is %q", err, sm.get("a"))
		if err == nil {
			stop(t, b, g)
			return
		}
	}
	must(t, b.stable.Close())
}

func TestOlderSnapshotServesWhereTheLogReachesIt(t *testing.T) {
	dir := t.TempDir()
	b, g := start(t, dir, newKV())
	leads(t, g)
	for i := range 40 {
		propose(t, g, fmt.Sprintf("a=%d", i))
	}
	must(t, g.Snapshot())
	stop(t, b, g)
	all, err := filepath.Glob(filepath.Join(dir, "meta", "snapshots", "snapshot-*"))
	must(t, err)
	must(t, os.Truncate(all[0], 20))
	sm := newKV()
	b, g = start(t, dir, sm)
	leads(t, g)
	if sm.get("a") != "39" {
		t.Errorf("a is %q", sm.get("a"))
	}
	stop(t, b, g)
}

func TestDiskErrorFailsTheStateGroup(t *testing.T) {
	dir := t.TempDir()
	disk := &killFS{FS: fsx.OS(), left: 1 << 40}
	b, err := openBroker(dir, disk)
	must(t, err)
	told := make(chan error, 1)
	g, err := b.open(newKV(), func(c *raftgroup.StateConfig) { c.OnFailure = func(err error) { told <- err } })
	must(t, err)
	leads(t, g)
	propose(t, g, "a=1")
	disk.kill(0)
	if _, err := g.Propose(t.Context(), []byte("a=2")); !errs.OutcomeUnknown(err) {
		t.Errorf("propose while the disk fails: %v", err)
	}
	if err := <-told; !errors.Is(err, errKilled) {
		t.Errorf("told %v", err)
	}
	if _, err := g.Propose(t.Context(), []byte("a=3")); errs.CodeOf(err) != errs.KafkaStorageError || errs.OutcomeUnknown(err) {
		t.Errorf("propose after the disk failed: %v", err)
	}
	must(t, g.Stop(t.Context()))
	b.stable.Close()
}

// The process may die at any operation on the file system; every command that was answered is there.
func TestKillAtAnyOperation(t *testing.T) {
	for n := 1 + rand.Int64N(3); ; n += 3 {
		dir := t.TempDir()
		disk := &killFS{FS: fsx.OS(), left: n}
		acked := proposeUntilKilled(t, dir, disk)
		sm := newKV()
		b, g := start(t, dir, sm)
		leads(t, g)
		for key, value := range acked {
			if got := sm.get(key); got < value {
				t.Fatalf("killed at operation %d: %s is %q, %q was acknowledged", n, key, got, value)
			}
		}
		stop(t, b, g)
		if disk.alive() {
			t.Logf("%d operations", n)
			return
		}
	}
}

func proposeUntilKilled(t *testing.T, dir string, disk *killFS) map[string]string {
	acked := map[string]string{}
	b, err := openBroker(dir, disk)
	if err != nil {
		return acked
	}
	defer b.stable.Close()
	g, err := b.open(newKV(), func(c *raftgroup.StateConfig) { c.SnapshotEvery = 40 })
	if err != nil {
		return acked
	}
	defer g.Stop(context.Background())
	eventually(t, "the group leads or fails", func() bool {
		_, ok := g.Leading()
		return ok || g.Group().Err() != nil
	})
	for i := range 200 {
		key, value := fmt.Sprintf("k%d", i%5), fmt.Sprintf("%04d", i)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := g.Propose(ctx, []byte(key+"="+value))
		cancel()
		if err != nil {
			return acked
		}
		acked[key] = value
	}
	return acked
}

var errKilled = errors.New("killed")

// killFS fails everything that changes the disk after so many operations. It syncs nothing: the machine
// stays up when a process is killed, and the test shall be quick.
type killFS struct {
	fsx.FS
	mu   sync.Mutex
	left int64 // guarded by mu
}

func (k *killFS) kill(after int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.left = after
}

func (k *killFS) alive() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.left >= 0
}

func (k *killFS) step() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left--; k.left < 0 {
		return errKilled
	}
	return nil
}

func (k *killFS) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	if flag&os.O_CREATE != 0 {
		if err := k.step(); err != nil {
			return nil, err
		}
	}
	f, err := k.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &killFile{f, k}, nil
}

func (k *killFS) Rename(from, to string) error {
	if err := k.step(); err != nil {
		return err
	}
	return k.FS.Rename(from, to)
}

func (k *killFS) RemoveAll(name string) error {
	if err := k.step(); err != nil {
		return err
	}
	return k.FS.RemoveAll(name)
}

func (k *killFS) SyncDir(name string) error {
	return k.step()
}

type killFile struct {
	fsx.File
	fs *killFS
}

func (f *killFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.step(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *killFile) Sync() error {
	return f.fs.step()
}

func TestTwoStateMachinesAgreeOnTheSameLog(t *testing.T) {
	var commands [][]byte
	for i := range 200 {
		commands = append(commands, fmt.Appendf(nil, "k%d=%d", i%17, i))
	}
	statetest.Deterministic(t, func() raftgroup.StateMachine { return newKV() }, commands)
}

func TestMetricsTellLeadershipsAndDurations(t *testing.T) {
	reg := prometheus.NewRegistry()
	metrics := raftgroup.NewMetrics(reg)
	b, g := start(t, t.TempDir(), newKV(), func(c *raftgroup.StateConfig) { c.Metrics = metrics })
	leads(t, g)
	propose(t, g, "a=b")
	must(t, g.Snapshot())
	stop(t, b, g)
	families, err := reg.Gather()
	must(t, err)
	found := map[string]bool{}
	for _, f := range families {
		found[f.GetName()] = true
	}
	for _, name := range []string{
		"tidemark_raft_leadership_changes_total", "tidemark_raft_elections_total", "tidemark_raft_propose_duration_seconds",
		"tidemark_raft_apply_duration_seconds", "tidemark_snapshot_duration_seconds", "tidemark_raft_group_failures_total",
	} {
		if !found[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

func BenchmarkPropose(b *testing.B) {
	br, err := openBroker(b.TempDir(), fsx.OS())
	must(b, err)
	g, err := br.open(newKV())
	must(b, err)
	for {
		if _, ok := g.Leading(); ok {
			break
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		propose(b, g, "key=value")
	}
	stop(b, br, g)
}

// noSnapshots is a disk on which no snapshot can be created.
type noSnapshots struct {
	fsx.FS
	room atomic.Bool
}

func (n *noSnapshots) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	if flag&os.O_CREATE != 0 && strings.Contains(name, "/snapshots/") && !n.room.Load() {
		return nil, errKilled
	}
	return n.FS.OpenFile(name, flag, perm)
}

func TestLogIsBoundedWhereNoSnapshotCanBeWritten(t *testing.T) {
	disk := &noSnapshots{FS: fsx.OS()}
	b, err := openBroker(t.TempDir(), disk)
	must(t, err)
	g, err := b.open(newKV(), func(c *raftgroup.StateConfig) { c.SnapshotBytes = 4096 })
	must(t, err)
	leads(t, g)
	for i := range 100 {
		_, err = g.Propose(t.Context(), fmt.Appendf(nil, "a=%01000d", i))
		if err != nil {
			break
		}
	}
	if errs.CodeOf(err) != errs.KafkaStorageError || errs.OutcomeUnknown(err) {
		t.Errorf("the log grows without end: %v", err)
	}
	disk.room.Store(true)
	must(t, g.Snapshot())
	propose(t, g, "a=b") // although fewer than the trailing entries were there
	stop(t, b, g)
}
