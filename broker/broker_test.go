package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		child(dir)
	}
	goleak.VerifyTestMain(m)
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

func testConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Node.DataDir = dir
	cfg.Listeners.GRPC.Address, cfg.Listeners.Admin.Address = "127.0.0.1:0", "127.0.0.1:0"
	return cfg
}

// live is a broker that runs, and what it logged.
type live struct {
	*Broker
	logged *lines
	fatal  chan error
}

func start(t *testing.T, cfg Config) live {
	t.Helper()
	l, err := tryStart(t, cfg)
	if err != nil {
		t.Fatalf("%v\n%s", err, l.logged)
	}
	t.Cleanup(func() { l.stop(t) })
	return l
}

func tryStart(t testing.TB, cfg Config) (live, error) {
	t.Helper()
	l := live{logged: &lines{}, fatal: make(chan error, 8)}
	b, err := New(cfg, Deps{Logger: slog.New(slog.NewTextHandler(l.logged, nil)), OnFatal: func(err error) { l.fatal <- err }, Version: Version{Version: "test"}})
	if err != nil {
		return l, err
	}
	l.Broker = b
	return l, b.Start(t.Context())
}

// stop stops a broker; stopping it twice does nothing the second time.
func (l live) stop(t testing.TB) {
	t.Helper()
	if l.phase.Load() == phaseDraining {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := l.Stop(ctx); err != nil {
		t.Errorf("%v\n%s", err, l.logged)
	}
}

func (l live) create(t testing.TB, name string, partitions int32, configs map[string]string) controller.Topic {
	t.Helper()
	topic, _, err := l.controller.CreateTopic(t.Context(), controller.NewTopic{Name: name, Partitions: partitions, Configs: configs})
	if err != nil {
		t.Fatalf("%v\n%s", err, l.logged)
	}
	return topic
}

func batchOf(t testing.TB, values ...string) []byte {
	t.Helper()
	b := record.NewBuilder(record.BuilderConfig{})
	for i, v := range values {
		b.Append(record.Record{Timestamp: time.Now().UnixMilli() + int64(i), Value: []byte(v)})
	}
	raw, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (l live) produce(ctx context.Context, topic string, p int32, batch []byte) (partition.Appended, error) {
	pending, err := l.replicas.Produce(ctx, topic, p, partition.Append{Batch: batch})
	if err != nil {
		return partition.Appended{}, err
	}
	return pending.Result(ctx)
}

// mustProduce appends one record, trying again while the leader is not there yet.
func (l live) mustProduce(t testing.TB, topic string, p int32, value string) partition.Appended {
	t.Helper()
	var a partition.Appended
	eventually(t, "an append to "+topic, func() bool {
		var err error
		a, err = l.produce(t.Context(), topic, p, batchOf(t, value))
		if err != nil && !errs.Retriable(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	return a
}

// read returns the values of a partition by offset.
func (l live) read(t *testing.T, topic string, p int32) map[record.Offset]string {
	t.Helper()
	var r *partition.Replica
	eventually(t, "the leader of "+topic, func() bool {
		var err error
		r, err = l.replicas.Find(topic, p)
		return err == nil && r.View().Leader
	})
	if err := r.Linearize(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := map[record.Offset]string{}
	for at := r.View().LogStart; at < r.View().HighWatermark; {
		batches, _, err := r.Read(at, 1<<20)
		if err != nil || len(batches) == 0 {
			t.Fatalf("read at %d: %d batches, %v", at, len(batches), err)
		}
		for _, b := range batches {
			for rec, err := range b.Records(0) {
				if err != nil {
					t.Fatal(err)
				}
				all[rec.Offset] = string(rec.Value)
			}
			at = b.EndOffset()
		}
	}
	return all
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s did not happen", what)
		}
	}
}

func TestRestartKeepsTopicsOffsetsAndIdentity(t *testing.T) {
	cfg := testConfig(t.TempDir())
	first := start(t, cfg)
	topic := first.create(t, "orders", 3, map[string]string{"retention.ms": "1h"})
	for p := range int32(3) {
		for i := range 10 {
			if a := first.mustProduce(t, "orders", p, fmt.Sprintf("%d-%d", p, i)); a.BaseOffset != record.Offset(i) {
				t.Fatalf("record %d of partition %d got offset %d", i, p, a.BaseOffset)
			}
		}
	}
	pid, _, err := first.controller.InitProducer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first.stop(t)

	second := start(t, cfg)
	if second.ClusterID() != first.ClusterID() || second.ID() != first.ID() || second.identity.broker != first.identity.broker {
		t.Error("the broker came back as somebody else")
	}
	again, ok := second.controller.Topic("orders")
	if !ok || again.ID != topic.ID || again.Configs["retention.ms"] != "3600000" {
		t.Errorf("the topic came back as %+v", again)
	}
	for p := range int32(3) {
		got := second.read(t, "orders", p)
		for i := range 10 {
			if got[record.Offset(i)] != fmt.Sprintf("%d-%d", p, i) {
				t.Errorf("partition %d offset %d holds %q", p, i, got[record.Offset(i)])
			}
		}
		if a := second.mustProduce(t, "orders", p, "next"); a.BaseOffset != 10 {
			t.Errorf("partition %d goes on at %d", p, a.BaseOffset)
		}
	}
	later, _, err := second.controller.InitProducer(t.Context())
	if err != nil || later <= pid {
		t.Errorf("producer id %d after %d: %v", later, pid, err)
	}
	if second.starts != 1 {
		t.Errorf("a graceful stop counts as %d starts", second.starts)
	}
}

func TestDamagedPartitionLeavesTheOthersServing(t *testing.T) {
	cfg := testConfig(t.TempDir())
	b := start(t, cfg)
	topic := b.create(t, "orders", 3, map[string]string{"segment.bytes": "64KiB"})
	for i := range 60 {
		for p := range int32(3) {
			b.mustProduce(t, "orders", p, strconv.Itoa(i)+strings.Repeat("x", 1000))
		}
	}
	b.stop(t)
	dir := filepath.Join(cfg.Node.DataDir, "topics", topic.ID.String(), "1")
	flipBit(t, dir)

	back := start(t, cfg)
	for _, p := range []int32{0, 2} {
		if got := back.read(t, "orders", p); len(got) != 60 {
			t.Errorf("partition %d holds %d records", p, len(got))
		}
	}
	if code := probe(t, back, 1); code != errs.ReplicaQuarantined {
		t.Errorf("the damaged partition answers %v\n%s", code, back.logged)
	}
	if body, status := get(t, back, "/healthz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "orders/1 is quarantined") {
		t.Errorf("healthz says %d %s", status, body)
	}
	if body, status := get(t, back, "/readyz"); status != http.StatusOK {
		t.Errorf("one damaged partition makes the broker unready: %d %s", status, body)
	}
	eventually(t, "the metadata's knowledge", func() bool {
		now, _ := back.controller.Topic("orders")
		return now.Partitions[1].Leader == -1
	})
	select {
	case err := <-back.fatal:
		t.Errorf("the process would have ended: %v", err)
	default:
	}
	// What is damaged stays for an operator.
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

// probe reads a whole partition until an error tells what is wrong with it.
func probe(t *testing.T, b live, p int32) errs.Code {
	t.Helper()
	for at := record.Offset(0); ; {
		r, err := b.replicas.Find("orders", p)
		if err != nil {
			return errs.CodeOf(err)
		}
		batches, view, err := r.Read(at, 1<<16)
		if err != nil {
			return errs.CodeOf(err)
		}
		if at >= view.HighWatermark && view.Leader {
			return errs.None
		}
		for _, batch := range batches {
			at = batch.EndOffset()
		}
	}
}

// flipBit changes one bit of a record in the oldest sealed segment that holds any.
func flipBit(t *testing.T, dir string) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) < 2 {
		t.Fatalf("no sealed segment in %s: %v %v", dir, logs, err)
	}
	for _, name := range logs[:len(logs)-1] {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(data, []byte(strings.Repeat("x", 900)))
		if at < 0 {
			continue
		}
		data[at] ^= 1
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no sealed segment with a record in %s", dir)
}

func TestDeletedTopicIsGoneForGood(t *testing.T) {
	cfg := testConfig(t.TempDir())
	b := start(t, cfg)
	topic := b.create(t, "orders", 2, nil)
	b.mustProduce(t, "orders", 0, "old")
	if err := b.controller.DeleteTopic(t.Context(), "orders", false, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of its directory", func() bool {
		_, err := os.Stat(filepath.Join(cfg.Node.DataDir, "topics", topic.ID.String()))
		return errors.Is(err, fs.ErrNotExist)
	})
	eventually(t, "the end of its name", func() bool {
		_, err := b.replicas.Find("orders", 0)
		return errs.CodeOf(err) == errs.UnknownTopicOrPartition
	})
	again := b.create(t, "orders", 1, nil)
	if a := b.mustProduce(t, "orders", 0, "new"); again.ID == topic.ID || a.BaseOffset != 0 {
		t.Errorf("the new topic has id %v and begins at %d", again.ID, a.BaseOffset)
	}
	b.stop(t)
	back := start(t, cfg)
	if got := back.read(t, "orders", 0); len(got) != 1 || got[0] != "new" {
		t.Errorf("after a restart the new topic holds %v", got)
	}
}

func TestSecondBrokerOnADirectoryNamesTheFirst(t *testing.T) {
	cfg := testConfig(t.TempDir())
	start(t, cfg)
	_, err := tryStart(t, cfg)
	if !errors.Is(err, fsx.ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), cfg.Node.DataDir) {
		t.Errorf("got %v", err)
	}
}

func TestPortInUseNamesSettingAndAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, setting := range []string{"listeners.grpc.address", "listeners.admin.address"} {
		cfg := testConfig(t.TempDir())
		if setting == "listeners.grpc.address" {
			cfg.Listeners.GRPC.Address = taken.Addr().String()
		} else {
			cfg.Listeners.Admin.Address = taken.Addr().String()
		}
		_, err := tryStart(t, cfg)
		if err == nil || !strings.Contains(err.Error(), setting) || !strings.Contains(err.Error(), taken.Addr().String()) {
			t.Errorf("%s: got %v", setting, err)
		}
		// Nothing was left behind that keeps a second try from working.
		cfg = testConfig(cfg.Node.DataDir)
		start(t, cfg).stop(t)
	}
}

func TestConfigurationProblemsAreNamedAllAtOnce(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.Listeners.GRPC.Address = "0.0.0.0:9093"
	cfg.Listeners.Admin.Address = "nonsense"
	cfg.Listeners.GRPC.Advertised = "0.0.0.0:1"
	cfg.Cluster.Join = []string{"other"}
	cfg.Node.ID = "7"
	cfg.Limits.Partitions = 0
	_, err := New(cfg, Deps{})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"listeners.grpc.address", "insecure: true", "listeners.admin.address", "listeners.grpc.advertised", "cluster.join", "node.id", "limits.partitions"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	cfg = testConfig(t.TempDir())
	cfg.Listeners.GRPC.Address, cfg.Insecure = "0.0.0.0:0", true
	if _, err := New(cfg, Deps{}); err != nil {
		t.Errorf("insecure is explicit: %v", err)
	}
}

func TestDirectoryWithoutItsIdentityIsNotTouched(t *testing.T) {
	cfg := testConfig(t.TempDir())
	start(t, cfg).stop(t)
	name := filepath.Join(cfg.Node.DataDir, identityFile)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func() error{
		"missing":   func() error { return os.Remove(name) },
		"cut short": func() error { return os.WriteFile(name, text[:len(text)-3], 0o600) },
		"edited": func() error {
			return os.WriteFile(name, bytes.Replace(text, []byte("formed"), []byte("new"), 1), 0o600)
		},
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := tryStart(t, cfg); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)
}

// A state group that was formed may have acknowledged something: it is not formed again, empty.
func TestLostStateGroupIsNotFormedAgain(t *testing.T) {
	for _, name := range []string{"meta", "coord-3"} {
		cfg := testConfig(t.TempDir())
		start(t, cfg).stop(t)
		if err := os.RemoveAll(filepath.Join(cfg.Node.DataDir, stateDir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := tryStart(t, cfg); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Whoever comes in right after a start is served, not told to try again.
func TestLeadersServeWhenStartReturns(t *testing.T) {
	cfg := testConfig(t.TempDir())
	b := start(t, cfg)
	b.create(t, "orders", 20, nil)
	b.stop(t)
	b = start(t, cfg)
	for p := range int32(20) {
		if _, err := b.produce(t.Context(), "orders", p, batchOf(t, "x")); err != nil {
			t.Errorf("partition %d: %v", p, err)
		}
	}
}

func TestHealthAndMetricsTellTheTruth(t *testing.T) {
	b := start(t, testConfig(t.TempDir()))
	b.create(t, "orders", 2, nil)
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/startupz"} {
		if body, status := get(t, b, path); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	body, _ := get(t, b, "/metrics")
	for _, want := range []string{
		`tidemark_partitions{state="leader"} 2`, `tidemark_build_info{`, `tidemark_node_info{cluster="` + b.ClusterID(), "tidemark_uptime_seconds",
		"tidemark_disk_free_bytes", "tidemark_memory_limit_bytes", `tidemark_log_size_bytes{topic="orders"}`, "tidemark_produce_queue_bytes 0",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in the metrics", want)
		}
	}
}

func get(t *testing.T, b live, path string) (body string, status int) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + b.Addresses().Admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), resp.StatusCode
}

func TestCrashLoopIsSaid(t *testing.T) {
	cfg := testConfig(t.TempDir())
	if err := writeStarts(fsx.OS(), cfg.Node.DataDir, manyStarts); err != nil {
		t.Fatal(err)
	}
	b := start(t, cfg)
	if !strings.Contains(b.logged.String(), "again and again") {
		t.Error("nobody was told")
	}
}

func TestFatalErrorIsToldOnceAndShowsInLivez(t *testing.T) {
	b := start(t, testConfig(t.TempDir()))
	b.onFatal(errors.New("fdatasync: input/output error"))
	b.onFatal(errors.New("and another"))
	if err := <-b.fatal; !strings.Contains(err.Error(), "fdatasync") || len(b.fatal) > 0 {
		t.Error(err, len(b.fatal))
	}
	if body, status := get(t, b, "/livez"); status != http.StatusServiceUnavailable || !strings.Contains(body, "fdatasync") {
		t.Errorf("livez says %d %s", status, body)
	}
}
