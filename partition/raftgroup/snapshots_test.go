package raftgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log/statelog"
)

var quiet = slog.New(slog.DiscardHandler)

func someConfiguration() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{ID: "b/1", Address: "b/1"}, {ID: "b/2", Address: "b/2", Suffrage: raft.Nonvoter}}}
}

func takeSnapshot(s *snapshotStore, index, term uint64, state string) error {
	sink, err := s.Create(1, index, term, someConfiguration(), 1, nil)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(sink, state); err != nil {
		return err
	}
	return sink.Close()
}

// Whatever the operation at which the power fails, the newest snapshot that was finished is there, or a newer one.
func TestSnapshotsSurviveACrashAtEveryOperation(t *testing.T) {
	for n := 1; ; n++ {
		disk := diskWithDir(t)
		disk.CrashAt(n)
		done := uint64(0)
		if s, _, err := openSnapshots(disk, "d/snapshots", quiet, NewMetrics(nil)); err == nil {
			for i := uint64(1); i <= 4 && takeSnapshot(s, i*10, 1, fmt.Sprint("state ", i)) == nil; i++ {
				done = i
			}
		}
		if done == 4 {
			t.Logf("%d operations", n)
			return
		}
		for seed := range uint64(4) {
			after := disk.Clone().Reboot(rand.New(rand.NewPCG(seed, uint64(n))), true)
			s, damaged, err := openSnapshots(after, "d/snapshots", quiet, NewMetrics(nil))
			if err != nil || damaged > 0 {
				t.Fatalf("crash at %d: %d damaged, %v", n, damaged, err)
			}
			metas, err := s.List()
			must(t, err)
			if len(metas) == 0 && done == 0 {
				continue
			}
			if len(metas) == 0 || metas[0].Index < done*10 {
				t.Fatalf("crash at %d: %d snapshots, %d were finished", n, len(metas), done)
			}
			_, r, err := s.Open(metas[0].ID)
			must(t, err)
			if state, _ := io.ReadAll(r); string(state) != fmt.Sprint("state ", metas[0].Index/10) {
				t.Fatalf("crash at %d: snapshot %d says %q", n, metas[0].Index, state)
			}
		}
	}
}

// The process that renamed them died before it synced the directory.
func TestNamesOfADeadProcessAreDurableOnceRead(t *testing.T) {
	for cut := 1; ; cut++ {
		disk := diskWithDir(t)
		s, _, err := openSnapshots(disk, "d/snapshots", quiet, NewMetrics(nil))
		must(t, err)
		disk.CrashAt(cut)
		_, err = OpenStable(disk, "d/stable", nil)
		if err == nil {
			err = takeSnapshot(s, 10, 1, "state")
		}
		done := err == nil
		disk = disk.Kill()
		s, _, err = openSnapshots(disk, "d/snapshots", quiet, NewMetrics(nil))
		must(t, err)
		before, err := s.List()
		must(t, err)
		must(t, giveVote(slotOf(t, openStable(t, disk), 1), 7, "b/2"))
		disk = disk.Reboot(rand.New(rand.NewPCG(1, 1)), false)
		s, _, err = openSnapshots(disk, "d/snapshots", quiet, NewMetrics(nil))
		must(t, err)
		if after, err := s.List(); err != nil || len(after) < len(before) {
			t.Errorf("killed at %d: %d snapshots became %d, %v", cut, len(before), len(after), err)
		}
		if got := load(t, slotOf(t, openStable(t, disk), 1)); got.voteTerm != 7 {
			t.Errorf("killed at %d: the vote is %+v", cut, got)
		}
		if done {
			return
		}
	}
}

func TestFailedSnapshotLeavesTheOlderOne(t *testing.T) {
	disk := diskWithDir(t)
	s, _, err := openSnapshots(disk, "d/snapshots", quiet, NewMetrics(nil))
	must(t, err)
	must(t, takeSnapshot(s, 10, 1, "old"))
	boom := errors.New("EIO")
	disk.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpSync {
			return sim.Fault{Err: boom}
		}
		return sim.Fault{}
	})
	if err := takeSnapshot(s, 20, 1, "new"); !errors.Is(err, boom) {
		t.Errorf("snapshot: %v", err)
	}
	disk.SetHook(nil)
	sink, err := s.Create(1, 30, 1, someConfiguration(), 1, nil)
	must(t, err)
	must(t, sink.Cancel())
	metas, err := s.List()
	must(t, err)
	if len(metas) != 1 || metas[0].Index != 10 {
		t.Errorf("snapshots %v", metas)
	}
}

func TestLogIsMadeToFitTheSnapshot(t *testing.T) {
	for _, c := range []struct {
		name        string
		first, last uint64 // of the log, all in term 2
		snapshot    *raft.SnapshotMeta
		wantFirst   uint64
		corrupt     bool
	}{
		{"no snapshot", 1, 9, nil, 1, false},
		{"no snapshot and no beginning", 5, 9, nil, 0, true},
		{"the log holds the snapshot's entry", 3, 9, &raft.SnapshotMeta{Index: 6, Term: 2}, 3, false},
		{"the log starts right behind", 7, 9, &raft.SnapshotMeta{Index: 6, Term: 2}, 7, false},
		{"the log ends below", 3, 9, &raft.SnapshotMeta{Index: 12, Term: 2}, 0, false},
		{"the log disagrees", 3, 9, &raft.SnapshotMeta{Index: 6, Term: 3}, 0, false},
		{"a gap", 8, 9, &raft.SnapshotMeta{Index: 6, Term: 2}, 0, true},
		{"an empty log", 1, 0, &raft.SnapshotMeta{Index: 6, Term: 2}, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			log, _, err := statelog.Open(statelog.Config{Dir: filepath.Join(t.TempDir(), "log"), FS: fsx.OS()})
			must(t, err)
			defer log.Close()
			for i := c.first; i <= c.last; i++ {
				must(t, log.Append([]statelog.Entry{{Index: i, Term: 2}}))
			}
			err = reconcile(stateLogs{log}, c.snapshot)
			if errors.Is(err, ErrCorrupt) != c.corrupt || !c.corrupt && err != nil {
				t.Fatalf("reconcile: %v", err)
			}
			if !c.corrupt && log.First() != c.wantFirst {
				t.Errorf("the log starts at %d", log.First())
			}
			if !c.corrupt && c.wantFirst == 0 && c.snapshot != nil {
				must(t, log.Append([]statelog.Entry{{Index: c.snapshot.Index + 1, Term: 3}}))
			}
		})
	}
}

func goldenSnapshot() []byte {
	return encodeSnapshot(&raft.SnapshotMeta{Index: 7, Term: 3, ConfigurationIndex: 2, Configuration: someConfiguration()}, []byte("the state"))
}

func TestGoldenSnapshot(t *testing.T) { golden(t, "snapshot", goldenSnapshot()) }

func TestEveryFlippedBitOfASnapshotIsFound(t *testing.T) {
	good := goldenSnapshot()
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 8)
		if _, _, err := decodeSnapshot(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("flip at %d: %v", at, err)
		}
		if _, _, err := decodeSnapshot(good[:at]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut at %d: %v", at, err)
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add(goldenSnapshot())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		meta, state, err := decodeSnapshot(b)
		if err == nil && (int64(len(state)) != meta.Size || len(state) > len(b)) {
			t.Fatalf("state of %d bytes, size %d", len(state), meta.Size)
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	f.Add(encodeEnvelope(proposalID{1, 2}, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, command, err := decodeEnvelope(b)
		if err == nil && !bytes.Equal(encodeEnvelope(id, command), b) {
			t.Fatal("an envelope does not come back")
		}
	})
}
