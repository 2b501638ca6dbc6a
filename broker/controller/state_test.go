package controller

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func uuid(n byte) UUID { return UUID{0: n, 15: n} }

// script is one life of a cluster; every kind of command is in it.
var script = []struct {
	name string
	cmd  command
}{
	{"before bootstrap nothing is accepted", createTopic{ID: uuid(9), Name: "early"}},
	{"bootstrap", bootstrap{uuid(1), 8, 1}},
	{"bootstrap again, as after a crash", bootstrap{uuid(1), 8, 1}},
	{"bootstrap of another cluster", bootstrap{uuid(2), 8, 1}},
	{"first broker", registerBroker{Self{uuid(10), "a", "v1", "127.0.0.1:9093", "", 8}}},
	{"second broker", registerBroker{Self{uuid(11), "b", "v1", "127.0.0.1:9193", "", 8}}},
	{"first broker starts again and keeps its id", registerBroker{Self{uuid(10), "a", "v2", "127.0.0.1:9093", "", 8}}},
	{"topic", createTopic{ID: uuid(20), Name: "orders", Configs: map[string]string{"retention.ms": "1000", "flush": "os"}, Partitions: []placement{
		{{Broker: 1, UUID: uuid(30)}, {Broker: 2, UUID: uuid(31)}},
		{{Broker: 2, UUID: uuid(32)}, {Broker: 1, UUID: uuid(33)}},
	}}},
	{"same name, other id", createTopic{ID: uuid(21), Name: "orders", Partitions: []placement{{{Broker: 1, UUID: uuid(34)}}}}},
	{"other name, same id", createTopic{ID: uuid(20), Name: "other", Partitions: []placement{{{Broker: 1, UUID: uuid(34)}}}}},
	{"bad name", createTopic{ID: uuid(22), Name: "a/b", Partitions: []placement{{{Broker: 1, UUID: uuid(34)}}}}},
	{"unknown broker", createTopic{ID: uuid(22), Name: "lost", Partitions: []placement{{{Broker: 3, UUID: uuid(34)}}}}},
	{"one broker twice", createTopic{ID: uuid(22), Name: "twice", Partitions: []placement{{{Broker: 1, UUID: uuid(34)}, {Broker: 1, UUID: uuid(35)}}}}},
	{"more than a broker takes", createTopic{ID: uuid(22), Name: "big", Partitions: slots(1, 7)}},
	{"formed", formed{[]FormedReplica{{uuid(20), 0, uuid(30)}, {uuid(20), 1, uuid(33)}, {uuid(99), 0, uuid(1)}}}},
	{"leaders", report{[]Leadership{{uuid(20), 0, 1, 2, []int32{1, 2}}, {uuid(20), 1, 2, 5, []int32{2}}}}},
	{"a report of an older epoch is skipped", report{[]Leadership{{uuid(20), 1, 1, 4, []int32{1}}}}},
	{"a leader without a replica is skipped", report{[]Leadership{{uuid(20), 1, 7, 9, nil}}}},
	{"settings", alterTopic{uuid(20), map[string]string{"segment.bytes": "65536"}, []string{"flush"}}},
	{"settings of no topic", alterTopic{uuid(99), nil, nil}},
	{"cluster settings", alterCluster{map[string]string{"retention.ms": "5"}, nil}},
	{"partitions", addPartitions{uuid(20), 2, []placement{{{Broker: 1, UUID: uuid(36)}}}}},
	{"partitions that somebody else added", addPartitions{uuid(20), 2, []placement{{{Broker: 1, UUID: uuid(37)}}}}},
	{"producer ids", takeProducers{1, 1000}},
	{"the next producer ids", takeProducers{2, 1000}},
	{"no producer ids", takeProducers{2, 0}},
	{"feature level of the future", setFeature{FeatureLevel + 1}},
	{"feature level", setFeature{FeatureLevel}},
	{"delete", deleteTopic{uuid(20)}},
	{"delete again", deleteTopic{uuid(20)}},
	{"the id of a deleted topic is not reused", createTopic{ID: uuid(20), Name: "orders", Partitions: []placement{{{Broker: 1, UUID: uuid(34)}}}}},
	{"same name again", createTopic{ID: uuid(23), Name: "orders", Partitions: []placement{{{Broker: 1, UUID: uuid(38)}}}}},
	{"broker 1 put it away", trashed{uuid(20), 1}},
	{"broker 2 put it away", trashed{uuid(20), 2}},
}

func slots(broker int32, n int) []placement {
	var list []placement
	for i := range n {
		list = append(list, placement{{Broker: broker, UUID: uuid(byte(100 + i))}})
	}
	return list
}

// The golden file freezes the encoding of each command, its result, and the state's hash.
func TestScriptedLifeOfACluster(t *testing.T) {
	var b strings.Builder
	s := NewState()
	for i, step := range script {
		encoded := encodeCommand(step.cmd)
		result := s.Apply(uint64(i+1), encoded)
		h := s.Hash()
		fmt.Fprintf(&b, "# %s\n%s\n= %s\nhash %x\n", step.name, hex.EncodeToString(encoded), resultText(result), h[:8])
	}
	snapshot, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "# snapshot\n%s\n", hex.EncodeToString(snapshot))
	golden(t, "script.golden", b.String())
}

func resultText(result any) string {
	if err, failed := result.(error); failed {
		return errs.CodeOf(err).Name() + ": " + err.Error()
	}
	return fmt.Sprintf("%+v", result)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); run with -update and review\n%s", name, diff)
	}
}

func TestSnapshotRestoresTheSameState(t *testing.T) {
	for cut := range script {
		s := NewState()
		for i, step := range script[:cut+1] {
			s.Apply(uint64(i), encodeCommand(step.cmd))
		}
		snapshot, _ := s.Snapshot()
		back := NewState()
		if err := back.Restore(snapshot); err != nil {
			t.Fatal(err)
		}
		if back.Hash() != s.Hash() {
			t.Errorf("after %q: the restored state differs", script[cut].name)
		}
		if diff := cmp.Diff(s.hostedBy(), back.hostedBy()); diff != "" {
			t.Errorf("after %q: replicas per broker (-had +restored)\n%s", script[cut].name, diff)
		}
	}
}

func TestDamagedSnapshotChangesNothing(t *testing.T) {
	s := NewState()
	for i, step := range script[:20] {
		s.Apply(uint64(i), encodeCommand(step.cmd))
	}
	before := s.Hash()
	snapshot, _ := s.Snapshot()
	for n := range snapshot {
		if err := s.Restore(snapshot[:n]); err == nil {
			t.Fatalf("a snapshot cut to %d of %d bytes was accepted", n, len(snapshot))
		}
	}
	if err := s.Restore(append([]byte{snapshotVersion + 1}, snapshot[1:]...)); errs.CodeOf(err) != errs.UnsupportedVersion {
		t.Errorf("a snapshot of a newer version: %v", err)
	}
	if s.Hash() != before {
		t.Error("a refused snapshot changed the state")
	}
}

func TestUnknownCommandsAreAnswersNotPanics(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":           {},
		"newer version":   {commandVersion + 1, byte(kindReport), 0},
		"unknown kind":    {commandVersion, 200, 1, 2, 3},
		"huge count":      {commandVersion, byte(kindReport), 0xff, 0xff, 0xff, 0xff, 0x0f},
		"bytes left over": append(encodeCommand(setFeature{1}), 0),
	} {
		s := NewState()
		s.Apply(1, encodeCommand(bootstrap{uuid(1), 8, 1}))
		before := s.Hash()
		err, failed := s.Apply(2, b).(error)
		if !failed || errs.CodeOf(err) == errs.UnknownServerError {
			t.Errorf("%s: answered with %v", name, err)
		}
		if s.Hash() != before {
			t.Errorf("%s: changed the state", name)
		}
	}
}

// Two state machines that are given the same log agree, whatever is in it, and
// one of them may lose its memory and come back from its snapshot at any point.
func TestStateIsAFunctionOfTheLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := NewState(), NewState()
		a.Apply(0, encodeCommand(bootstrap{uuid(1), 8, 1}))
		b.Apply(0, encodeCommand(bootstrap{uuid(1), 8, 1}))
		for i := range rapid.IntRange(1, 60).Draw(t, "commands") {
			encoded := encodeCommand(drawCommand(t))
			ra, rb := a.Apply(uint64(i+1), encoded), b.Apply(uint64(i+1), encoded)
			if resultText(ra) != resultText(rb) {
				t.Fatalf("results differ: %s and %s", resultText(ra), resultText(rb))
			}
			if rapid.IntRange(0, 5).Draw(t, "restart") == 0 {
				snapshot, _ := b.Snapshot()
				b = NewState()
				if err := b.Restore(snapshot); err != nil {
					t.Fatal(err)
				}
			}
			if a.Hash() != b.Hash() {
				t.Fatalf("states differ after %#v", encoded)
			}
			checkInvariants(t, a)
		}
	})
}

func drawCommand(t *rapid.T) command {
	id := func(name string, n byte) UUID { return uuid(rapid.ByteRange(1, n).Draw(t, name)) }
	small := func(name string) int32 { return rapid.Int32Range(-1, 4).Draw(t, name) }
	places := func() []placement {
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) placement {
			return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Replica {
				return Replica{Broker: rapid.Int32Range(1, 3).Draw(t, "broker"), UUID: uuid(rapid.ByteRange(1, 5).Draw(t, "replica"))}
			}), 0, 2).Draw(t, "replicas")
		}), 0, 3).Draw(t, "partitions")
	}
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0:
		return registerBroker{Self{UUID: id("uuid", 3), PartitionLimit: rapid.Int32Range(0, 20).Draw(t, "limit")}}
	case 1, 2:
		return createTopic{ID: id("topic", 6), Name: rapid.SampledFrom([]string{"a", "b", "c", "..", "d"}).Draw(t, "name"), Partitions: places()}
	case 3:
		return deleteTopic{id("topic", 6)}
	case 4:
		return alterTopic{id("topic", 6), map[string]string{"k": "v"}, nil}
	case 5:
		return addPartitions{id("topic", 6), small("first"), places()}
	case 6:
		return formed{[]FormedReplica{{id("topic", 6), small("partition"), id("replica", 5)}}}
	case 7:
		return report{[]Leadership{{id("topic", 6), small("partition"), small("leader"), small("epoch"), []int32{1}}}}
	case 8:
		return trashed{id("topic", 6), small("broker")}
	default:
		return takeProducers{1, rapid.Int32Range(0, 3).Draw(t, "count")}
	}
}

func checkInvariants(t *rapid.T, s *State) {
	hosted := map[int32]int32{}
	names := map[string]bool{}
	for _, topic := range s.Topics() {
		if names[topic.Name] {
			t.Fatalf("two topics are called %q", topic.Name)
		}
		names[topic.Name] = true
		for i, p := range topic.Partitions {
			if p.Partition != int32(i) {
				t.Fatalf("partition %d stands at %d", p.Partition, i)
			}
			for _, r := range p.Replicas {
				hosted[r.Broker]++
			}
		}
	}
	if diff := cmp.Diff(hosted, s.hostedBy()); diff != "" {
		t.Fatalf("replicas per broker (-counted +kept)\n%s", diff)
	}
	for _, grave := range s.Tombstones() {
		if _, alive := s.TopicByID(grave.Topic); alive {
			t.Fatalf("topic %v is alive and dead", grave.Topic)
		}
	}
}

func FuzzCommand(f *testing.F) {
	for _, step := range script {
		f.Add(encodeCommand(step.cmd))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		one, two := NewState(), NewState()
		for i, step := range script[:20] {
			one.Apply(uint64(i), encodeCommand(step.cmd))
			two.Apply(uint64(i), encodeCommand(step.cmd))
		}
		r1, r2 := one.Apply(100, b), two.Apply(100, b)
		if resultText(r1) != resultText(r2) || one.Hash() != two.Hash() {
			t.Fatalf("not deterministic: %s and %s", resultText(r1), resultText(r2))
		}
		snapshot, _ := one.Snapshot()
		back := NewState()
		if err := back.Restore(snapshot); err != nil || back.Hash() != one.Hash() {
			t.Fatalf("the snapshot does not come back: %v", err)
		}
	})
}

func FuzzRestore(f *testing.F) {
	s := NewState()
	for i, step := range script {
		s.Apply(uint64(i), encodeCommand(step.cmd))
		b, _ := s.Snapshot()
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) { _ = NewState().Restore(b) })
}
