package grpcapi

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// fakeReplica is a partition in memory. Appends commit at once, or when the
// test says so.
type fakeReplica struct {
	mu       sync.Mutex
	batches  []record.Raw
	start    record.Offset
	end      record.Offset
	hw       record.Offset
	epoch    record.Epoch
	ends     map[record.Epoch]record.Offset // of earlier epochs
	follower bool
	watchers map[int]chan<- struct{}
	watches  int

	views, reads, readBytes int
	linearize               func(context.Context) error
}

func newFakeReplica() *fakeReplica {
	return &fakeReplica{epoch: 1, watchers: map[int]chan<- struct{}{}, ends: map[record.Epoch]record.Offset{}}
}

func (r *fakeReplica) append(b record.Raw) (base, end record.Offset) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b = bytes.Clone(b)
	b.SetBaseOffset(r.end)
	b.SetLeaderEpoch(r.epoch)
	r.batches = append(r.batches, b)
	base, r.end = r.end, b.EndOffset()
	r.hw = r.end
	r.notifyLocked()
	return base, r.end
}

func (r *fakeReplica) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.notifyLocked()
}

func (r *fakeReplica) notifyLocked() {
	for _, ch := range r.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (r *fakeReplica) viewLocked() partition.View {
	return partition.View{LogStart: r.start, HighWatermark: r.hw, LastStable: r.hw, LogEnd: r.end, Epoch: r.epoch, Leader: !r.follower}
}

func (r *fakeReplica) View() partition.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.views++
	return r.viewLocked()
}

func (r *fakeReplica) Read(from record.Offset, maxBytes int) ([]record.Raw, partition.View, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	if from < r.start || from > r.hw {
		return nil, r.viewLocked(), errs.Errorf(errs.OffsetOutOfRange, "read %d of [%d,%d]", from, r.start, r.hw)
	}
	var out []record.Raw
	n := 0
	for _, b := range r.batches {
		if b.EndOffset() <= from || b.EndOffset() > r.hw {
			continue
		}
		if len(out) > 0 && n+len(b) > maxBytes {
			break
		}
		out = append(out, b)
		n += len(b)
	}
	r.readBytes += n
	return out, r.viewLocked(), nil
}

func (r *fakeReplica) Notify(ch chan<- struct{}) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watches++
	id := r.watches
	r.watchers[id] = ch
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}

func (r *fakeReplica) watched() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.watchers)
}

func (r *fakeReplica) Linearize(ctx context.Context) error {
	if r.linearize != nil {
		return r.linearize(ctx)
	}
	return nil
}

func (r *fakeReplica) OffsetForTime(ts int64) (record.Offset, int64, record.Epoch, error) {
	v := r.View()
	switch ts {
	case -1:
		return v.HighWatermark, -1, v.Epoch, nil
	case -2:
		return v.LogStart, -1, v.Epoch, nil
	}
	return 7, ts, v.Epoch, nil
}

func (r *fakeReplica) EpochEnd(e record.Epoch) (record.Epoch, record.Offset, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e >= r.epoch {
		return r.epoch, r.hw, nil
	}
	best := record.Epoch(-1)
	for held := range r.ends {
		if held <= e {
			best = max(best, held)
		}
	}
	if best < 0 {
		return -1, -1, nil
	}
	return best, r.ends[best], nil
}

func (r *fakeReplica) Trim(_ context.Context, before record.Offset) (record.Offset, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before == -1 {
		before = r.hw
	}
	r.start = max(r.start, before)
	return r.start, nil
}

func (r *fakeReplica) Stats() log.Stats { return log.Stats{SizeBytes: 123, Segments: 2} }

// fakePending is answered by the test, or was answered already.
type fakePending struct {
	done chan struct{}
	res  partition.Appended
	err  error
}

func (p *fakePending) Done() <-chan struct{} { return p.done }
func (p *fakePending) Result(ctx context.Context) (partition.Appended, error) {
	select {
	case <-p.done:
		return p.res, p.err
	case <-ctx.Done():
		return partition.Appended{}, errs.Unknown(errs.RequestTimedOut, "not answered in time; it may have been appended")
	}
}
func (p *fakePending) answer(res partition.Appended, err error) {
	p.res, p.err = res, err
	close(p.done)
}

type partID struct {
	topic string
	p     int32
}

// fakeBroker is everything behind the door.
type fakeBroker struct {
	mu       sync.Mutex
	replicas map[partID]*fakeReplica
	hold     bool // answers wait for the test
	held     []*fakePending
	appends  []partition.Append
	bytes    int
	fail     error // of Produce
	explode  bool

	groups    fakeGroups
	created   []controller.NewTopic
	topicErr  error
	altered   map[string]string
	topicList []controller.Topic
}

func newFakeBroker(topics ...string) *fakeBroker {
	b := &fakeBroker{replicas: map[partID]*fakeReplica{}}
	for i, name := range topics {
		t := controller.Topic{Name: name, ID: controller.UUID{byte(i + 1)}, Configs: map[string]string{}}
		for p := range int32(2) {
			b.replicas[partID{name, p}] = newFakeReplica()
			t.Partitions = append(t.Partitions, controller.Assignment{Partition: p, Leader: 1, LeaderEpoch: 1, Replicas: []controller.Replica{{Broker: 1}}, ISR: []int32{1}})
		}
		b.topicList = append(b.topicList, t)
	}
	return b
}

func (b *fakeBroker) replica(topic string, p int32) *fakeReplica { return b.replicas[partID{topic, p}] }

func (b *fakeBroker) Find(topic string, p int32) (Replica, error) {
	r, ok := b.replicas[partID{topic, p}]
	if !ok {
		return nil, errs.Errorf(errs.UnknownTopicOrPartition, "%s/%d is not here", topic, p)
	}
	return r, nil
}

func (b *fakeBroker) Produce(_ context.Context, topic string, p int32, a partition.Append) (Pending, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.explode {
		panic("broken invariant")
	}
	if b.fail != nil {
		return nil, b.fail
	}
	r, ok := b.replicas[partID{topic, p}]
	if !ok {
		return nil, errs.Errorf(errs.UnknownTopicOrPartition, "%s/%d is not here", topic, p)
	}
	if !a.Room || len(a.Batch) < partition.HeadRoom {
		return nil, errors.New("no head room")
	}
	raw, err := record.Check(a.Batch[partition.HeadRoom:])
	if err != nil {
		return nil, err
	}
	b.appends = append(b.appends, a)
	b.bytes += len(raw)
	pending := &fakePending{done: make(chan struct{})}
	if b.hold {
		b.held = append(b.held, pending)
		return pending, nil
	}
	if a.Conditional && a.Expect != r.View().LogEnd {
		pending.answer(partition.Appended{}, &partition.ExpectationError{Expected: a.Expect, Actual: r.View().LogEnd})
		return pending, nil
	}
	base, end := r.append(raw)
	pending.answer(partition.Appended{BaseOffset: base, EndOffset: end, Epoch: 1, LogAppendTime: -1, Acked: a.Acks}, nil)
	return pending, nil
}

func (b *fakeBroker) dispatched() (requests, bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.appends), b.bytes
}

func (b *fakeBroker) Topics() []controller.Topic { return b.topicList }
func (b *fakeBroker) Topic(name string) (controller.Topic, bool) {
	for _, t := range b.topicList {
		if t.Name == name {
			return t, true
		}
	}
	return controller.Topic{}, false
}
func (b *fakeBroker) TopicConfigs(string) ([]controller.ConfigEntry, error) {
	return []controller.ConfigEntry{{Name: "retention.ms", Value: "5", Default: "604800000", Origin: "topic", Doc: "age"}}, nil
}
func (b *fakeBroker) Brokers() []controller.Broker {
	return []controller.Broker{{ID: 1, GRPCAddress: "127.0.0.1:9093", Version: "v0"}}
}
func (b *fakeBroker) ClusterID() string   { return "cluster" }
func (b *fakeBroker) BrokerID() int32     { return 1 }
func (b *fakeBroker) ControllerID() int32 { return 1 }
func (b *fakeBroker) FeatureLevel() int32 { return 1 }

func (b *fakeBroker) CreateTopic(_ context.Context, want controller.NewTopic) (controller.Topic, bool, error) {
	b.created = append(b.created, want)
	if b.topicErr != nil {
		return controller.Topic{}, false, b.topicErr
	}
	return controller.Topic{Name: want.Name}, false, nil
}
func (b *fakeBroker) DeleteTopic(context.Context, string, bool, bool) error { return b.topicErr }
func (b *fakeBroker) AlterTopic(_ context.Context, _ string, set map[string]string, _ []string, _ bool) error {
	b.altered = set
	return b.topicErr
}
func (b *fakeBroker) AddPartitions(_ context.Context, name string, _ int32, _ bool) (controller.Topic, error) {
	return controller.Topic{Name: name}, b.topicErr
}
func (b *fakeBroker) InitProducer(context.Context) (int64, int16, error) { return 4000, 0, b.topicErr }

type fakeGroups struct {
	heartbeat group.HeartbeatRequest
	commit    group.CommitRequest
	parked    chan struct{} // closed when a heartbeat is parked; nil: none is
	err       error
}

func (g *fakeGroups) Heartbeat(ctx context.Context, r group.HeartbeatRequest) (group.HeartbeatResponse, error) {
	g.heartbeat = r
	if g.parked != nil {
		close(g.parked)
		<-ctx.Done()
		return group.HeartbeatResponse{}, ctx.Err()
	}
	return group.HeartbeatResponse{MemberEpoch: 3, Generation: 4, HeartbeatInterval: 5e9, Assigned: []group.Assignment{{Topic: "t", Partitions: []int32{0, 1}}}}, g.err
}
func (g *fakeGroups) Leave(context.Context, group.LeaveRequest) error { return g.err }
func (g *fakeGroups) CommitOffsets(_ context.Context, r group.CommitRequest) ([]group.PartitionError, error) {
	g.commit = r
	return []group.PartitionError{{Topic: "t", Partition: 1, Err: errs.New(errs.StaleMemberEpoch, "not yours")}}, g.err
}
func (g *fakeGroups) FetchOffsets(context.Context, string, []group.TopicPartition) ([]group.CommittedOffset, error) {
	return []group.CommittedOffset{{OffsetCommit: group.OffsetCommit{Topic: "t", Offset: 9, LeaderEpoch: 2, Metadata: "m"}, CommittedAt: 77}}, g.err
}
func (g *fakeGroups) List(context.Context) ([]group.Listing, error) {
	return []group.Listing{{Name: "g", State: "stable", Protocol: "native", Members: 2, Coordinator: 1}}, g.err
}
func (g *fakeGroups) Describe(_ context.Context, name string) (group.Description, error) {
	return group.Description{Name: name, State: "stable", Members: []group.MemberDescription{{MemberID: "a", Owned: []group.Assignment{{Topic: "t"}}}},
		Partitions: []group.PartitionDescription{{Lag: -1, LagTime: -1}, {Lag: 4, LagTime: 3e9, Err: errs.New(errs.LeaderNotAvailable, "none")}}}, g.err
}
func (g *fakeGroups) Delete(context.Context, string) error { return g.err }
func (g *fakeGroups) DeleteOffsets(context.Context, string, []group.TopicPartition) ([]group.PartitionError, error) {
	return nil, g.err
}

// door is an API that serves over a connection in memory.
type door struct {
	t      testing.TB
	api    *API
	broker *fakeBroker
	conn   *grpc.ClientConn
	logged *bytes.Buffer
	reg    *prometheus.Registry
	stop   func(context.Context) error
}

func open(t testing.TB, b *fakeBroker, change func(*Config)) *door {
	t.Helper()
	cfg := DefaultConfig()
	if change != nil {
		change(&cfg)
	}
	d := &door{t: t, broker: b, logged: new(bytes.Buffer), reg: prometheus.NewRegistry()}
	var err error
	d.api, err = New(cfg, Deps{
		Replicas: b, Metadata: b, Topics: b, Groups: &b.groups, Registerer: d.reg,
		Settings: func() []Setting {
			return []Setting{{Name: "node.rack", Value: "a", Origin: "file"}, {Name: "tls.key", Value: "secret", Default: "x", Sensitive: true}}
		},
		Logger: slog.New(slog.NewTextHandler(&lockedWriter{w: d.logged}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- d.api.Serve(l) }()
	d.conn, err = grpc.NewClient("passthrough:///door", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	once := sync.OnceValue(func() error {
		err := d.api.Stop(t.Context())
		return errors.Join(err, <-served)
	})
	d.stop = func(ctx context.Context) error {
		if ctx == nil {
			return once()
		}
		return d.api.Stop(ctx)
	}
	return d
}

// close ends everything; the client goes first, so that nothing is waited for.
func (d *door) close() {
	d.conn.Close()
	if err := d.stop(nil); err != nil {
		d.t.Error(err)
	}
}

type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func batchOf(t testing.TB, valueBytes int) record.Raw {
	t.Helper()
	b := record.NewBuilder(record.BuilderConfig{})
	b.Append(record.Record{Timestamp: 1, Value: make([]byte, valueBytes)})
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// detail is the Error that a status carries.
func detail(t testing.TB, err error) *pb.Error {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	e := errorOf(err)
	return e
}

// value is what a counter or gauge shows.
func value(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}
