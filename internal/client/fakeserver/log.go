package fakeserver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

type logService struct {
	pb.UnimplementedLogServer
	s *Server
}

var errCut = status.Error(codes.Unavailable, "cut by the test")

func (l *logService) Produce(stream pb.Log_ProduceServer) error {
	if err := stream.Send(&pb.ProduceResponse{WindowBytes: 1 << 20}); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		res, err := l.one(req)
		if err != nil {
			return err
		}
		if res == nil {
			continue
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

func (l *logService) one(req *pb.ProduceRequest) (*pb.ProduceResponse, error) {
	s := l.s
	s.mu.Lock()
	hook := s.produce
	s.mu.Unlock()
	verdict := Go
	if hook != nil {
		verdict = hook(req)
	}
	refusal := func(e *pb.Error) *pb.ProduceResponse {
		return &pb.ProduceResponse{Correlation: req.GetCorrelation(), BaseOffset: -1, LogAppendTimeMs: -1, Error: e}
	}
	unknown := Error(errs.RequestTimedOut, "timed out")
	unknown.OutcomeUnknown = true
	switch verdict {
	case Refuse:
		return refusal(Error(errs.NotLeaderOrFollower, "refused by the test")), nil
	case RefuseHard:
		return refusal(Error(errs.InvalidRecord, "refused by the test")), nil
	case CutBefore:
		return nil, errCut
	case Discard:
		return &pb.ProduceResponse{Correlation: req.GetCorrelation(), LogAppendTimeMs: -1}, nil
	case Lose:
		return refusal(unknown), nil
	}
	res := l.append(req)
	switch verdict {
	case CutAfter:
		return nil, errCut
	case Silence:
		return nil, nil
	case TimedOut:
		return refusal(unknown), nil
	}
	return res, nil
}

func (l *logService) append(req *pb.ProduceRequest) *pb.ProduceResponse {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &pb.ProduceResponse{Correlation: req.GetCorrelation(), BaseOffset: -1, LogAppendTimeMs: -1}
	raw, err := record.Check(append([]byte(nil), req.GetBatch()...))
	if err != nil {
		res.Error = Error(errs.CodeOf(err), err.Error())
		return res
	}
	top, p, e := s.partLocked(req.GetTopic(), req.GetPartition())
	if e != nil {
		res.Error = e
		return res
	}
	if pid := raw.ProducerID(); pid >= 0 {
		base, known, e := p.dedupe(raw)
		if e != nil {
			res.Error = e
			return res
		}
		if known {
			res.BaseOffset, res.Duplicate, res.Acked = base, true, req.GetAcks()
			return res
		}
	}
	if req.ExpectOffset != nil && req.GetExpectOffset() != p.end {
		res.Error = Error(errs.ExpectationFailed, "the partition ends elsewhere")
		end := p.end
		res.Error.ActualOffset = &end
		return res
	}
	res.BaseOffset = p.append(raw)
	if pid := raw.ProducerID(); pid >= 0 {
		p.remember(raw)
	}
	res.Acked = req.GetAcks()
	res.Position = &pb.Position{TopicId: top.id[:], Partition: req.GetPartition(), LeaderEpoch: p.epoch, Offset: p.end}
	s.touchLocked()
	return res
}

func (p *part) dedupe(raw record.Raw) (base int64, known bool, e *pb.Error) {
	past := p.producers[raw.ProducerID()]
	for _, w := range past {
		if w.seq == raw.BaseSequence() && w.next == record.AddSequence(raw.BaseSequence(), raw.Count()) {
			return w.base, true, nil
		}
	}
	want := int32(0)
	if n := len(past); n > 0 {
		want = past[n-1].next
	}
	if raw.BaseSequence() != want {
		return 0, false, Error(errs.OutOfOrderSequenceNumber, "sequence out of order")
	}
	return 0, false, nil
}

func (p *part) remember(raw record.Raw) {
	past := append(p.producers[raw.ProducerID()], written{raw.BaseSequence(), record.AddSequence(raw.BaseSequence(), raw.Count()), int64(raw.BaseOffset())})
	if len(past) > 5 {
		past = past[1:]
	}
	p.producers[raw.ProducerID()] = past
}

// ForgetProducers drops the memory of producers, as after they expired.
func (s *Server) ForgetProducers(topic string, n int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.topics[topic].parts[n].producers)
}

type fetchState struct {
	at      []*fetchPart
	credit  int64
	maxPart int64
}

type fetchPart struct {
	add    *pb.FetchPartition
	offset int64
	told   bool // has had a first response
}

func (l *logService) Fetch(stream pb.Log_FetchServer) error {
	requests := make(chan *pb.FetchRequest, 16)
	g := run.NewGroup(stream.Context(), "fake-fetch")
	// The receiver ends with the stream's context, so nobody waits for it here.
	defer g.Cancel()
	g.Go("recv", func(ctx context.Context) {
		defer close(requests)
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	})
	st := &fetchState{maxPart: 1 << 20}
	for {
		l.s.mu.Lock()
		changed := l.s.changed
		stop := l.s.group.Context().Done()
		l.s.mu.Unlock()
		if err := l.deliver(stream, st); err != nil {
			return err
		}
		select {
		case req, ok := <-requests:
			if !ok {
				return nil
			}
			st.apply(req)
		case <-changed:
		case <-stop:
			return errCut
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (f *fetchState) apply(req *pb.FetchRequest) {
	f.credit += req.GetCreditBytes()
	if req.GetMaxPartitionBytes() > 0 {
		f.maxPart = int64(req.GetMaxPartitionBytes())
	}
	for _, r := range req.GetRemove() {
		f.drop(r.GetTopic(), r.GetPartition())
	}
	for _, a := range req.GetAdd() {
		f.drop(a.GetTopic(), a.GetPartition())
		f.at = append(f.at, &fetchPart{add: a, offset: a.GetOffset()})
	}
}

func (f *fetchState) drop(topic string, n int32) {
	for i, p := range f.at {
		if p.add.GetTopic() == topic && p.add.GetPartition() == n {
			f.at = append(f.at[:i], f.at[i+1:]...)
			return
		}
	}
}

func (l *logService) deliver(stream pb.Log_FetchServer, st *fetchState) error {
	for again := true; again && st.credit > 0; {
		again = false
		for _, fp := range append([]*fetchPart(nil), st.at...) {
			if st.credit <= 0 {
				break
			}
			res, n := l.read(fp, st.maxPart)
			if res == nil {
				continue
			}
			if res.Error != nil {
				st.drop(res.Topic, res.Partition)
			}
			again = true
			st.credit -= n
			l.s.mu.Lock()
			l.s.sentBytes += n
			hook := l.s.fetch
			l.s.mu.Unlock()
			if hook != nil {
				if err := hook(res); err != nil {
					return errCut
				}
			}
			if err := stream.Send(res); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *logService) read(fp *fetchPart, limit int64) (*pb.FetchResponse, int64) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &pb.FetchResponse{Topic: fp.add.GetTopic(), Partition: fp.add.GetPartition(), Session: fp.add.GetSession()}
	top, p, e := s.partLocked(res.Topic, res.Partition)
	if e != nil {
		res.Error = e
		return res, 0
	}
	res.HighWatermark, res.LogStartOffset, res.LastStableOffset, res.LeaderEpoch = p.end, p.start, p.end, p.epoch
	if fp.add.LeaderEpoch != nil {
		if end := p.endOf(fp.add.GetLeaderEpoch()); end < fp.add.GetOffset() && fp.add.GetOffset() <= p.end && !fp.told {
			res.Error = Error(errs.TokenTruncated, "the log was truncated")
			res.Error.ActualOffset = &end
			return res, 0
		}
	}
	if fp.offset < p.start || fp.offset > p.end {
		res.Error = Error(errs.OffsetOutOfRange, "out of range")
		return res, 0
	}
	var n int64
	for _, b := range p.batches {
		if int64(b.EndOffset()) <= fp.offset {
			continue
		}
		if n > 0 && n+int64(len(b)) > limit {
			break
		}
		res.Batches = append(res.Batches, b)
		n += int64(len(b))
	}
	if n == 0 && fp.told {
		return nil, 0
	}
	fp.told = true
	if len(res.Batches) > 0 {
		fp.offset = int64(record.Raw(res.Batches[len(res.Batches)-1]).EndOffset())
	}
	res.Position = &pb.Position{TopicId: top.id[:], Partition: res.Partition, LeaderEpoch: p.epoch, Offset: fp.offset}
	return res, n
}

func (p *part) endOf(epoch int32) int64 {
	for _, e := range p.epochs {
		if e.epoch >= epoch {
			return e.end
		}
	}
	return p.end
}

func (l *logService) ListOffsets(_ context.Context, req *pb.ListOffsetsRequest) (*pb.ListOffsetsResponse, error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enterLocked("ListOffsets"); err != nil {
		return nil, err
	}
	res := &pb.ListOffsetsResponse{}
	for _, q := range req.GetQueries() {
		r := &pb.ListOffsetsResponse_Result{Topic: q.GetTopic(), Partition: q.GetPartition(), Offset: -1, TimestampMs: -1}
		res.Results = append(res.Results, r)
		_, p, e := s.partLocked(q.GetTopic(), q.GetPartition())
		if e != nil {
			r.Error = e
			continue
		}
		r.LeaderEpoch = p.epoch
		switch ts := q.GetTimestampMs(); {
		case ts == -1:
			r.Offset = p.end
		case ts == -2:
			r.Offset = p.start
		default:
			r.Offset, r.TimestampMs = p.atTime(ts)
		}
	}
	return res, nil
}

func (p *part) atTime(ts int64) (int64, int64) {
	for _, b := range p.batches {
		for rec, err := range b.Records(0) {
			if err == nil && rec.Timestamp >= ts && int64(rec.Offset) >= p.start {
				return int64(rec.Offset), rec.Timestamp
			}
		}
	}
	return -1, -1
}

func (l *logService) OffsetsForEpochs(_ context.Context, req *pb.OffsetsForEpochsRequest) (*pb.OffsetsForEpochsResponse, error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &pb.OffsetsForEpochsResponse{}
	for _, q := range req.GetQueries() {
		r := &pb.OffsetsForEpochsResponse_Result{Topic: q.GetTopic(), Partition: q.GetPartition(), LeaderEpoch: q.GetLeaderEpoch()}
		res.Results = append(res.Results, r)
		_, p, e := s.partLocked(q.GetTopic(), q.GetPartition())
		if e != nil {
			r.Error = e
			continue
		}
		r.EndOffset = p.endOf(q.GetLeaderEpoch())
	}
	return res, nil
}

func (l *logService) InitProducer(context.Context, *pb.InitProducerRequest) (*pb.InitProducerResponse, error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enterLocked("InitProducer"); err != nil {
		return nil, err
	}
	s.nextPID++
	return &pb.InitProducerResponse{ProducerId: s.nextPID}, nil
}

// ErrCut is what an OnFetch hook returns to cut the stream.
var ErrCut = errors.New("cut")
