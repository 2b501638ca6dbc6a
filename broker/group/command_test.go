package group

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// samples is one command of every kind.
func samples() []command {
	tp := TopicPartition{"t", 3}
	bodies := []body{
		&nativeJoin{member: "m", instance: "i", client: "c", host: "h", sessionMillis: 10000, rebalanceMillis: 5000,
			topics: []string{"t"}, regex: "t.*", known: []topicCount{{"t", 4}}, matched: []string{"t"}, maxMembers: 10, maxGroups: 10},
		&nativeRelease{member: "m", epoch: 2, released: []TopicPartition{tp}},
		&setTopics{known: []topicCount{{"t", 5}}, patterns: map[string][]string{"t.*": {"t"}}},
		&nativeLeave{member: "m", instance: "i", release: true},
		&expire{reason: reasonSession, members: []expiry{{"m", 1, 2}}},
		&commit{member: "m", epoch: 2, entries: []commitEntry{{"t", [16]byte{1}, 3, 77, -1, "note"}}, maxGroups: 10, maxEntries: 10},
		&deleteOffsets{partitions: []TopicPartition{tp}},
		&deleteGroup{},
		&purge{onlyEmpty: true, entries: []purgeEntry{{tp, [16]byte{1}, 9}}},
		&classicJoin{member: "c", client: "c", fresh: true, sessionMillis: 10000, rebalanceMillis: 5000, protocolType: "consumer",
			protocols: []ClassicProtocol{{"range", []byte{0, 1, 2}}}, maxMembers: 10, maxGroups: 10},
		&classicComplete{generation: 0},
		&classicSync{member: "c", generation: 1, assignments: map[string][]byte{"c": {1}}},
		&classicLeave{members: []MemberIdentity{{"c", ""}}},
	}
	var all []command
	for i, b := range bodies {
		group := "native"
		if b.kind() >= kindClassicJoin {
			group = "classic"
		}
		all = append(all, command{group: group, at: int64(1000 + i), body: b})
	}
	return all
}

func TestCommandsSurviveEncoding(t *testing.T) {
	for _, cmd := range samples() {
		t.Run(fmt.Sprintf("kind=%d", cmd.body.kind()), func(t *testing.T) {
			b := cmd.encode()
			got, err := decodeCommand(b)
			if err != nil {
				t.Fatal(err)
			}
			if again := got.encode(); !bytes.Equal(again, b) {
				t.Errorf("encoded again it is %x, not %x", again, b)
			}
			for n := range b {
				if _, err := decodeCommand(b[:n]); err == nil {
					t.Errorf("the first %d of %d bytes were taken for a command", n, len(b))
				}
			}
			if _, err := decodeCommand(append(b, 0)); err == nil {
				t.Error("a byte too many was not noticed")
			}
		})
	}
}

func TestUnknownCommandsChangeNothing(t *testing.T) {
	m := newMachine()
	before := m.hash()
	for _, b := range [][]byte{nil, {}, {0}, {1}, {2, 1}, {1, 200, 1, 'g', 0}, bytes.Repeat([]byte{255}, 100)} {
		if _, o := m.apply(b); o.err() == nil {
			t.Errorf("%x was accepted", b)
		}
	}
	if m.hash() != before {
		t.Error("something changed")
	}
}

func TestDamagedSnapshotIsRefused(t *testing.T) {
	m := newMachine()
	for _, cmd := range samples() {
		m.apply(cmd.encode())
	}
	b := m.snapshot()
	for n := range b {
		if err := newMachine().restore(b[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes were taken for a snapshot", n, len(b))
		}
	}
	again := newMachine()
	if err := again.restore(b); err != nil || again.hash() != m.hash() {
		t.Fatalf("restored: %v, equal %v", err, again.hash() == m.hash())
	}
}

// FuzzCommand applies any bytes after some real commands: never a panic, the same on two replicas, and
// what comes out can be restored.
func FuzzCommand(f *testing.F) {
	for _, cmd := range samples() {
		f.Add(cmd.encode(), uint8(cmd.body.kind()))
	}
	f.Add([]byte{1, 6}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, prefix uint8) {
		one, two := newMachine(), newMachine()
		all := samples()
		for _, cmd := range all[:int(prefix)%(len(all)+1)] {
			one.apply(cmd.encode())
			two.apply(cmd.encode())
		}
		one.apply(b)
		restored := newMachine()
		if err := restored.restore(two.snapshot()); err != nil {
			t.Fatal(err)
		}
		restored.apply(b)
		if one.hash() != restored.hash() {
			t.Fatal("replicas differ")
		}
	})
}

// FuzzSnapshot restores any bytes: an error or a state, never a panic.
func FuzzSnapshot(f *testing.F) {
	m := newMachine()
	f.Add(m.snapshot())
	for _, cmd := range samples() {
		m.apply(cmd.encode())
		f.Add(m.snapshot())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMachine()
		if m.restore(b) == nil {
			m.snapshot()
		}
	})
}

// TestFormatIsStable compares commands and a snapshot with bytes that earlier versions wrote. A
// difference needs a new version of the format, never -update alone.
func TestFormatIsStable(t *testing.T) {
	var got bytes.Buffer
	m := newMachine()
	for _, cmd := range samples() {
		b := cmd.encode()
		fmt.Fprintf(&got, "command kind=%d %x\n", cmd.body.kind(), b)
		if k := cmd.body.kind(); k != kindDeleteGroup && k != kindPurge && k != kindClassicLeave && k != kindExpire && k != kindDeleteOffsets {
			m.apply(b)
		}
	}
	fmt.Fprintf(&got, "snapshot %x\n", m.snapshot())
	const file = "testdata/format.golden"
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the format changed; now it is\n%s", got.String())
	}
}
