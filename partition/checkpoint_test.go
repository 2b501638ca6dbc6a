package partition

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// counted counts the entries that Raft reads.
type counted struct {
	*store
	reads atomic.Int64
}

func (c *counted) GetLog(i uint64, out *raft.Log) error {
	c.reads.Add(1)
	return c.store.GetLog(i, out)
}

// fill stores n appends and applies them, as Raft does, without its goroutines.
func fill(t *testing.T, r *rig, n int) {
	t.Helper()
	config := raft.EncodeConfiguration(raft.Configuration{Servers: r.cfg.Voters})
	if err := r.deps.Stable.SetUint64([]byte("CurrentTerm"), 1); err != nil {
		t.Fatal(err)
	}
	if err := r.store.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: config}); err != nil {
		t.Fatal(err)
	}
	r.proposals.lead(1, true)
	b := batch("v")
	for next := 2; next < n+2; {
		var logs []*raft.Log
		for range min(64, n+2-next) {
			p := &Pending{done: make(chan struct{}), records: 1, claim: claimOf(b), acks: AcksNone}
			data := append(make([]byte, metaBytes), b...)
			if err := errors.Join(r.proposals.reserve(t.Context(), 0), r.proposals.enter(p)); err != nil {
				t.Fatal(err)
			}
			meta{kind: kindBatch}.put(data)
			putProposal(data, p.number)
			logs = append(logs, &raft.Log{Index: uint64(next), Term: 1, Type: raft.LogCommand, Data: data})
			next++
		}
		if err := r.store.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
		fsm{r.Replica}.ApplyBatch(logs)
	}
}

// crash ends an open, not started replica without a last checkpoint.
func (r *rig) crash() {
	r.runs.Stop()
	if err := errors.Join(r.log.Close(), r.stable.Close()); err != nil {
		r.t.Fatal(err)
	}
}

func TestAStartReadsOnlyWhatLiesBehindTheCheckpoint(t *testing.T) {
	const entries = 50_000
	r := newRig(t, sim.New(), "/data", withTopic(func(c *TopicConfig) { c.SegmentBytes = 1 << 30 }))
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	fill(t, r, entries)
	r.crash()

	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	defer r.tryStop()
	base := r.snapshots.index()
	if base < entries-2*checkpointEntries {
		t.Fatalf("the checkpoint is at entry %d of %d", base, entries)
	}
	logs := &counted{store: r.store}
	g, err := raftgroup.Start(raftgroup.Config{Name: "t", ID: r.cfg.ID}, raftgroup.Parts{
		FSM: fsm{r.Replica}, Logs: logs, Stable: r.deps.Stable, Snapshots: &r.snapshots,
		Transport: raftgroup.NewLoopback(raft.ServerAddress(r.cfg.ID)),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.group.Store(g)
	g.OnLeadership(r.leadership)
	if err := r.awaitLeader(); err != nil {
		t.Fatal(err)
	}
	// Each is read once for configurations and once to be applied.
	behind := int64(entries + 1 - base)
	if n := logs.reads.Load(); n > 2*behind+20 {
		t.Fatalf("%d reads for %d entries behind the checkpoint", n, behind)
	}
	if v := r.View(); v.HighWatermark != entries {
		t.Fatalf("high watermark %d", v.HighWatermark)
	}
}

func TestACleanStopLeavesACheckpointAtTheEnd(t *testing.T) {
	r := simRig(t)
	for range 30 {
		r.mustAppend(batch("a"))
	}
	r.stop()
	end := r.log.LastIndex()
	r.cfg.Voters = nil
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	defer r.tryStop()
	if got := r.snapshots.index(); got != end {
		t.Fatalf("checkpoint at entry %d, the log ends at %d", got, end)
	}
	if v := r.View(); v.HighWatermark != 30 {
		t.Fatalf("high watermark %d before Raft runs", v.HighWatermark)
	}
	if list, err := r.snapshots.List(); err != nil || len(list) != 1 || len(list[0].Configuration.Servers) != 1 {
		t.Fatalf("snapshots %v, %v", list, err)
	}
}

func TestADamagedCheckpointIsMadeAgain(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped bit": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":         func(b []byte) []byte { return b[:len(b)-9] },
		"empty":       func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			disk := sim.New()
			r := newRig(t, disk, "/data")
			r.start()
			for range 10 {
				r.mustAppend(numbered(1, 0, int32(r.View().HighWatermark), "a"))
			}
			r.stop()
			if err := disk.Corrupt("/data/p/"+checkpointName, damage); err != nil {
				t.Fatal(err)
			}
			r.cfg.Voters = nil
			r.start()
			if a := r.mustAppend(numbered(1, 0, 9, "a")); !a.Duplicate || a.BaseOffset != 9 {
				t.Fatalf("got %+v", a)
			}
		})
	}
}

func TestDamageFoundWhileOpeningIsAnError(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data")
	r.start()
	for range 10 {
		r.mustAppend(batch(strings.Repeat("x", 5000)))
	}
	r.stop()
	files, err := disk.ReadDir("/data/p")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".log") {
			if err := disk.Corrupt("/data/p/"+f.Name(), func(b []byte) []byte { b[20_000] ^= 1; return b }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.tryStart(); errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("got %v", err)
	}
	if len(r.died) != 0 {
		t.Fatal("OnFatal was called for an error of Open")
	}
}

func TestACheckpointBeyondTheLogIsDamage(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data")
	r.start()
	r.mustAppend(batch("a"))
	r.stop()
	s := newState(releaseLimits)
	s.index, s.term = 1000, 9
	b := encodeCheckpoint(r.cfg.Topic, r.cfg.Partition, s.encode())
	if err := disk.Corrupt("/data/p/"+checkpointName, func([]byte) []byte { return b }); err != nil {
		t.Fatal(err)
	}
	if err := r.tryStart(); errs.CodeOf(err) != errs.ReplicaQuarantined {
		t.Fatalf("got %v", err)
	}
}

func TestACheckpointBelowTheLogIsReplacedByTheSidecar(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data", withTopic(func(c *TopicConfig) {
		c.SegmentBytes, c.Retention = 64<<10, log.Retention{Age: -1, Bytes: 0}
	}))
	r.start()
	for range 20 {
		r.mustAppend(batch(strings.Repeat("x", 10_000)))
	}
	s := newState(releaseLimits)
	s.index, s.term = 2, 1
	b := encodeCheckpoint(r.cfg.Topic, r.cfg.Partition, s.encode())
	if n, err := r.Retain(); err != nil || n == 0 {
		t.Fatalf("gave up %d segments: %v", n, err)
	}
	r.stop()
	if err := disk.Corrupt("/data/p/"+checkpointName, func([]byte) []byte { return b }); err != nil {
		t.Fatal(err)
	}
	// The active segment begins with a state that is committed: the start takes that.
	r.start()
	if v := r.View(); v.HighWatermark != 20 {
		t.Fatalf("got %+v", v)
	}
}

// Retention never takes what the next start needs, whatever the topic asks for.
func TestRetentionStopsAtTheCheckpoint(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data", withTopic(func(c *TopicConfig) {
		c.SegmentBytes, c.Retention = 64<<10, log.Retention{Age: -1, Bytes: 0}
	}))
	r.start()
	for range 40 {
		r.mustAppend(batch(strings.Repeat("x", 10_000)))
	}
	if r.barrier() != 0 {
		t.Fatalf("without a checkpoint all up to entry %d may go", r.barrier())
	}
	release := r.Hold(1)
	if n, err := r.Retain(); err != nil || n != 0 {
		t.Fatalf("gave up %d segments that are held: %v", n, err)
	}
	release()
	if n, err := r.Retain(); err != nil || n == 0 {
		t.Fatalf("gave up %d segments: %v", n, err)
	}
	start := r.View().LogStart
	if start == 0 || r.log.FirstIndex() == 1 {
		t.Fatalf("log start %d, first entry %d", start, r.log.FirstIndex())
	}
	// It starts again from what is left, also where the checkpoint is lost with the first entries.
	r.restart()
	if v := r.View(); v.LogStart != start || v.HighWatermark != 40 {
		t.Fatalf("got %+v", v)
	}
	var gone raft.Log
	if err := r.store.GetLog(1, &gone); err != raft.ErrLogNotFound {
		t.Fatalf("entry 1: %v", err)
	}
	stub := uint64(r.log.FirstIndex()) - 1
	if err := r.store.GetLog(stub, &gone); err != nil || gone.Term == 0 {
		t.Fatalf("the entry below the first: %+v, %v", gone, err)
	}
	r.stop()
	if err := disk.Remove("/data/p/" + checkpointName); err != nil {
		t.Fatal(err)
	}
	if err := r.tryStart(); err != nil {
		t.Fatalf("without the checkpoint: %v", err)
	}
	if err := r.awaitLeader(); err != nil {
		t.Fatal(err)
	}
	if v := r.View(); v.LogStart != start || v.HighWatermark != 40 {
		t.Fatalf("without the checkpoint: %+v", v)
	}
}

func TestCheckpointsAreWrittenWhileAppending(t *testing.T) {
	disk := sim.New()
	r := newRig(t, disk, "/data", withTopic(func(c *TopicConfig) { c.Flush = flushOS }))
	r.start()
	var last *Pending
	for range checkpointEntries + 100 {
		p, err := r.Append(t.Context(), Append{Batch: batch("a"), Acks: AcksQuorum})
		if err != nil {
			t.Fatal(err)
		}
		last = p
	}
	if a, err := last.Result(t.Context()); err != nil || a.EndOffset != record.Offset(checkpointEntries+100) {
		t.Fatalf("got %+v, %v", a, err)
	}
	for deadline := time.After(20 * time.Second); r.snapshots.index() < checkpointEntries; {
		select {
		case <-deadline:
			t.Fatalf("the checkpoint is at entry %d", r.snapshots.index())
		default:
			r.mustAppend(batch("b"))
		}
	}
	// With flush=os nothing was synced but for the checkpoint's sake.
	if d := r.log.Durable(); d < r.snapshots.index() {
		t.Fatalf("durable through %d, checkpoint at %d", d, r.snapshots.index())
	}
	if _, err := disk.Stat(filepath.Join(r.cfg.Dir, checkpointName)); errors.Is(err, fs.ErrNotExist) {
		t.Fatal("there is no file")
	}
}

// storeMore keeps n more appends without applying them.
func storeMore(t *testing.T, r *rig, n int) {
	t.Helper()
	b := batch("v")
	for range n {
		p := &Pending{done: make(chan struct{}), records: 1, claim: claimOf(b)}
		data := append(make([]byte, metaBytes), b...)
		if err := errors.Join(r.proposals.reserve(t.Context(), 0), r.proposals.enter(p)); err != nil {
			t.Fatal(err)
		}
		meta{kind: kindBatch}.put(data)
		putProposal(data, p.number)
		l := &raft.Log{Index: uint64(r.log.LastIndex()) + 1, Term: 1, Type: raft.LogCommand, Data: data}
		if err := r.store.StoreLog(l); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheHighWatermarkAtTheStartIsWhatWasKnownToBeCommitted(t *testing.T) {
	r := newRig(t, sim.New(), "/data")
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 100)
	storeMore(t, r, 7)
	r.crash()
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	defer r.tryStop()
	if v := r.View(); v.HighWatermark != 100 || v.LogEnd != 107 || v.LastStable != 100 {
		t.Fatalf("got %+v", v)
	}
	if b, _, err := r.Read(100, 1000); err != nil || len(b) != 0 {
		t.Fatalf("an uncommitted batch is served: %v, %v", b, err)
	}
}

func TestNothingUncommittedIsCheckpointed(t *testing.T) {
	r := newRig(t, sim.New(), "/data", withTopic(func(c *TopicConfig) { c.SegmentBytes = 64 << 10 }))
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	defer r.crash()
	fill(t, r, 10)
	storeMore(t, r, checkpointEntries)
	if r.store.due.next.Load() == nil {
		t.Fatal("no checkpoint is due")
	}
	fsm{r.Replica}.ApplyBatch([]*raft.Log{{Index: 11, Term: 1, Type: raft.LogConfiguration}})
	if _, err := r.Retain(); err != nil {
		t.Fatal(err)
	}
	r.runs.Stop() // whatever it began is done
	if got := r.snapshots.index(); got > 11 {
		t.Fatalf("checkpoint at entry %d, 11 are committed", got)
	}
}

// A checkpoint is decided on beside Raft's main loop, which may replace what it describes by another leader's entries and
// commit those.
func TestACheckpointOfReplacedEntriesIsNotWritten(t *testing.T) {
	r := simRig(t)
	r.mustAppend(batch("a"))
	c := r.store.now()
	if !r.settled(c) {
		t.Fatal("all is committed")
	}
	c.term++ // what stood there was of another term
	if r.settled(c) {
		t.Error("the state of an entry that is not there would be written")
	}
}
