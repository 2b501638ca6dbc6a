package replicas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// group commits at once.
type group struct {
	mu    sync.Mutex
	state *controller.State
	index uint64
}

func (g *group) Propose(_ context.Context, b []byte) (any, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.index++
	return g.state.Apply(g.index, b), nil
}

func (g *group) Read(context.Context) error { return nil }
func (g *group) Leading() (uint64, bool)    { return 1, true }

// reluctant is a controller that may refuse to hear that replicas were formed.
type reluctant struct {
	*controller.Controller
	deaf atomic.Bool
	// afterTopics holds a func() that runs once, right after the next look at the topics.
	afterTopics atomic.Value
}

func (r *reluctant) Topics() []controller.Topic {
	list := r.Controller.Topics()
	if f, ok := r.afterTopics.Swap(func() {}).(func()); ok {
		f()
	}
	return list
}

func (r *reluctant) Formed(ctx context.Context, list []controller.FormedReplica) error {
	if r.deaf.Load() {
		return errs.New(errs.NotController, "no leader")
	}
	return r.Controller.Formed(ctx, list)
}

// slots is a stable store that remembers which groups it knows.
type slots struct {
	mu    sync.Mutex
	known map[[16]byte]bool
}

func (s *slots) Slot(id [16]byte) (raft.StableStore, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[id] = true
	return raft.NewInmemStore(), nil
}

func (s *slots) Forget(id [16]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
	return nil
}

func (s *slots) Known(id [16]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[id]
}

// puppet is a replica that does as it is told.
type puppet struct {
	cfg  partition.Config
	deps partition.Deps

	mu      sync.Mutex
	config  partition.TopicConfig
	flushes int
	retains int
	stopped bool
}

func (p *puppet) Start() error { p.deps.OnLeadership(1, true); return nil }

func (p *puppet) Configure(c partition.TopicConfig) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config = c
}

func (p *puppet) Retain() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retains++
	return 1, nil
}

func (p *puppet) Flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushes++
	return nil
}

func (p *puppet) Stats() log.Stats     { return log.Stats{SizeBytes: 7, Segments: 1} }
func (p *puppet) View() partition.View { return partition.View{Leader: true} }

func (p *puppet) Stop(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	return nil
}

func (p *puppet) is(what func(*puppet) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return what(p)
}

// stage is a broker whose replicas are puppets.
type stage struct {
	t      testing.TB
	fs     *sim.FS
	group  *group
	ctl    *controller.Controller
	meta   *reluctant
	slots  *slots
	logged *lines
	fatal  chan error

	mu      sync.Mutex
	puppets map[string]*puppet // by directory
	refuse  map[string]error   // by directory
	m       *Manager
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{
		t: t, fs: sim.New(), group: &group{state: controller.NewState()}, slots: &slots{known: map[[16]byte]bool{}},
		logged: &lines{}, fatal: make(chan error, 8), refuse: map[string]error{},
	}
	ctl, err := controller.New(controller.DefaultConfig(), s.group.state, s.group)
	s.must(err)
	s.ctl = ctl
	s.must(s.fs.MkdirAll("/data", 0o700))
	s.must(s.fs.SyncDir("/"))
	s.meta = &reluctant{Controller: ctl}
	s.must(ctl.Bootstrap(t.Context(), controller.NewUUID(), 8))
	_, err = ctl.Register(t.Context(), controller.Self{UUID: controller.NewUUID(), PartitionLimit: 1000})
	s.must(err)
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) start() {
	s.t.Helper()
	cfg := DefaultConfig()
	cfg.Dir, cfg.FS = "/data", s.fs
	cfg.RetentionInterval = time.Millisecond
	cfg.Logger = slog.New(slog.NewTextHandler(s.logged, nil))
	cfg.Registerer = prometheus.NewRegistry()
	cfg.OnFatal = func(err error) {
		select {
		case s.fatal <- err:
		default: // enough were kept
		}
	}
	s.puppets = map[string]*puppet{}
	m, err := newManager(cfg, s.meta, s.slots, func(Config) opener { return s.open })
	s.must(err)
	s.m = m
	s.must(m.Start())
	<-m.Ready()
}

func (s *stage) open(c partition.Config, d partition.Deps) (replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse[c.Dir]; err != nil {
		return nil, err
	}
	if _, err := s.fs.Stat(c.Dir); err != nil {
		return nil, fmt.Errorf("opened without a directory: %w", err)
	}
	f, err := s.fs.OpenFile(filepath.Join(c.Dir, "segment"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p := &puppet{cfg: c, deps: d}
	s.puppets[c.Dir] = p
	return p, f.Close()
}

func (s *stage) stop() {
	s.t.Helper()
	if s.m != nil {
		s.must(s.m.Close(context.Background()))
	}
	s.m = nil
}

func (s *stage) restart() {
	s.t.Helper()
	s.must(s.m.Close(context.Background()))
	s.start()
}

func (s *stage) create(name string, partitions int32) controller.Topic {
	s.t.Helper()
	t, _, err := s.ctl.CreateTopic(s.t.Context(), controller.NewTopic{Name: name, Partitions: partitions})
	s.must(err)
	return t
}

func (s *stage) puppet(t controller.Topic, p int32) *puppet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.puppets[s.m.replicaDir(t.ID, p)]
}

// code is what a caller is told about a partition.
func (s *stage) code(topic string, p int32) errs.Code {
	h, err := s.m.find(topic, p)
	if err == nil {
		_, err = h.serving()
	}
	return errs.CodeOf(err)
}

// eventually waits for a condition that other goroutines bring about.
func (s *stage) eventually(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("%s did not happen\n%s", what, s.logged)
		}
	}
}

func TestReplicasFollowTheMetadata(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 3)
	for p := range int32(3) {
		if c := s.code("orders", p); c != errs.None {
			t.Errorf("partition %d: %v", p, c)
		}
		now, _ := s.ctl.Topic("orders")
		if r := now.Partitions[p].Replicas[0]; r.State != controller.ReplicaFormed {
			t.Errorf("partition %d serves and is not formed", p)
		}
		if p := s.puppet(topic, p); len(p.cfg.Voters) != 1 || p.cfg.Voters[0].ID != p.cfg.ID {
			t.Errorf("formed with %v as %v", p.cfg.Voters, p.cfg.ID)
		}
	}
	for partition, want := range map[int32]errs.Code{-1: errs.UnknownTopicOrPartition, 3: errs.UnknownTopicOrPartition} {
		if c := s.code("orders", partition); c != want {
			t.Errorf("partition %d: %v", partition, c)
		}
	}
	if c := s.code("none", 0); c != errs.UnknownTopicOrPartition {
		t.Errorf("unknown topic: %v", c)
	}
	grown, err := s.ctl.AddPartitions(t.Context(), "orders", 4, false)
	s.must(err)
	if c := s.code("orders", 3); c != errs.None || len(grown.Partitions) != 4 {
		t.Errorf("added partition: %v", c)
	}
	s.must(s.ctl.AlterTopic(t.Context(), "orders", map[string]string{"max.message.bytes": "5000"}, nil, false))
	s.eventually("the new setting", func() bool {
		return s.puppet(topic, 2).is(func(p *puppet) bool { return p.config.MaxBatchBytes == 5000 })
	})
	s.eventually("retention", func() bool {
		return s.puppet(topic, 0).is(func(p *puppet) bool { return p.retains > 0 })
	})
}

func TestRestartOpensWhatWasFormedWithoutVoters(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 2)
	s.restart()
	for p := range int32(2) {
		if c := s.code("orders", p); c != errs.None {
			t.Errorf("partition %d: %v", p, c)
		}
		if v := s.puppet(topic, p).cfg.Voters; v != nil {
			t.Errorf("a formed replica was opened with voters %v", v)
		}
	}
}

func TestFormedReplicaThatIsMissingIsLostAndNotMadeAgain(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 2)
	dir := s.m.replicaDir(topic.ID, 0)
	s.must(s.m.Close(t.Context()))
	s.must(s.fs.RemoveAll(dir))
	s.start()
	if c := s.code("orders", 0); c != errs.KafkaStorageError {
		t.Errorf("the lost replica answers %v", c)
	}
	if c := s.code("orders", 1); c != errs.None {
		t.Errorf("its neighbour answers %v", c)
	}
	if _, err := s.fs.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory was made again: %v", err)
	}
	if !strings.Contains(s.logged.String(), "replica is lost") {
		t.Error("nobody was told")
	}
}

func TestFormedReplicaWithoutItsVoteIsLost(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 1)
	s.must(s.m.Close(t.Context()))
	s.must(s.slots.Forget(topic.Partitions[0].Replicas[0].UUID))
	s.start()
	if c := s.code("orders", 0); c != errs.KafkaStorageError {
		t.Errorf("a replica that forgot its vote answers %v", c)
	}
}

func TestDamagedReplicaIsAloneWithItsTrouble(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 3)
	dir := s.m.replicaDir(topic.ID, 1)
	s.must(s.m.Close(t.Context()))
	s.refuse[dir] = fmt.Errorf("segment 5: %w", errs.New(errs.ReplicaQuarantined, "damaged"))
	s.refuse[s.m.replicaDir(topic.ID, 2)] = errors.New("input/output error")
	s.start()
	for p, want := range []errs.Code{errs.None, errs.ReplicaQuarantined, errs.KafkaStorageError} {
		if c := s.code("orders", int32(p)); c != want {
			t.Errorf("partition %d answers %v, want %v", p, c, want)
		}
	}
	s.eventually("the metadata's knowledge", func() bool {
		now, _ := s.ctl.Topic("orders")
		return now.Partitions[0].Leader == s.ctl.BrokerID() && now.Partitions[1].Leader == -1 && now.Partitions[2].Leader == -1
	})
	if len(s.fatal) > 0 {
		t.Errorf("the process would have ended: %v", <-s.fatal)
	}
	if _, err := s.fs.Stat(dir); err != nil {
		t.Errorf("the damaged data is gone: %v", err)
	}
}

func TestAReplicaThatItsLeaderResetIsOpenedAgain(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 2)
	old := s.puppet(topic, 0)
	other := s.puppet(topic, 1)
	old.deps.OnReset()
	s.eventually("the new replica", func() bool { return s.puppet(topic, 0) != old && s.code("orders", 0) == errs.None })
	if !old.is(func(p *puppet) bool { return p.stopped }) {
		t.Error("the old replica was not stopped")
	}
	now := s.puppet(topic, 0)
	if now.cfg.Voters != nil || now.cfg.ID != old.cfg.ID || now.cfg.Dir != old.cfg.Dir {
		t.Errorf("opened as %+v, was %+v", now.cfg, old.cfg)
	}
	old.deps.OnLeadership(9, true) // late; nothing may come of it but the report of an epoch
	if s.puppet(topic, 1) != other {
		t.Error("its neighbour was opened again too")
	}
	now.deps.OnReset() // and once more
	s.eventually("the third replica", func() bool { return s.puppet(topic, 0) != now && s.code("orders", 0) == errs.None })
}

// A group may be so young that the metadata does not know that it was formed.
func TestAReplicaThatIsResetBeforeItServesServesAfterwards(t *testing.T) {
	s := newStage(t)
	s.meta.deaf.Store(true)
	created := make(chan controller.Topic, 1)
	tasks := run.Owned("create")
	tasks.Go("create", func(context.Context) {
		topic, _, _ := s.ctl.CreateTopic(context.Background(), controller.NewTopic{Name: "orders", Partitions: 1})
		created <- topic
	})
	defer tasks.Stop()
	var old *puppet
	s.eventually("an unformed replica", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.puppets {
			old = p
		}
		return old != nil
	})
	old.deps.OnReset()
	if c := s.code("orders", 0); c == errs.None {
		t.Error("a replica serves that the metadata does not know")
	}
	s.eventually("the stop", func() bool { return old.is(func(p *puppet) bool { return p.stopped }) })
	if c := s.code("orders", 0); c == errs.None {
		t.Error("a replica serves that the metadata does not know")
	}
	s.meta.deaf.Store(false)
	s.eventually("service", func() bool { return s.code("orders", 0) == errs.None })
	<-created
}

func TestDamageFoundWhileServingQuarantinesOneReplica(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 2)
	p := s.puppet(topic, 0)
	p.deps.OnFatal(fmt.Errorf("read: %w", errs.New(errs.ReplicaQuarantined, "crc")))
	if c := s.code("orders", 0); c != errs.ReplicaQuarantined {
		t.Errorf("answers %v", c)
	}
	s.eventually("the stop of the damaged replica", func() bool { return p.is(func(p *puppet) bool { return p.stopped }) })
	s.eventually("the metadata's knowledge", func() bool {
		now, _ := s.ctl.Topic("orders")
		return now.Partitions[0].Leader == -1 && now.Partitions[1].Leader == s.ctl.BrokerID()
	})
	if len(s.fatal) > 0 {
		t.Errorf("the process would have ended: %v", <-s.fatal)
	}
}

func TestFailedDiskEndsTheProcess(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 1)
	s.puppet(topic, 0).deps.OnFatal(errors.New("fdatasync: input/output error"))
	if err := <-s.fatal; !strings.Contains(err.Error(), "orders/0") || !strings.Contains(err.Error(), "input/output") {
		t.Error(err)
	}
}

func TestDeletedTopicGoesToTheTrashAndItsNameIsFree(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 2)
	old := s.puppet(topic, 0)
	s.must(s.ctl.DeleteTopic(t.Context(), "orders", false, false))
	s.eventually("the stop", func() bool { return old.is(func(p *puppet) bool { return p.stopped }) })
	s.eventually("the end of the tombstone", func() bool { return len(s.ctl.Tombstones()) == 0 })
	if _, err := s.fs.Stat(s.m.topicDir(topic.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if s.slots.Known(topic.Partitions[0].Replicas[0].UUID) {
		t.Error("the vote slot is still taken")
	}
	s.eventually("the name's end", func() bool { return s.code("orders", 0) == errs.UnknownTopicOrPartition })
	s.eventually("an empty trash", func() bool {
		left, err := s.fs.ReadDir("/data/trash")
		return err == nil && len(left) == 0
	})
	again := s.create("orders", 1)
	if again.ID == topic.ID || s.code("orders", 0) != errs.None {
		t.Error("the topic cannot be made again")
	}
}

// The power fails at each step of a deletion; the next start finishes it.
func TestDeletionSurvivesAPowerCutAtEachStep(t *testing.T) {
	for cut := range 6 {
		s := newStage(t)
		topic := s.create("orders", 1)
		s.create("kept", 1)
		s.fs.CrashAt(cut + 1)
		s.must(s.ctl.DeleteTopic(t.Context(), "orders", false, false))
		s.eventually("the end of the tombstone, or of the power", func() bool {
			return len(s.ctl.Tombstones()) == 0 || strings.Contains(s.logged.String(), "trying again")
		})
		s.must(s.m.Close(t.Context()))
		s.fs = s.fs.Reboot(nil, false)
		s.start()
		s.eventually("the end of the tombstone", func() bool { return len(s.ctl.Tombstones()) == 0 })
		if _, err := s.fs.Stat(s.m.topicDir(topic.ID)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("cut %d: the directory is still there: %v", cut, err)
		}
		if c := s.code("kept", 0); c != errs.None {
			t.Errorf("cut %d: the other topic answers %v", cut, c)
		}
		s.stop()
	}
}

func TestUnknownDirectoryIsKept(t *testing.T) {
	s := newStage(t)
	s.must(s.m.Close(t.Context()))
	stranger := "/data/topics/" + controller.NewUUID().String()
	s.must(s.fs.MkdirAll(stranger, 0o700))
	s.must(fsx.WriteFile(s.fs, stranger+"/precious", []byte("x"), 0o600))
	s.start()
	s.restart()
	if _, err := s.fs.Stat(stranger + "/precious"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.logged.String(), stranger) {
		t.Error("nobody was told")
	}
}

// Nothing may be appended before the metadata knows that the replica was formed: if it
// were and the directory then vanished, it would be made again, empty.
func TestUnformedReplicaServesNothing(t *testing.T) {
	s := newStage(t)
	s.meta.deaf.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err := s.ctl.CreateTopic(ctx, controller.NewTopic{Name: "orders"})
	if errs.CodeOf(err) != errs.RequestTimedOut {
		t.Errorf("created although it cannot serve: %v", err)
	}
	if c := s.code("orders", 0); c != errs.LeaderNotAvailable {
		t.Errorf("answers %v", c)
	}
	s.restart() // still new: formed again
	if c := s.code("orders", 0); c != errs.LeaderNotAvailable {
		t.Errorf("after a restart answers %v", c)
	}
	s.meta.deaf.Store(false)
	s.eventually("service", func() bool { return s.code("orders", 0) == errs.None })
}

func TestFlushIntervalFlushes(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 1)
	s.must(s.ctl.AlterTopic(t.Context(), "orders", map[string]string{"flush": "interval", "flush.ms": "1"}, nil, false))
	p := s.puppet(topic, 0)
	s.eventually("three flushes", func() bool { return p.is(func(p *puppet) bool { return p.flushes >= 3 }) })
}

// A flusher that looks while the replica is not yet formed must look again once it serves.
func TestFlushIntervalFlushesANewTopic(t *testing.T) {
	s := newStage(t)
	s.meta.deaf.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err := s.ctl.CreateTopic(ctx, controller.NewTopic{Name: "orders", Partitions: 1, Configs: map[string]string{"flush": "interval", "flush.ms": "1"}})
	if errs.CodeOf(err) != errs.RequestTimedOut {
		t.Fatalf("created although it cannot serve: %v", err)
	}
	s.eventually("the flusher has looked", func() bool { return len(s.m.flushers) == 0 })
	s.meta.deaf.Store(false)
	s.eventually("service", func() bool { return s.code("orders", 0) == errs.None })
	topic, _ := s.ctl.Topic("orders")
	p := s.puppet(topic, 0)
	s.eventually("three flushes", func() bool { return p.is(func(p *puppet) bool { return p.flushes >= 3 }) })
}

// The topic goes between two looks of one pass at the metadata. Nothing of it may stay: it is
// neither lost nor made again.
func TestATopicDeletedWhileAPassLooksIsNotOpenedAgain(t *testing.T) {
	s := newStage(t)
	topic := s.create("orders", 1)
	s.meta.afterTopics.Store(func() { s.must(s.ctl.DeleteTopic(context.Background(), "orders", false, false)) })
	poke(s.m.wake)
	s.eventually("the burial", func() bool {
		_, there := s.ctl.Topic("orders")
		return !there && len(s.ctl.Tombstones()) == 0
	})
	s.create("other", 1) // a pass later
	if err := s.m.Trouble(); err != nil {
		t.Errorf("the broker complains: %v", err)
	}
	s.m.each(func(h *hosted) {
		if h.topic == topic.ID {
			t.Errorf("%s is hosted, %s", h, h.is())
		}
	})
	if _, err := s.fs.Stat(s.m.topicDir(topic.ID)); !missing(err) {
		t.Errorf("its directory: %v", err)
	}
}

// A broker that is told to stop while it recovers many replicas opens no more of them.
func TestCloseDuringRecoveryOpensNoMoreReplicas(t *testing.T) {
	s := newStage(t)
	s.create("orders", 100)
	s.stop()
	cfg := DefaultConfig()
	cfg.Dir, cfg.FS = "/data", s.fs
	cfg.OnFatal = func(err error) { s.fatal <- err }
	var opened atomic.Int64
	hold := make(chan struct{})
	m, err := newManager(cfg, s.meta, s.slots, func(Config) opener {
		return func(c partition.Config, d partition.Deps) (replica, error) {
			opened.Add(1)
			<-hold
			return s.open(c, d)
		}
	})
	s.must(err)
	s.must(m.Start())
	s.eventually("the first opens", func() bool { return opened.Load() == int64(cfg.OpenParallel) })
	closed := make(chan error, 1)
	go func() { closed <- m.Close(context.Background()) }()
	<-m.tasks.Context().Done()
	close(hold)
	s.must(<-closed)
	if n := opened.Load(); n != int64(cfg.OpenParallel) {
		t.Errorf("%d replicas were opened, %d of them after the stop", n, n-int64(cfg.OpenParallel))
	}
	for dir, p := range s.puppets {
		if !p.is(func(p *puppet) bool { return p.stopped }) {
			t.Errorf("%s still runs", dir)
		}
	}
}

func TestLateLeadershipSaysNothingNew(t *testing.T) {
	h := &hosted{condition: serving}
	h.led(5, true)
	h.led(4, false)
	if !h.leads || h.epoch != record.Epoch(5) {
		t.Errorf("epoch %d, leads %v", h.epoch, h.leads)
	}
}

func TestInFlightBytesAreBoundedFirstComeFirstServed(t *testing.T) {
	f := &inFlight{limit: 100}
	if err := f.acquire(t.Context(), 101); errs.CodeOf(err) != errs.MessageTooLarge {
		t.Errorf("a batch that can never fit: %v", err)
	}
	if err := f.acquire(t.Context(), 60); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	large, small := make(chan error, 1), make(chan error, 1)
	go func() { large <- f.acquire(ctx, 50) }()
	waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.waits.Len() == 1 })
	go func() { small <- f.acquire(t.Context(), 10) }()
	waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.waits.Len() == 2 })
	cancel() // the large one gives up, and the small one fits
	if err := <-large; errs.CodeOf(err) != errs.RequestTimedOut || errs.OutcomeUnknown(err) {
		t.Errorf("giving up is a refusal, got %v", err)
	}
	if err := <-small; err != nil {
		t.Error(err)
	}
	f.release(60)
	f.release(10)
	if n := f.bytes(); n != 0 {
		t.Errorf("%d bytes leaked", n)
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	(&stage{t: t, logged: &lines{}}).eventually("the condition", ok)
}
