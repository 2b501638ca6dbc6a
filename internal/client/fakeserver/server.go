// Package fakeserver is a broker in memory for tests of the SDK: it speaks
// the native API, keeps records in slices, and fails when it is told to.
//
// It keeps what the SDK relies on (order, dedupe, sessions, credits,
// revocation before assignment) and is otherwise as simple as can be.
package fakeserver

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Server is the fake. Its hooks may be set at any time through Hook.
type Server struct {
	addr string

	mu        sync.Mutex
	grpc      *grpc.Server
	group     *run.Group
	topics    map[string]*topic
	groups    map[string]*group
	nextPID   int64
	changed   chan struct{} // closed and replaced when anything changed
	produce   func(*pb.ProduceRequest) Verdict
	fetch     func(*pb.FetchResponse) error // called before each response; an error ends the stream
	sentBytes int64
	calls     map[string]int
	extra     []*pb.Broker // further brokers for the metadata
	refuse    map[string]*pb.Error
	silent    bool      // heartbeats are not answered
	beat      time.Time // when the last one was
}

// Verdict is what a hook wants done with a produce request.
type Verdict int

// Verdicts.
const (
	Go         Verdict = iota // as usual
	Refuse                    // NOT_LEADER_OR_FOLLOWER, nothing appended
	RefuseHard                // INVALID_RECORD, nothing appended
	CutBefore                 // end the stream, nothing appended
	CutAfter                  // append, then end the stream without an answer
	Silence                   // append, and never answer
	TimedOut                  // append, and answer REQUEST_TIMED_OUT, outcome unknown
	Discard                   // do not append, and answer success
	Lose                      // do not append, and answer REQUEST_TIMED_OUT, outcome unknown
)

type topic struct {
	id    [16]byte
	parts []*part
}

type part struct {
	batches    []record.Raw
	start      int64
	end        int64
	epoch      int32
	epochs     []epochEnd
	producers  map[int64][]written // by pid, at most five, oldest first
	leaderless bool                // as the metadata has it
}

type epochEnd struct {
	epoch int32
	end   int64
}

type written struct {
	seq, next int32
	base      int64
}

// Start starts a fake with topics (name to number of partitions); it stops with the test.
func Start(t testing.TB, topics map[string]int) *Server {
	t.Helper()
	s := &Server{topics: make(map[string]*topic), groups: make(map[string]*group), nextPID: 1, changed: make(chan struct{}), calls: make(map[string]int), refuse: make(map[string]*pb.Error)}
	for name, n := range topics {
		s.AddTopic(name, n)
	}
	if err := s.listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Addr is where the fake listens.
func (s *Server) Addr() string { return s.addr }

func (s *Server) listen(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.addr = ln.Addr().String()
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(80 << 20))
	pb.RegisterLogServer(srv, &logService{s: s})
	pb.RegisterTopicsServer(srv, &topicsService{s: s})
	pb.RegisterGroupsServer(srv, &groupsService{s: s})
	pb.RegisterAdminServer(srv, &adminService{s: s})
	s.mu.Lock()
	s.grpc, s.group = srv, run.Owned("fakeserver")
	group := s.group
	s.mu.Unlock()
	group.Go("serve", func(context.Context) { _ = srv.Serve(ln) })
	return nil
}

// Stop ends every connection.
func (s *Server) Stop() {
	s.mu.Lock()
	srv, group := s.grpc, s.group
	s.grpc = nil
	s.mu.Unlock()
	if srv != nil {
		group.Cancel()
		srv.Stop()
		group.Stop()
	}
}

// Restart stops the fake and starts it at the same address with the same records.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop()
	if err := s.listen(s.addr); err != nil {
		t.Fatal(err)
	}
}

// AddTopic adds a topic, or partitions to it.
func (s *Server) AddTopic(name string, partitions int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	top := s.topics[name]
	if top == nil {
		top = &topic{}
		copy(top.id[:], fmt.Sprintf("%016x", len(s.topics)+1))
		s.topics[name] = top
	}
	for len(top.parts) < partitions {
		top.parts = append(top.parts, &part{epoch: 1, producers: make(map[int64][]written)})
	}
	s.touchLocked()
}

// RemoveTopic forgets a topic.
func (s *Server) RemoveTopic(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.topics, name)
	s.touchLocked()
}

// SetLeaderless takes a partition's leader out of the metadata, as of a quarantined replica, or puts it back.
func (s *Server) SetLeaderless(topic string, partition int32, leaderless bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topics[topic].parts[partition].leaderless = leaderless
	s.touchLocked()
}

// OnProduce sets the hook that sees each produce request.
func (s *Server) OnProduce(f func(*pb.ProduceRequest) Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.produce = f
}

// OnFetch sets the hook that sees each fetch response.
func (s *Server) OnFetch(f func(*pb.FetchResponse) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetch = f
}

// Fail makes a unary call, by its name, fail until err is nil.
func (s *Server) Fail(call string, err *pb.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.refuse, call)
		return
	}
	s.refuse[call] = err
}

// Silence lets heartbeats, parked ones too, go unanswered from now on, and tells when the last was answered.
func (s *Server) Silence() (last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
	s.touchLocked()
	return s.beat
}

// AddBroker adds a broker to the metadata that nobody leads anything on.
func (s *Server) AddBroker(b *pb.Broker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extra = append(s.extra, b)
}

// Append writes records as one batch under the partition's epoch.
func (s *Server) Append(topic string, partition int32, records ...record.Record) {
	b := record.NewBuilder(record.BuilderConfig{})
	for _, r := range records {
		b.Append(r)
	}
	raw, err := b.Build()
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topics[topic].parts[partition].append(raw)
	s.touchLocked()
}

// NewEpoch starts a leader epoch after cutting the log at end (-1: not at all).
func (s *Server) NewEpoch(topic string, partition int32, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.topics[topic].parts[partition]
	if end >= 0 {
		for len(p.batches) > 0 && int64(p.batches[len(p.batches)-1].EndOffset()) > end {
			p.batches = p.batches[:len(p.batches)-1]
		}
		p.end = end
	}
	p.epochs = append(p.epochs, epochEnd{p.epoch, p.end})
	p.epoch++
	s.touchLocked()
}

// Trim moves the log start.
func (s *Server) Trim(topic string, partition int32, start int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.topics[topic].parts[partition]
	p.start = start
	for len(p.batches) > 0 && int64(p.batches[0].EndOffset()) <= start {
		p.batches = p.batches[1:]
	}
	s.touchLocked()
}

// Values lists the values of all records of a partition in order.
func (s *Server) Values(topic string, partition int32) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, b := range s.topics[topic].parts[partition].batches {
		for r, err := range b.Records(0) {
			if err != nil {
				panic(err)
			}
			all = append(all, string(r.Value))
		}
	}
	return all
}

// Batches is how many batches a partition holds.
func (s *Server) Batches(topic string, partition int32) []record.Raw {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]record.Raw(nil), s.topics[topic].parts[partition].batches...)
}

// SentBytes is the sum of all batches that fetches delivered.
func (s *Server) SentBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sentBytes
}

// Calls is how often a call was made.
func (s *Server) Calls(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[name]
}

func (s *Server) touchLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// enter counts a unary call, and fails it where a test said so.
func (s *Server) enterLocked(name string) error {
	s.calls[name]++
	if e := s.refuse[name]; e != nil {
		return Status(e)
	}
	return nil
}

func (p *part) append(raw record.Raw) int64 {
	base := p.end
	raw.SetBaseOffset(record.Offset(base))
	raw.SetLeaderEpoch(record.Epoch(p.epoch))
	p.batches = append(p.batches, raw)
	p.end = int64(raw.EndOffset())
	return base
}

func (s *Server) partLocked(name string, n int32) (*topic, *part, *pb.Error) {
	top := s.topics[name]
	if top == nil || n < 0 || int(n) >= len(top.parts) {
		return nil, nil, Error(errs.UnknownTopicOrPartition, "no such partition")
	}
	return top, top.parts[n], nil
}

// Error is an error of the wire.
func Error(code errs.Code, text string) *pb.Error {
	return &pb.Error{Code: int32(code), Name: code.Name(), Message: text, Retriable: code.Retriable()}
}

// Status is a gRPC status with an error of the wire in its details.
func Status(e *pb.Error) error {
	st, err := status.New(codes.FailedPrecondition, e.GetMessage()).WithDetails(e)
	if err != nil {
		panic(err)
	}
	return st.Err()
}
