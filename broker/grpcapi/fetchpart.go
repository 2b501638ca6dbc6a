package grpcapi

import (
	"context"
	"time"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// fetchPart is one partition on a fetch stream. What is not immutable belongs
// to the goroutine that delivers.
type fetchPart struct {
	key     partKey
	topicID controller.UUID
	session uint64
	replica Replica
	ctx     context.Context // ends when the partition leaves the stream
	cancel  context.CancelFunc
	unwatch func()
	changed chan struct{} // one slot; full when the replica has changed

	parked bool          // until it changes
	next   record.Offset // to be delivered
	gate   gate
	gather stopwatch // runs while fewer than min_bytes are there
}

// leave ends what runs for the partition. It takes no lock of the stream.
func (p *fetchPart) leave() {
	p.cancel()
	p.unwatch()
}

func (p *fetchPart) change() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// rests tells whether nothing has happened since poll found nothing to do.
// One commit wakes a stream that may watch thousands of partitions: this is
// what it costs for each of the others.
func (p *fetchPart) rests() bool {
	if !p.parked {
		return false
	}
	if len(p.changed) == 0 {
		return true
	}
	<-p.changed
	p.parked = false
	return false
}

// poll returns a response, or how long to leave the partition alone unless it changes.
func (p *fetchPart) poll(a *API, params fetchParams) (*fetchOut, time.Duration, error) {
	out, again, err := p.look(a, params)
	p.parked = out == nil && err == nil && again == forever
	return out, again, err
}

func (p *fetchPart) look(a *API, params fetchParams) (*fetchOut, time.Duration, error) {
	open, again, err := p.gate.pass(a, p)
	if err != nil || !open {
		return nil, again, err
	}
	v := p.replica.View()
	if err := p.readable(v); err != nil {
		return nil, 0, err
	}
	if p.next >= v.HighWatermark {
		return nil, forever, nil
	}
	batches, v, err := p.replica.Read(p.next, params.maxPartitionBytes)
	if err != nil {
		return nil, 0, err
	}
	if len(batches) == 0 {
		return nil, forever, nil
	}
	if wait := p.holdBack(params, batches, v); wait > 0 {
		return nil, wait, nil
	}
	return p.response(batches, v), 0, nil
}

// readable tells whether this replica may answer at all. Between high
// watermark and log end there is nothing to read yet, and no error.
func (p *fetchPart) readable(v partition.View) error {
	if !v.Leader && p.gate.leaderOnly() {
		return errNotLeader
	}
	if p.next < v.LogStart || p.next > max(v.HighWatermark, v.LogEnd) {
		return errs.Errorf(errs.OffsetOutOfRange, "offset %d of %s/%d is out of range: the log holds %d to %d", p.next, p.key.topic, p.key.partition, v.LogStart, v.HighWatermark)
	}
	return nil
}

var errNotLeader = errs.New(errs.NotLeaderOrFollower, "this broker does not lead the partition; ask for metadata and go to its leader")

// holdBack tells how much longer to gather min_bytes. When there is more than
// fits, there is nothing to wait for.
func (p *fetchPart) holdBack(params fetchParams, batches []record.Raw, v partition.View) time.Duration {
	if batchesBytes(batches) >= int64(params.minBytes) || batches[len(batches)-1].EndOffset() < v.HighWatermark {
		return 0
	}
	return params.maxWait - p.gather.elapsed()
}

func (p *fetchPart) response(batches []record.Raw, v partition.View) *fetchOut {
	p.gather = stopwatch{}
	last := batches[len(batches)-1]
	p.next = last.EndOffset()
	head := &pb.FetchResponse{
		Topic: p.key.topic, Partition: p.key.partition, Session: p.session,
		HighWatermark: int64(v.HighWatermark), LogStartOffset: int64(v.LogStart), LastStableOffset: int64(v.LastStable), LeaderEpoch: int32(v.Epoch),
		Position: &pb.Position{TopicId: p.topicID[:], Partition: p.key.partition, LeaderEpoch: int32(last.LeaderEpoch()), Offset: int64(p.next)},
	}
	return &fetchOut{head: head, batches: batches}
}

func (p *fetchPart) failure(a *API, err error) *pb.FetchResponse {
	head := &pb.FetchResponse{
		Topic: p.key.topic, Partition: p.key.partition, Session: p.session, LeaderEpoch: record.None,
		HighWatermark: record.None, LogStartOffset: record.None, LastStableOffset: record.None,
		Error: a.partitionError("Fetch", p.key.topic, p.key.partition, err),
	}
	if p.replica != nil {
		v := p.replica.View()
		head.HighWatermark, head.LogStartOffset, head.LastStableOffset, head.LeaderEpoch = int64(v.HighWatermark), int64(v.LogStart), int64(v.LastStable), int32(v.Epoch)
	}
	return head
}

// gate is what must hold before a partition's first response: the history that
// the client knows is this log's, the replica has reached the client's token, the
// leader is one still. Then it stays open.
type gate struct {
	consistency pb.Consistency
	epoch       record.Epoch  // of the record before the first offset; None: not known
	before      record.Offset // the first offset
	notBefore   *pb.Position
	knock       func()

	open       bool
	waiting    stopwatch  // for the token
	linearized chan error // nil until asked; gets one answer
}

func newGate(add *pb.FetchPartition, c pb.Consistency, knock func()) gate {
	g := gate{consistency: c, epoch: record.None, before: record.Offset(add.GetOffset()), notBefore: add.GetNotBefore(), knock: knock}
	if add != nil && add.LeaderEpoch != nil {
		g.epoch = record.Epoch(*add.LeaderEpoch)
	}
	return g
}

// leaderOnly: the weaker levels may be served by any replica.
func (g *gate) leaderOnly() bool {
	switch g.consistency {
	case pb.Consistency_CONSISTENCY_SESSION, pb.Consistency_CONSISTENCY_EVENTUAL:
		return false
	}
	return true
}

func (g *gate) pass(a *API, p *fetchPart) (open bool, again time.Duration, err error) {
	if g.open {
		return true, 0, nil
	}
	v := p.replica.View()
	if !v.Leader && g.leaderOnly() {
		return false, 0, errNotLeader
	}
	switch g.consistency {
	case pb.Consistency_CONSISTENCY_LINEARIZABLE, pb.Consistency_CONSISTENCY_BOUNDED:
		if done, err := g.linearize(a, p); !done || err != nil {
			return false, forever, err
		}
		v = p.replica.View()
	}
	if err := checkHistory(p.replica, v, g.epoch, g.before); err != nil {
		return false, 0, err
	}
	if g.notBefore != nil {
		if again, err := g.reached(a, p, v); again > 0 || err != nil {
			return false, again, err
		}
	}
	g.open = true
	return true, 0, nil
}

// linearize asks in a goroutine of its own, since a majority may take its time
// and the other partitions shall not wait. The goroutine ends when the partition
// leaves the stream.
func (g *gate) linearize(a *API, p *fetchPart) (done bool, err error) {
	if g.linearized != nil {
		select {
		case err := <-g.linearized:
			return true, err
		default:
			return false, nil
		}
	}
	answer, knock := make(chan error, 1), g.knock
	g.linearized = answer
	if !a.readers.Go("linearize", func(context.Context) {
		answer <- a.guard("Fetch", func() error { return p.replica.Linearize(p.ctx) })
		close(answer) // asked again, it has succeeded
		knock()
	}) {
		return false, errShuttingDown
	}
	return false, nil
}

// reached tells whether the replica holds everything below the client's token.
func (g *gate) reached(a *API, p *fetchPart, v partition.View) (again time.Duration, err error) {
	t := g.notBefore
	if len(t.TopicId) > 0 && string(t.TopicId) != string(p.topicID[:]) {
		return 0, errs.Errorf(errs.InconsistentTopicID, "session token is of another topic that was called %q too; start without it", p.key.topic)
	}
	if err := checkToken(p.replica, v, record.Epoch(t.LeaderEpoch), record.Offset(t.Offset)); err != nil {
		return 0, err
	}
	if v.HighWatermark >= record.Offset(t.Offset) {
		return 0, nil
	}
	left := a.cfg.SessionWait - g.waiting.elapsed()
	if left <= 0 {
		return 0, errs.Errorf(errs.OffsetNotAvailable, "this replica has committed up to %d and did not reach the session's %d in %v; try another", v.HighWatermark, t.Offset, a.cfg.SessionWait)
	}
	return left, nil
}

// checkToken refuses a token that names records which this log will never have.
// Beyond its high watermark only a leader knows that: it has committed in a later epoch.
func checkToken(r Replica, v partition.View, e record.Epoch, o record.Offset) error {
	if o > v.HighWatermark && e >= 0 && e < v.Epoch && v.Leader {
		return checkEnd(r, e, o)
	}
	return checkHistory(r, v, e, o)
}

// checkHistory compares the epoch in which a client saw the record before o with
// this log, if the log says anything about it yet.
func checkHistory(r Replica, v partition.View, e record.Epoch, o record.Offset) error {
	if e < 0 || o <= v.LogStart || o > v.HighWatermark {
		return nil
	}
	if e > v.Epoch {
		return errs.Errorf(errs.UnknownLeaderEpoch, "this replica is at leader epoch %d and does not know %d yet; try again", v.Epoch, e)
	}
	return checkEnd(r, e, o)
}

func checkEnd(r Replica, e record.Epoch, o record.Offset) error {
	held, end, err := r.EpochEnd(e)
	if err != nil {
		return err
	}
	if held < 0 {
		return nil // given up by retention
	}
	if held != e || end < o {
		return &truncated{end: end, err: errs.Errorf(errs.TokenTruncated,
			"the log was truncated: it has no record before offset %d of leader epoch %d; epoch %d ends at %d", o, e, held, end)}
	}
	return nil
}

// truncated tells where the history that both know ends.
type truncated struct {
	end record.Offset
	err error
}

func (t *truncated) Error() string               { return t.err.Error() }
func (t *truncated) Unwrap() error               { return t.err }
func (t *truncated) ActualOffset() record.Offset { return t.end }

// guard turns a panic of f into an error.
func (a *API) guard(api string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = a.panicked(api, v)
		}
	}()
	return f()
}
