package partition

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// storeAppends appends n batches of about 1 KiB as the leader does, without Raft's goroutines, in one
// StoreLogs, and does not apply them.
func storeAppends(t *testing.T, r *rig, n int) []*raft.Log {
	t.Helper()
	var logs []*raft.Log
	next := uint64(r.log.LastIndex()) + 1
	for i := range n {
		b := batch(fmt.Sprint(next+uint64(i), strings.Repeat("x", 1000)))
		p := &Pending{done: make(chan struct{}), records: 1, claim: claimOf(b), acks: AcksNone}
		data := append(make([]byte, metaBytes), b...)
		if err := r.proposals.reserve(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if err := r.proposals.enter(p); err != nil {
			t.Fatal(err)
		}
		meta{kind: kindBatch}.put(data)
		putProposal(data, p.number)
		logs = append(logs, &raft.Log{Index: next + uint64(i), Term: 1, Type: raft.LogCommand, Data: data})
	}
	if err := r.store.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	return logs
}

// A start takes what it begins from out of the active segment's sidecar. Retention must not rest
// on that before it is in the checkpoint's file: after the next roll and a crash the sidecar
// is another, of an index that no frame says is committed.
func TestRetentionRestsOnlyOnTheCheckpointThatIsOnDisk(t *testing.T) {
	small := withTopic(func(c *TopicConfig) { c.SegmentBytes, c.Retention.Bytes = 64<<10, 1 })
	r := newRig(t, sim.New(), "/data", small)
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 1)
	for r.log.Stats().Segments < 3 {
		fsm{r.Replica}.ApplyBatch(storeAppends(t, r, 10))
	}
	r.crash()
	r.cfg.Voters = nil

	// The second life begins from the sidecar, gives up what lies before it, and appends until
	// the next segment begins within one StoreLogs.
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	r.proposals.lead(1, true)
	if _, err := r.Retain(); err != nil {
		t.Fatal(err)
	}
	first := r.log.FirstIndex()
	if first <= 1 {
		t.Fatal("nothing was given up")
	}
	for _, from := r.log.ActiveState(); ; {
		storeAppends(t, r, 30)
		if _, now := r.log.ActiveState(); now != from {
			break
		}
	}
	r.crash()

	if err := r.open(); err != nil {
		t.Fatalf("the third start: %v", err)
	}
	r.crash()
}

func TestACheckpointNeverGoesBack(t *testing.T) {
	r := newRig(t, sim.New(), "/data")
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	fill(t, r, 10)
	older := r.store.now()
	fsm{r.Replica}.ApplyBatch(storeAppends(t, r, 10))
	newer := r.store.now()
	// Two that were due wait for each other; the newer one comes first, and retention goes by it.
	for _, c := range []*state{newer, older} {
		if err := r.checkpoint(c); err != nil {
			t.Fatal(err)
		}
	}
	saved, err := readCheckpoint(r.fs, r.cfg.Dir, r.cfg, r.limits)
	if err != nil || saved.index != newer.index {
		t.Fatalf("the file is at entry %d (%v), retention relies on %d", saved.index, err, r.snapshots.index())
	}
	r.crash()
}

// The log start is durable at once, also where the records below it are not: were they lost, the
// next records would get offsets below the log start, acknowledged and never readable.
func TestTrimWithoutFlushSurvivesAPowerCut(t *testing.T) {
	for _, flush := range []string{flushOS, flushInterval} {
		t.Run(flush, func(t *testing.T) {
			fs := sim.New()
			r := newRig(t, fs, "/data", withTopic(func(c *TopicConfig) { c.Flush = flush }))
			r.start()
			for i := range 20 {
				r.mustAppend(batch(fmt.Sprint("lost-", i)))
			}
			if _, err := r.Trim(t.Context(), 20); err != nil {
				t.Fatal(err)
			}
			cut := fs.Reboot(nil, false)
			_ = r.tryStop()

			r = newRig(t, cut, "/data", withTopic(func(c *TopicConfig) { c.Flush = flush }))
			r.start()
			if v := r.View(); v.LogStart > v.LogEnd {
				t.Errorf("log start %d, log end %d", v.LogStart, v.LogEnd)
			}
			a := r.mustAppend(batch("new"))
			got, _, err := r.Read(a.BaseOffset, 1<<20)
			if err != nil || len(got) != 1 {
				t.Fatalf("record acknowledged at offset %d: %d batches, %v", a.BaseOffset, len(got), err)
			}
		})
	}
}

// A machine sleeps for a day between an append and its repetition. For the producer no time has passed.
func TestARepetitionAfterTheClockJumpedIsADuplicate(t *testing.T) {
	wall := clock.NewManual(time.UnixMilli(1_700_000_000_000))
	r := simRig(t, withClock(wall), withTopic(func(c *TopicConfig) { c.LogAppendTime = true }))
	r.mustAppend(batch("other"))
	first := r.mustAppend(numbered(7, 0, 0, "once"))
	wall.Advance(25 * time.Hour)
	again, err := r.append(Append{Batch: numbered(7, 0, 0, "once")})
	if err != nil || !again.Duplicate || again.BaseOffset != first.BaseOffset {
		t.Fatalf("the first is at offset %d, its repetition: %+v, %v", first.BaseOffset, again, err)
	}
	// Records are stamped by the clock that people see.
	if a := r.mustAppend(batch("later")); a.LogAppendTime != wall.Now().UnixMilli() {
		t.Errorf("stamped %d at %d", a.LogAppendTime, wall.Now().UnixMilli())
	}
}

func TestAJumpOfTheClockIsBelievedWhenItLasts(t *testing.T) {
	var c logClock
	const day = 24 * 3600 * 1000
	for _, step := range []struct {
		wall   int64
		passed time.Duration
		want   int64
	}{
		{1000, 0, 1000},
		{61_000, time.Minute, 61_000},
		{day, time.Second, 62_000},
		{day + 1000, time.Second, 63_000},
		{64_000, time.Second, 64_000}, // set right again
		{day, time.Second, 65_000},
		{day + 3600_000, time.Hour, day + 3600_000},
		{day, time.Second, day}, // backwards at once; entries clamp it
	} {
		if got := c.tick(step.wall, step.passed); got != step.want {
			t.Errorf("wall %d after %v: %d, want %d", step.wall, step.passed, got, step.want)
		}
	}
}

// With flush=interval the owner flushes; once the topic is told to flush otherwise it does not
// any more. What was written until then may not wait for the next append, which may never come.
func TestChangingTheFlushModeLeavesNothingUnflushed(t *testing.T) {
	for _, from := range []string{flushOS, flushInterval} {
		t.Run(from, func(t *testing.T) {
			fs := sim.New()
			r := newRig(t, fs, "/data", withTopic(func(c *TopicConfig) { c.Flush = from }))
			r.start()
			r.mustAppend(batch("before the change"))
			c := r.cfg.TopicConfig
			c.Flush = flushCommit
			r.Configure(c)
			cut := fs.Reboot(nil, false)
			_ = r.tryStop()

			r = newRig(t, cut, "/data")
			r.start()
			if got, _, err := r.Read(0, 1<<20); err != nil || len(got) != 1 {
				t.Fatalf("flush=commit, and the power cut left %d batches, %v", len(got), err)
			}
		})
	}
}
