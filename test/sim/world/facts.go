package world

import (
	"context"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// The white box: what no client sees, and must hold all the same.

// watchEvery is how often replicas are looked at.
const watchEvery = 250 * time.Millisecond

func (l *life) fact(kind check.FactKind, p int32) check.Fact {
	f := check.Fact{Kind: kind, Group: groupName(p), Replica: string(serverID(l.node.id, p)), Run: l.number, At: l.node.world.stamp()}
	if p == coordPartition {
		f.Group, f.Replica = coordGroup, string(coordID(l.node.id))
	}
	return f
}

// watch notes terms and high watermarks, and gives up what retention allows.
func (l *life) watch(ctx context.Context) {
	w := l.node.world
	for i := 0; pause(ctx, watchEvery) == nil && !l.dead.Load(); i++ {
		for _, p := range w.partitionsOf(l.node.id) {
			r := l.replica(p)
			if r == nil {
				continue
			}
			v := r.View()
			if v.Epoch > 0 {
				f := l.fact(check.Term, p)
				f.Term = uint64(v.Epoch)
				w.history.Fact(f)
			}
			f := l.fact(check.HighWatermark, p)
			f.Offset = int64(v.HighWatermark)
			w.history.Fact(f)
			if i%4 == 0 {
				l.retain(p, r)
			}
		}
	}
}

// retain gives up old segments. Retention by size must leave as much as the topic asks for.
func (l *life) retain(p int32, r *partition.Replica) {
	w := l.node.world
	n, err := r.Retain()
	if err != nil || n == 0 || l.dead.Load() {
		return
	}
	w.history.Saw("segments_given_up", int64(n))
	v := r.View()
	w.trace.say(l.node.name, "gave up %d segments of partition %d, which starts at %d", n, p, v.LogStart)
	if limit := w.topic.Retention.Bytes; limit >= 0 {
		if has := r.Stats().SizeBytes; has < limit {
			w.trace.violation(l.node.name, "retention: partition %d keeps %d bytes, and retention.bytes is %d", p, has, limit)
		}
	}
}

// votes is a stable store that notes the votes that are given.
type votes struct {
	raft.StableStore
	life *life
	p    int32
	term uint64
}

// SetUint64 implements raft.StableStore. Raft writes a vote's term first.
func (s *votes) SetUint64(key []byte, value uint64) error {
	if string(key) == "LastVoteTerm" {
		s.term = value
	}
	return s.StableStore.SetUint64(key, value)
}

// Set implements raft.StableStore. The vote counts once this has returned.
func (s *votes) Set(key, value []byte) error {
	err := s.StableStore.Set(key, value)
	if err == nil && string(key) == "LastVoteCand" {
		f := s.life.fact(check.Vote, s.p)
		f.Term, f.Candidate = s.term, string(value)
		s.life.node.world.history.Fact(f)
	}
	return err
}

// dissect stops all nodes and compares what their disks hold, entry by entry.
func (w *World) dissect() {
	w.over.Store(true)
	for _, n := range w.nodes {
		n.stop()
	}
	for _, n := range w.nodes {
		for _, p := range w.partitionsOf(n.id) {
			if n.quarantined[p] != nil {
				continue
			}
			if err := n.dissect(p); err != nil && !n.lied(p, err) {
				w.trace.violation(n.name, "dissect: partition %d: %v", p, err)
			}
		}
	}
}

// lied tells whether it is damage that nobody has read before.
func (n *node) lied(p int32, err error) bool {
	if !n.damaged || errs.CodeOf(err) != errs.ReplicaQuarantined {
		return false
	}
	n.world.trace.say(n.name, "partition %d was damaged: %v", p, err)
	return true
}

func (n *node) dissect(p int32) error {
	root := fmt.Sprintf("%s/p%d", dataDir, p)
	dir, err := partition.Generation(n.disk, root)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(root, dir)
	}
	l, recovery, err := log.Open(log.Config{Dir: dir, Topic: topicID, Partition: p, FS: n.disk, Clock: n.clock})
	if err != nil {
		return err
	}
	defer l.Close()
	f := check.Fact{Kind: check.Log, Group: groupName(p), Replica: string(serverID(n.id, p)), Run: n.lives, At: n.world.stamp(), Commit: uint64(recovery.Commit)}
	for i := max(1, l.FirstIndex()); i <= l.LastIndex(); i++ {
		e, err := l.Entry(i)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		f.Entries = append(f.Entries, check.Entry{Index: uint64(e.Index), Term: uint64(e.Term), Sum: sum(e)})
		if e.Verdict == log.Accepted && i <= recovery.Commit {
			n.world.history.Fact(check.Fact{Kind: check.Delta, Group: f.Group, Replica: f.Replica, Run: f.Run, At: f.At, Index: uint64(i), Offset: int64(e.BaseOffset)})
		}
	}
	n.world.history.Fact(f)
	n.world.trace.say(n.name, "partition %d holds entries %d to %d, commit %d", p, l.FirstIndex(), l.LastIndex(), recovery.Commit)
	return nil
}

// sum covers all of an entry that replicas must agree on.
func sum(e log.Entry) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, e.Type, e.Verdict, e.BaseOffset, e.MetaBytes)
	h.Write(e.Body)
	return h.Sum64()
}

// stop ends the node's process as SIGTERM does.
func (n *node) stop() {
	l := n.up()
	if l == nil {
		return
	}
	l.close(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.life = nil
}

// trimmer deletes records on request.
type trimmer struct{ *client }

func (t *trimmer) run(ctx context.Context) {
	for t.rest(ctx, 6*time.Second) {
		end, ok := t.end(ctx)
		if !ok || end == 0 {
			continue
		}
		op := t.op(check.Trim)
		op.Offset = t.rng.Int64N(int64(end) + 1)
		ticket := t.world.history.Begin(op)
		a := t.ask(ctx, &request{verb: verbTrim, offset: record.Offset(op.Offset)})
		t.done(ticket, op, outcome(a), a)
		if a != nil && a.err == nil {
			t.world.trace.say(t.name, "trimmed to %d, the log starts at %d", op.Offset, a.start)
		}
	}
}

// now is the true time, in ms.
func now() int64 { return clock.System().Now().UnixMilli() }
