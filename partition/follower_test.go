package partition

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// follower is a replica whose leader is the test: requests reach Raft as if a peer had sent them.
type follower struct {
	*rig
	wire  *raftgroup.Loopback
	reset chan struct{} // OnReset was called
}

// joining describes a replica without a log that joins a group; nothing is opened.
func joining(t testing.TB, fsys fsx.FS, opts ...option) *follower {
	f := &follower{rig: newRig(t, fsys, "/follower", opts...), reset: make(chan struct{}, 1)}
	f.cfg.ID, f.cfg.Voters, f.cfg.Join = "2/replica", nil, true
	f.deps.OnReset = func() { f.reset <- struct{}{} }
	return f
}

// tryStart starts the follower and waits until it has removed what other generations left.
func (f *follower) tryStart() error {
	f.wire = raftgroup.NewLoopback(raft.ServerAddress(f.cfg.ID))
	f.deps.Transport = f.wire
	if err := f.rig.tryStart(); err != nil {
		return err
	}
	<-f.swept
	if _, _, err := f.fs.Space("/"); errors.Is(err, sim.ErrCrashed) {
		return errors.Join(err, f.tryStop())
	}
	return nil
}

func (f *follower) start() {
	f.t.Helper()
	if err := f.tryStart(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = f.tryStop() })
}

// reopen is what the owner does after a reset.
func (f *follower) reopen() {
	f.t.Helper()
	select {
	case <-f.reset:
	case <-time.After(20 * time.Second):
		f.t.Fatal("the owner was not told of the reset")
	}
	f.stop()
	f.start()
}

// send gives Raft an AppendEntries request and returns the answer.
func (f *follower) send(req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	req.RPCHeader = raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("1/replica"), Addr: []byte("1/replica")}
	answer := make(chan raft.RPCResponse, 1)
	for !f.wire.Inject(raft.RPC{Command: req, RespChan: answer}) {
		time.Sleep(time.Millisecond)
	}
	select {
	case a := <-answer:
		if a.Error != nil {
			return nil, a.Error
		}
		return a.Response.(*raft.AppendEntriesResponse), nil
	case <-time.After(20 * time.Second):
		return nil, errors.New("raft does not answer")
	}
}

// heartbeat brings a term.
func (f *follower) heartbeat(term uint64) {
	f.t.Helper()
	resp, err := f.send(&raft.AppendEntriesRequest{Term: term})
	if err != nil || !resp.Success {
		f.t.Fatalf("heartbeat of term %d: %+v, %v", term, resp, err)
	}
}

// feed replicates from l what lies behind the follower's log, up to index last.
func (f *follower) feed(l *log.Log, term uint64, last, commit log.Index) error {
	for next := f.log.LastIndex() + 1; ; {
		prev, err := l.Entry(next - 1)
		if next > 1 && err != nil {
			return err
		}
		req := &raft.AppendEntriesRequest{Term: term, PrevLogEntry: uint64(next - 1), PrevLogTerm: uint64(prev.Term), LeaderCommitIndex: uint64(commit)}
		for ; next <= last && len(req.Entries) < 64; next++ {
			e, err := l.Entry(next)
			if err != nil {
				return err
			}
			req.Entries = append(req.Entries, &raft.Log{Index: uint64(e.Index), Term: uint64(e.Term), Type: raft.LogType(e.Type), Data: bytes.Clone(e.Body)})
		}
		resp, err := f.send(req)
		if err != nil || !resp.Success {
			return errors.Join(errors.New("entries were not taken"), err)
		}
		if next > last {
			return nil
		}
	}
}

func (f *follower) mustFeed(l *log.Log, term uint64, last, commit log.Index) {
	f.t.Helper()
	if err := f.feed(l, term, last, commit); err != nil {
		f.t.Fatal(err)
	}
}

// noops stores n entries of a term that no other replica has.
func (f *follower) noops(term uint64, n int) {
	f.t.Helper()
	last := f.log.LastIndex()
	e, err := f.log.Entry(last)
	if err != nil {
		f.t.Fatal(err)
	}
	req := &raft.AppendEntriesRequest{Term: term, PrevLogEntry: uint64(last), PrevLogTerm: uint64(e.Term)}
	for i := range n {
		req.Entries = append(req.Entries, &raft.Log{Index: uint64(last) + 1 + uint64(i), Term: term, Type: raft.LogNoop})
	}
	if resp, err := f.send(req); err != nil || !resp.Success {
		f.t.Fatalf("%+v, %v", resp, err)
	}
}

// awaitHigh waits until all that is below an offset has been applied.
func (f *follower) awaitHigh(high record.Offset) {
	f.t.Helper()
	changed := make(chan struct{}, 1)
	defer f.Notify(changed)()
	for timeout := time.After(20 * time.Second); f.highWatermark() < high; {
		select {
		case <-changed:
		case <-timeout:
			f.t.Fatalf("the high watermark is %d, not %d", f.highWatermark(), high)
		}
	}
}

// offered is what a leader sends.
type offered struct {
	req   raft.InstallSnapshotRequest
	state []byte
}

// offering takes the offer of a leader's log in a term, through the calls that Raft makes.
func offering(t testing.TB, r *Replica, term uint64) offered {
	t.Helper()
	list, err := r.snapshots.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	meta, rc, err := r.snapshots.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return offered{state: b, req: raft.InstallSnapshotRequest{
		SnapshotVersion: meta.Version, Term: term, LastLogIndex: meta.Index, LastLogTerm: meta.Term, Size: meta.Size,
		Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex,
	}}
}

// offerOf is the offer of an origin by a leader of a term.
func offerOf(o log.Origin, s *state, term uint64) offered {
	b := o.Encode(log.UUID{7}, 3)
	return offered{state: b, req: raft.InstallSnapshotRequest{
		SnapshotVersion: raft.SnapshotVersionMax, Term: term, LastLogIndex: uint64(o.Index), LastLogTerm: uint64(o.Term),
		Size: int64(len(b)), Configuration: s.config, ConfigurationIndex: uint64(s.configIndex),
	}}
}

func (o offered) to(r *Replica) (*raft.InstallSnapshotResponse, error) {
	req := o.req
	return r.InstallSnapshot(&req, bytes.NewReader(o.state))
}

// retained is a leader whose log begins in its middle, and the log that it had before.
func retained(t testing.TB, opts ...option) (leader *rig, whole *log.Log) {
	t.Helper()
	opts = append([]option{withTopic(func(c *TopicConfig) { c.SegmentBytes = log.MinSegmentBytes })}, opts...)
	leader = simRig(t, opts...)
	for i := range 60 {
		leader.mustAppend(numbered(int64(i%3), 0, int32(i/3), fmt.Sprintf("%d-%04000d", i, i)))
		if i%20 == 19 {
			leader.restart() // a new epoch
		}
	}
	cfg := leader.logConfig()
	cfg.FS = leader.fs.(*sim.FS).Clone()
	whole, _, err := log.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = whole.Close() })
	leader.giveUp(t)
	return leader, whole
}

// giveUp has retention take all sealed segments but the last.
func (r *rig) giveUp(t testing.TB) {
	t.Helper()
	if err := r.store.rollAged(); err != nil {
		t.Fatal(err)
	}
	if err := r.Replica.checkpoint(r.store.now()); err != nil {
		t.Fatal(err)
	}
	r.log.SetRetention(log.Retention{Age: -1, Bytes: 2 * log.MinSegmentBytes})
	if n, err := r.Retain(); err != nil || n == 0 {
		t.Fatalf("%d segments given up, %v", n, err)
	}
	if first := r.log.FirstIndex(); first < 5 || r.log.LastIndex()-first < 5 {
		t.Fatalf("the leader's log is [%d,%d]", first, r.log.LastIndex())
	}
}

// same tells whether two replicas hold the same log from the follower's beginning on.
func (r *rig) same(t testing.TB, f *rig) {
	t.Helper()
	if r.log.FirstIndex() != f.log.FirstIndex() || r.log.LastIndex() != f.log.LastIndex() {
		t.Fatalf("the leader holds [%d,%d], the follower [%d,%d]", r.log.FirstIndex(), r.log.LastIndex(), f.log.FirstIndex(), f.log.LastIndex())
	}
	for i := r.log.FirstIndex() - 1; i <= r.log.LastIndex(); i++ {
		a, err1 := r.log.Entry(i)
		b, err2 := f.log.Entry(i)
		if err1 != nil || err2 != nil || a.Term != b.Term || a.Verdict != b.Verdict || a.BaseOffset != b.BaseOffset || !bytes.Equal(a.Body, b.Body) {
			t.Fatalf("entry %d: %v, %v; %+v, %+v", i, err1, err2, a, b)
		}
	}
	if a, b := r.store.now(), f.store.now(); !bytes.Equal(a.encoded, b.encoded) {
		t.Fatal("the follower's state differs: duplicates would be judged otherwise")
	}
	for e := record.Epoch(0); e < 8; e++ {
		ae, ao := r.log.EpochEnd(e)
		be, bo := f.log.EpochEnd(e)
		if ae != be || ao != bo {
			t.Fatalf("epoch %d ends at %d, %d at the leader, at %d, %d at the follower", e, ae, ao, be, bo)
		}
	}
	if a, b := r.View(), f.View(); a.LogStart != b.LogStart || a.LogEnd != b.LogEnd {
		t.Fatalf("%+v, %+v", a, b)
	}
}
