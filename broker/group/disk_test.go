package group

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/partition/raftgroup/statetest"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func TestTheStateMachineIsDeterministic(t *testing.T) {
	var commands [][]byte
	for range 3 {
		for _, cmd := range samples() {
			commands = append(commands, cmd.encode())
		}
	}
	statetest.Deterministic(t, func() raftgroup.StateMachine {
		c, err := New(Config{}, 1, Deps{Metadata: &fakeTopics{}, Partitions: fakePartitions{}})
		if err != nil {
			t.Fatal(err)
		}
		return c.StateMachine(0)
	}, commands)
}

// onDisk is a coordinator over a real state group.
type onDisk struct {
	t      *testing.T
	dir    string
	fs     fsx.FS
	log    raftgroup.StateLog // nil: in dir
	topics *fakeTopics
	c      *Coordinator
	stable *raftgroup.StableStore
	group  *raftgroup.StateGroup
}

func (d *onDisk) start() {
	d.t.Helper()
	var err error
	if d.stable, err = raftgroup.OpenStable(d.fs, filepath.Join(d.dir, "stable"), nil); err != nil {
		d.t.Fatal(err)
	}
	slot, err := d.stable.Slot([16]byte{1})
	if err != nil {
		d.t.Fatal(err)
	}
	if d.c, err = New(Config{InitialRebalanceDelay: -1}, 1, Deps{Metadata: d.topics, Partitions: fakePartitions{}}); err != nil {
		d.t.Fatal(err)
	}
	d.group, err = raftgroup.OpenState(raftgroup.StateConfig{
		Name: "coord-0", Dir: filepath.Join(d.dir, "coord-0"), FS: d.fs, ID: "b/1", Stable: slot, Log: d.log, SnapshotEvery: 16,
		Transport: raftgroup.NewLoopback("b/1"), Voters: []raft.Server{{ID: "b/1", Address: "b/1"}},
	}, d.c.StateMachine(0))
	if err != nil {
		d.t.Fatal(err)
	}
	d.c.Attach(0, d.group)
	d.c.Start()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for d.c.Coordinates("g") != nil {
		select {
		case <-tick.C:
		case <-limit:
			d.t.Fatal("no leader after 20 s")
		}
	}
}

func (d *onDisk) stop() {
	d.t.Helper()
	d.c.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := d.group.Stop(ctx); err != nil {
		d.t.Fatal(err)
	}
	if err := d.stable.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// TestRestartKeepsGroups stops the coordinator and its state group, and starts them from disk: members,
// generations, assignments and offsets are as they were, and nobody has to join again.
func TestRestartKeepsGroups(t *testing.T) {
	restartKeepsGroups(&onDisk{t: t, dir: t.TempDir(), fs: fsx.OS()})
}

// memoryLog is a log that somebody else keeps: the simulator runs state groups on such a one, since
// tidwall/wal knows no file system but the machine's.
type memoryLog struct{ *raft.InmemStore }

func (memoryLog) Size() int64  { return 0 }
func (memoryLog) Close() error { return nil }

func TestRestartKeepsGroupsInMemory(t *testing.T) {
	fsys := sim.New()
	if err := fsys.MkdirAll("/data", 0o700); err != nil {
		t.Fatal(err)
	}
	restartKeepsGroups(&onDisk{t: t, dir: "/data", fs: fsys, log: memoryLog{raft.NewInmemStore()}})
}

func restartKeepsGroups(d *onDisk) {
	t := d.t
	d.topics = &fakeTopics{all: map[string]Topic{}}
	d.topics.set("t", 6)
	d.start()
	members := map[string]HeartbeatResponse{}
	beat := func(id string, epoch int32) HeartbeatResponse {
		t.Helper()
		r, err := d.c.Heartbeat(t.Context(), HeartbeatRequest{Group: "g", MemberID: id, MemberEpoch: epoch, Topics: []string{"t"}, Owned: members[id].Assigned})
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		members[id] = r
		return r
	}
	for range 4 {
		for i := range 3 {
			id := fmt.Sprintf("m%d", i)
			beat(id, members[id].MemberEpoch)
		}
	}
	commit := func(offset int64) {
		t.Helper()
		for id, r := range members {
			k := CommitRequest{Group: "g", MemberID: id, MemberEpoch: r.MemberEpoch}
			for _, p := range r.Assigned[0].Partitions {
				k.Offsets = append(k.Offsets, OffsetCommit{Topic: "t", Partition: p, Offset: record.Offset(offset), LeaderEpoch: -1})
			}
			if bad, err := d.c.CommitOffsets(t.Context(), k); err != nil || len(bad) > 0 {
				t.Fatalf("%s: %v %v", id, bad, err)
			}
		}
	}
	for i := range 20 { // past a snapshot
		commit(int64(i))
	}
	join, err := d.c.JoinGroup(t.Context(), JoinRequest{
		Group: "classic", SessionTimeout: 30 * time.Second, ProtocolType: "consumer", Protocols: []ClassicProtocol{{"range", []byte("s")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	sync := SyncRequest{Group: "classic", MemberID: join.MemberID, Generation: join.Generation, Assignments: map[string][]byte{join.MemberID: []byte("A")}}
	if _, err := d.c.SyncGroup(t.Context(), sync); err != nil {
		t.Fatal(err)
	}
	before := hashOf(t, d.c)
	for range 2 {
		d.stop()
		d.start()
		if hashOf(t, d.c) != before {
			t.Fatal("the state is another one after a restart")
		}
	}
	defer d.stop()
	for id, r := range members {
		if again := beat(id, r.MemberEpoch); again.MemberEpoch != r.MemberEpoch || again.Generation != r.Generation {
			t.Errorf("%s: %+v, and after the restart %+v", id, r, again)
		}
	}
	sync.Assignments = nil
	if r, err := d.c.SyncGroup(t.Context(), sync); err != nil || string(r.Assignment) != "A" {
		t.Errorf("classic member: %q, %v", r.Assignment, err)
	}
	if err := d.c.ClassicHeartbeat(t.Context(), ClassicHeartbeatRequest{Group: "classic", MemberID: join.MemberID, Generation: join.Generation}); err != nil {
		t.Error(err)
	}
	if hashOf(t, d.c) != before {
		t.Error("heartbeats after the restart wrote something")
	}
	all, err := d.c.FetchOffsets(t.Context(), "g", nil)
	if err != nil || len(all) != 6 || slices.ContainsFunc(all, func(o CommittedOffset) bool { return o.Offset != 19 }) {
		t.Errorf("offsets: %v, %v", all, err)
	}
	if _, err := d.c.Heartbeat(t.Context(), HeartbeatRequest{Group: "g", MemberID: "stranger", MemberEpoch: 3}); errs.CodeOf(err) != errs.UnknownMemberID {
		t.Errorf("a stranger: %v", err)
	}
}

func hashOf(t *testing.T, c *Coordinator) string {
	t.Helper()
	h, err := statetest.Hash(c.StateMachine(0))
	if err != nil {
		t.Fatal(err)
	}
	return h
}
