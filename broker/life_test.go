package broker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// A first start that dies before the identity says "formed" is done again
// over what it left, by the same broker, in the same cluster.
func TestDeathDuringTheFirstStart(t *testing.T) {
	cfg := testConfig(t.TempDir())
	first := start(t, cfg)
	first.stop(t)
	id := first.identity
	id.formed = false
	if err := id.save(first.deps.FS, cfg.Node.DataDir); err != nil {
		t.Fatal(err)
	}
	second := start(t, cfg)
	if second.ClusterID() != first.ClusterID() || second.ID() != first.ID() || !second.identity.formed {
		t.Errorf("came back as broker %d of %s, formed %v", second.ID(), second.ClusterID(), second.identity.formed)
	}
}

func TestStartThatIsInterruptedLeavesNothingBehind(t *testing.T) {
	cfg := testConfig(t.TempDir())
	b, err := New(cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	start(t, cfg)
}

// A graceful stop in the middle of a load: everything acknowledged is there, and what was
// refused as not done is not.
func TestStopUnderLoadTellsTheTruth(t *testing.T) {
	cfg := testConfig(t.TempDir())
	b := start(t, cfg)
	b.create(t, "orders", 1, nil)
	var mu sync.Mutex
	acked, refused := map[string]record.Offset{}, map[string]bool{}
	var load sync.WaitGroup
	enough := make(chan struct{})
	for w := range 4 {
		load.Go(func() {
			for i := 0; ; i++ {
				value := strconv.Itoa(w) + "-" + strconv.Itoa(i)
				a, err := b.produce(context.Background(), "orders", 0, batchOf(t, value))
				mu.Lock()
				switch {
				case err == nil:
					acked[value] = a.BaseOffset
					if len(acked) == 200 {
						close(enough)
					}
				case !errs.OutcomeUnknown(err):
					refused[value] = true
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	<-enough
	b.stop(t)
	load.Wait()
	back := start(t, cfg)
	got := back.read(t, "orders", 0)
	for value, offset := range acked {
		if got[offset] != value {
			t.Errorf("offset %d: acknowledged %q, found %q", offset, value, got[offset])
		}
	}
	for offset, value := range got {
		if refused[value] {
			t.Errorf("%q was refused as not done and is at offset %d", value, offset)
		}
	}
}

// Damage that appears under a running broker is found by the read that meets
// it, and costs that partition alone.
func TestDamageUnderARunningBroker(t *testing.T) {
	cfg := testConfig(t.TempDir())
	b := start(t, cfg)
	topic := b.create(t, "orders", 2, map[string]string{"segment.bytes": "64KiB"})
	for i := range 40 {
		for p := range int32(2) {
			b.mustProduce(t, "orders", p, strconv.Itoa(i)+strings.Repeat("x", 1000))
		}
	}
	b.stop(t) // a fresh broker has nothing in memory
	b = start(t, cfg)
	eventually(t, "both leaders", func() bool {
		return probeOnce(b, 0) == errs.None && probeOnce(b, 1) == errs.None
	})
	flipBit(t, filepath.Join(cfg.Node.DataDir, "topics", topic.ID.String(), "0"))
	eventually(t, "the quarantine", func() bool {
		_ = probe(t, b, 0)
		_, err := b.replicas.Find("orders", 0)
		return errs.CodeOf(err) == errs.ReplicaQuarantined
	})
	if got := b.read(t, "orders", 1); len(got) != 40 {
		t.Errorf("the other partition holds %d records", len(got))
	}
	b.mustProduce(t, "orders", 1, "and it goes on")
	b.stop(t)
	b = start(t, cfg)
	if code := probe(t, b, 0); code != errs.ReplicaQuarantined {
		t.Errorf("after a restart the damaged partition answers %v", code)
	}
}

func probeOnce(b live, p int32) errs.Code {
	r, err := b.replicas.Find("orders", p)
	if err == nil && !r.View().Leader {
		return errs.LeaderNotAvailable
	}
	return errs.CodeOf(err)
}

func TestMetadataReadsAreLinearizable(t *testing.T) {
	b := start(t, testConfig(t.TempDir()))
	for i := range 5 {
		name := "t" + strconv.Itoa(i)
		b.create(t, name, 1, nil)
		if err := b.controller.Linearize(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := b.controller.Topic(name); !ok {
			t.Errorf("%s was created and is not there", name)
		}
	}
	if n := len(b.controller.Brokers()); n != 1 || b.controller.ControllerID() != b.ID() {
		t.Errorf("%d brokers, controller %d", n, b.controller.ControllerID())
	}
	if got := b.controller.Brokers()[0].GRPCAddress; got != b.Addresses().GRPC {
		t.Errorf("clients are sent to %s, the broker listens on %s", got, b.Addresses().GRPC)
	}
}

func TestPartitionBudgetOfTheBroker(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.Limits.Partitions = 3
	b := start(t, cfg)
	b.create(t, "orders", 3, nil)
	_, _, err := b.controller.CreateTopic(t.Context(), controller.NewTopic{Name: "more"})
	if errs.CodeOf(err) != errs.LimitExceeded || !strings.Contains(err.Error(), "limits.partitions") {
		t.Errorf("got %v", err)
	}
}

// The format is frozen: a broker of any later version must find out who it is.
func TestIdentityFileFormat(t *testing.T) {
	const text = `tidemark-identity 1
broker 00112233-4455-4677-8899-aabbccddeeff
cluster ffeeddcc-bbaa-4988-b766-554433221100
state formed
crc32c b2ae689a
`
	id, err := parseIdentity(text)
	if err != nil || id.String() != text {
		t.Fatalf("%v\n%s", err, id)
	}
	if !id.formed || id.broker.String() != "00112233-4455-4677-8899-aabbccddeeff" || id.cluster.String() != "ffeeddcc-bbaa-4988-b766-554433221100" {
		t.Errorf("%+v", id)
	}
	for i := range text {
		damaged := []byte(text)
		damaged[i] ^= 1
		if got, err := parseIdentity(string(damaged)); err == nil {
			t.Errorf("a flipped bit at %d was accepted: %v", i, got)
		}
		if _, err := parseIdentity(text[:i]); err == nil {
			t.Errorf("%d of %d bytes were accepted", i, len(text))
		}
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add("tidemark-identity 1\n")
	f.Add(identity{broker: controller.NewUUID(), cluster: controller.NewUUID(), formed: true}.String())
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := parseIdentity(text); err == nil && id.String() != text {
			t.Errorf("%q reads as %q", text, id)
		}
	})
}

func TestDataDirectoryIsPrivate(t *testing.T) {
	cfg := testConfig(filepath.Join(t.TempDir(), "a", "b"))
	start(t, cfg).stop(t)
	err := filepath.Walk(cfg.Node.DataDir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(cfg.Node.DataDir, lockFile)); err != nil || !bytes.HasPrefix(text, []byte(strconv.Itoa(os.Getpid()))) {
		t.Errorf("the lock file says %q: %v", text, err)
	}
}

// Lag in seconds rests on the timestamp of the first record that a group has not read.
func TestUnreadTimestampOfAPartition(t *testing.T) {
	b := start(t, testConfig(t.TempDir()))
	b.create(t, "orders", 1, nil)
	now := time.Now().UnixMilli()
	builder := record.NewBuilder(record.BuilderConfig{Codec: record.CodecZstd})
	for i := range int64(5) {
		builder.Append(record.Record{Timestamp: now - 5000 + i*1000, Value: []byte("x")})
	}
	batch, err := builder.Build()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.produce(t.Context(), "orders", 0, bytes.Clone(batch)); err != nil {
			t.Fatal(err)
		}
	}
	partitions := groupPartitions{b.replicas}
	for from, want := range map[record.Offset]int64{-1: now - 5000, 0: now - 5000, 3: now - 2000, 5: now - 5000, 9: now - 1000, 10: -1, 99: -1} {
		s, err := partitions.State(t.Context(), "orders", 0, from)
		if err != nil || s.UnreadTimestamp != want || s.HighWatermark != 10 || s.LogStart != 0 {
			t.Errorf("from %d: %+v, %v, want timestamp %d", from, s, err, want)
		}
	}
	if _, err := partitions.State(t.Context(), "none", 0, 0); errs.CodeOf(err) != errs.UnknownTopicOrPartition {
		t.Errorf("unknown topic: %v", err)
	}
}
