package world

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	// coordPartition stands for the coordinator's state group where a partition's number is wanted.
	coordPartition int32 = -1
	coordGroup           = "coord-0"
)

var coordSlot = [16]byte{'c'}

// openCoordinator opens the node's replica of the consumer groups.
func (l *life) openCoordinator() error {
	n, w := l.node, l.node.world
	c, err := group.New(group.Config{
		BrokerID: int32(n.id), MinSessionTimeout: time.Second, HeartbeatInterval: 300 * time.Millisecond, SweepInterval: 5 * time.Second,
	}, 1, group.Deps{Metadata: topics{w}, Partitions: positions{l}, Clock: n.clock})
	if err != nil {
		return err
	}
	slot, err := l.stable.Slot(coordSlot)
	if err != nil {
		return err
	}
	id := coordID(n.id)
	cfg := raftgroup.StateConfig{
		Name: coordGroup, Dir: dataDir + "/" + coordGroup, FS: l.disk, ID: id, Timing: timing, Stable: &votes{StableStore: slot, life: l, p: coordPartition},
		Transport: w.net.link(l, coordGroup, id), Log: &mortalLog{n.coordLog, l},
		SnapshotEvery: 50, Watchdog: l.watchdog,
		OnFailure: func(err error) { l.exit("coordinator: %v", err) },
	}
	n.mu.Lock()
	formed := n.formed[coordPartition]
	n.mu.Unlock()
	if !formed {
		for i := range w.nodes {
			cfg.Voters = append(cfg.Voters, raft.Server{Suffrage: raft.Voter, ID: coordID(i), Address: raft.ServerAddress(coordID(i))})
		}
	}
	sg, err := raftgroup.OpenState(cfg, c.StateMachine(0))
	if err != nil {
		return err
	}
	l.runs.Go("coordinator leadership", func(ctx context.Context) { l.watchCoordinator(ctx, sg) })
	c.Attach(0, sg)
	c.Start()
	n.mu.Lock()
	n.formed[coordPartition] = true
	n.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.coordinator, l.coordState = c, sg
	return nil
}

// watchCoordinator tells who coordinates. A state group that is reset has another Raft group afterwards, so it is asked.
func (l *life) watchCoordinator(ctx context.Context, sg *raftgroup.StateGroup) {
	last := uint64(0)
	for pause(ctx, 50*time.Millisecond) == nil && !l.dead.Load() {
		term, leads := sg.Leading()
		if leads && term != last {
			last = term
			l.led(coordPartition, record.Epoch(term), true)
		}
	}
}

func coordID(node int) raft.ServerID { return raft.ServerID(fmt.Sprintf("%d/c", node)) }

// handleGroup answers what the members of consumer groups ask.
func (l *life) handleGroup(ctx context.Context, q any) *answer {
	l.mu.Lock()
	c := l.coordinator
	l.mu.Unlock()
	if c == nil {
		return failure(errs.Errorf(errs.CoordinatorNotAvailable, "the coordinator is not open yet"))
	}
	switch q := q.(type) {
	case group.HeartbeatRequest:
		r, err := c.Heartbeat(ctx, q)
		return &answer{group: r, err: err}
	case group.CommitRequest:
		bad, err := c.CommitOffsets(ctx, q)
		return &answer{group: bad, err: err}
	case group.LeaveRequest:
		return &answer{err: c.Leave(ctx, q)}
	case positionRequest:
		list, err := c.FetchOffsets(ctx, q.group, []group.TopicPartition{{Topic: topicName, Partition: q.partition}})
		return &answer{group: list, err: err}
	default:
		return failure(fmt.Errorf("group request of type %T", q))
	}
}

// positionRequest asks for a group's committed offset.
type positionRequest struct {
	group     string
	partition int32
}

// topics is the metadata that a coordinator sees.
type topics struct{ w *World }

func (t topics) Topics() []group.Topic {
	return []group.Topic{{Name: topicName, ID: topicID, Partitions: int32(t.w.options.Partitions)}}
}

func (t topics) Topic(name string) (group.Topic, bool) { return t.Topics()[0], name == topicName }

// positions tells a coordinator where partitions stand.
type positions struct{ l *life }

func (p positions) State(_ context.Context, _ string, partition int32, _ record.Offset) (group.PartitionState, error) {
	r := p.l.replica(partition)
	if r == nil {
		return group.PartitionState{}, errs.Errorf(errs.ReplicaNotAvailable, "not here")
	}
	v := r.View()
	return group.PartitionState{LogStart: v.LogStart, HighWatermark: v.HighWatermark, UnreadTimestamp: -1}, nil
}

// mortalLog is a state group's log, which lies in the node's memory because tidwall/wal knows no file system but the
// machine's. What is stored is durable at once; what a dead process stores is not stored.
type mortalLog struct {
	*raft.InmemStore
	life *life
}

var errDead = errors.New("the process is dead")

// StoreLog implements raft.LogStore.
func (m *mortalLog) StoreLog(e *raft.Log) error { return m.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore.
func (m *mortalLog) StoreLogs(list []*raft.Log) error {
	if m.life.dead.Load() {
		return errDead
	}
	return m.InmemStore.StoreLogs(list)
}

// DeleteRange implements raft.LogStore.
func (m *mortalLog) DeleteRange(first, last uint64) error {
	if m.life.dead.Load() {
		return errDead
	}
	return m.InmemStore.DeleteRange(first, last)
}

// Size implements raftgroup.StateLog.
func (m *mortalLog) Size() int64 { return 0 }

// Close implements raftgroup.StateLog: the log stays for the next life.
func (m *mortalLog) Close() error { return nil }
