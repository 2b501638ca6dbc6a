package partition

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Timestamps with a meaning of their own in OffsetForTime: Kafka's ListOffsets.
const (
	latest          = -1
	earliest        = -2
	maxTimestamp    = -3
	earliestLocal   = -4
	latestTiered    = -5
	earliestPending = -6
)

var errQuarantined = errs.New(errs.ReplicaQuarantined, "this replica has failed and serves nothing")

// View is what a reader needs to know, read at one moment.
type View struct {
	LogStart      record.Offset
	HighWatermark record.Offset
	LastStable    record.Offset // the high watermark, as long as there are no transactions
	LogEnd        record.Offset
	Epoch         record.Epoch // of the leader
	Leader        bool         // this replica leads and has committed in its term
}

// View tells where the partition stands.
func (r *Replica) View() View {
	// In this order no view has a high watermark above its log end.
	start, high, end := r.log.StartOffset(), r.highWatermark(), r.log.EndOffset()
	if bug.On(bug.HighAboveCommit) {
		high = end
	}
	v := View{LogStart: start, HighWatermark: max(start, high), LastStable: max(start, high), LogEnd: end}
	g := r.group.Load()
	if g == nil || r.failure() != nil {
		return v
	}
	term, leads := r.leadsIn(g)
	if !leads {
		term = g.Term()
	}
	v.Epoch, v.Leader = epochOf(term), leads && !r.muted()
	return v
}

// leadsIn is the term in which the group leads, once appends are taken in it.
func (r *Replica) leadsIn(g *raftgroup.Group) (term uint64, ok bool) {
	term, ok = g.LeadsIn()
	return term, ok && r.leading.Load() == term
}

// Read returns committed batches from the one that holds offset from; none when from is at or above
// the high watermark but not above the log end. See log.Log.Read for the ownership of the slices.
func (r *Replica) Read(from record.Offset, maxBytes int) ([]record.Raw, View, error) {
	v := r.View()
	if r.failure() != nil {
		return nil, v, r.refusal(errQuarantined)
	}
	if from >= v.HighWatermark && from <= v.LogEnd {
		return nil, v, nil
	}
	if from > v.LogEnd {
		return nil, v, fmt.Errorf("read offset %d of [%d,%d]: %w", from, v.LogStart, v.LogEnd, log.ErrOutOfRange)
	}
	batches, err := r.log.Read(from, v.HighWatermark, maxBytes)
	if err != nil {
		return nil, v, r.readFailed(err)
	}
	return batches, v, nil
}

// readFailed ends the replica where a read found damage.
func (r *Replica) readFailed(err error) error {
	if errors.Is(err, log.ErrCorrupt) {
		r.fatal(err)
	}
	return err
}

// Notify sends on ch, without blocking, each time the high watermark (or the leadership, or the log start)
// changes, until cancel is called. An idle watch costs nothing.
func (r *Replica) Notify(ch chan<- struct{}) (cancel func()) { return r.watch.add(ch) }

// Linearize waits until everything that was acknowledged before the call is
// readable here; it fails with NotLeaderOrFollower elsewhere than at the leader.
// It waits for all that the leader has stored, so that it covers acks=1 as well, and asks a majority of
// the voters whether somebody else leads by now.
func (r *Replica) Linearize(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	defer r.Notify(changed)()
	term, err := r.leads()
	if err != nil {
		return err
	}
	end := r.log.EndOffset()
	if err := r.group.Load().Confirm(ctx, term); err != nil {
		return err
	}
	for r.highWatermark() < end {
		select {
		case <-changed:
		case <-ctx.Done():
			return errs.Errorf(errs.RequestTimedOut, "offset %d has not committed in time: %w", end, ctx.Err())
		}
		now, err := r.leads()
		if err != nil {
			return err
		}
		if now != term {
			return errNotServing
		}
	}
	return nil
}

var (
	errNotServing = errs.New(errs.NotLeaderOrFollower, "this replica does not lead the partition: ask for metadata and retry at the leader")
	errNewLeader  = errs.New(errs.OffsetNotAvailable, "the partition's new leader has not committed in its term yet; retry")
)

// leads is the term in which this replica leads, and has committed.
func (r *Replica) leads() (uint64, error) {
	g := r.group.Load()
	switch {
	case r.failure() != nil:
		return 0, r.refusal(errQuarantined)
	case g == nil || r.muted():
		return 0, errNotServing
	}
	if term, ok := r.leadsIn(g); ok {
		return term, nil
	}
	if _, id := g.Raft().LeaderWithID(); id == r.cfg.ID {
		return 0, errNewLeader
	}
	return 0, errNotServing
}

// OffsetForTime answers ListOffsets: -1 high watermark, -2 log start, -3 max timestamp, else the
// first record at or after a time in ms. Offset and time are -1 where there is none.
func (r *Replica) OffsetForTime(ts int64) (o record.Offset, t int64, e record.Epoch, err error) {
	term, err := r.leads()
	if err != nil {
		return -1, -1, -1, err
	}
	v, ok := r.View(), true
	switch {
	case ts == latest:
		return v.HighWatermark, -1, epochOf(term), nil
	case ts == earliest || ts == earliestLocal:
		return v.LogStart, -1, r.log.EpochAt(v.LogStart), nil
	case ts == latestTiered || ts == earliestPending:
		return -1, -1, -1, nil
	case ts < earliestPending:
		return -1, -1, -1, errs.Errorf(errs.UnsupportedVersion, "timestamp %d has no meaning", ts)
	case ts == maxTimestamp:
		o, t, e, ok, err = r.log.MaxTimestamp(v.HighWatermark)
	default:
		o, t, e, ok, err = r.log.OffsetForTime(ts, v.HighWatermark)
	}
	if err != nil {
		return -1, -1, -1, r.readFailed(err)
	}
	if !ok {
		return -1, -1, -1, nil
	}
	return o, t, e, nil
}

// EpochEnd answers OffsetForLeaderEpoch, bounded by the high watermark: the largest epoch at
// or below e, and the offset at which it ends; -1 and -1 when there is none.
func (r *Replica) EpochEnd(e record.Epoch) (record.Epoch, record.Offset, error) {
	term, err := r.leads()
	if err != nil {
		return -1, -1, err
	}
	high := r.View().HighWatermark
	if e >= epochOf(term) {
		if e > epochOf(term) {
			return -1, -1, nil
		}
		return e, high, nil
	}
	found, end := r.log.EpochEnd(e)
	if found < 0 || end < 0 {
		return -1, -1, nil
	}
	return found, min(end, high), nil
}

// ISR are the replicas in sync, this one first; nil where it does not lead, or Deps.ISR was given.
func (r *Replica) ISR() []raft.ServerID {
	switch {
	case r.isr != nil:
		return r.isr.members()
	case r.deps.ISR == ISR(alone{}) && r.View().Leader:
		return []raft.ServerID{r.cfg.ID}
	}
	return nil
}

// Stats for metrics and describe commands.
func (r *Replica) Stats() log.Stats { return r.log.Stats() }

// Stalled is how long the write or sync that is under way has been taking; 0 when the
// disk is idle. A replica that is stalled for three seconds refuses appends and does not lead.
func (r *Replica) Stalled() time.Duration {
	if g := r.group.Load(); g != nil {
		return g.Stalled()
	}
	return r.store.stalled()
}

// muted tells whether the disk hangs: what the replica said now might not be so any more. Its group is silent then.
func (r *Replica) muted() bool {
	g := r.group.Load()
	return g != nil && g.Muted()
}
