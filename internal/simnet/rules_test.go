package simnet

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func logs(from, n uint64, size int) (out []*raft.Log) {
	for i := range n {
		out = append(out, &raft.Log{Index: from + i, Term: 1, Data: make([]byte, size)})
	}
	return out
}

func TestTheCommitIndexNeverLeadsTheEntries(t *testing.T) {
	for _, loose := range []bool{false, true} {
		bubble(t, Config{Traps: Traps{LooseCommit: loose}}, func(t *testing.T, n *Net) {
			p := newPair(t, n, yes)
			pipe, err := p.a.AppendEntriesPipeline("b", "b")
			if err != nil {
				t.Fatal(err)
			}
			defer pipe.Close()
			_ = p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 5, Entries: logs(6, 3, 1), LeaderCommitIndex: 30}, &raft.AppendEntriesResponse{})
			_ = p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 1, LeaderCommitIndex: 30}, &raft.AppendEntriesResponse{})
			_ = p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 40, LeaderCommitIndex: 30}, &raft.AppendEntriesResponse{})
			if _, err := pipe.AppendEntries(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 7, LeaderCommitIndex: 30}, &raft.AppendEntriesResponse{}); err != nil {
				t.Fatal(err)
			}
			want := []uint64{8, 0, 30, 7}
			if loose {
				want = []uint64{30, 30, 30, 30}
			}
			for i, m := range p.arrived() {
				if got := m.(*raft.AppendEntriesRequest).LeaderCommitIndex; got != want[i] {
					t.Errorf("loose %v: request %d carries commit index %d, want %d", loose, i, got, want[i])
				}
			}
		})
	}
}

func TestARequestIsCutToItsBudgetInRaftsOwnStruct(t *testing.T) {
	bubble(t, Config{RequestBytes: 100}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		var matched []uint64
		p.a.OnMatch(func(_ uint64, _ raft.ServerID, index uint64) { matched = append(matched, index) })
		for _, size := range []int{40, 1000} {
			req := &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 9, Entries: logs(10, 5, size)}
			_ = p.a.AppendEntries("b", "b", req, &raft.AppendEntriesResponse{})
			want := max(1, 100/size)
			if len(req.Entries) != want {
				t.Errorf("Raft believes that %d entries of %d bytes were sent, want %d", len(req.Entries), size, want)
			}
		}
		for i, want := range []int{2, 1} {
			if got := p.arrived()[i].(*raft.AppendEntriesRequest); len(got.Entries) != want {
				t.Errorf("%d entries arrived, want %d", len(got.Entries), want)
			}
		}
		if len(matched) != 2 || matched[0] != 11 || matched[1] != 10 {
			t.Errorf("matched %v, want 11 and 10", matched)
		}
	})
}

func TestOnlyASuccessOfTheSameTermMatches(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		var answer atomic.Pointer[raft.AppendEntriesResponse]
		p := newPair(t, n, func(any) any { return answer.Load() })
		type match struct {
			term  uint64
			who   raft.ServerID
			index uint64
		}
		var got []match
		p.a.OnMatch(func(term uint64, who raft.ServerID, index uint64) { got = append(got, match{term, who, index}) })
		for _, a := range []*raft.AppendEntriesResponse{
			{Term: 3, Success: false}, {Term: 4, Success: true}, {Term: 2, Success: true}, {Term: 3, Success: true},
		} {
			answer.Store(a)
			_ = p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 9, Entries: logs(10, 2, 1)}, &raft.AppendEntriesResponse{})
		}
		_ = p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 3}, &raft.AppendEntriesResponse{}) // a heartbeat shows nothing
		if len(got) != 1 || got[0] != (match{3, "b", 11}) {
			t.Errorf("matches %v", got)
		}
	})
}

func TestAMatchIsToldBeforeRaftSeesTheAnswer(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		telling := make(chan struct{})
		p.a.OnMatch(func(uint64, raft.ServerID, uint64) { telling <- struct{}{}; telling <- struct{}{} })

		answered := make(chan error, 1)
		go func() {
			answered <- p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 1, Entries: logs(1, 1, 1)}, &raft.AppendEntriesResponse{})
		}()
		beforeAnswer(t, telling, answered)

		pipe := openPipe(t, p)
		defer pipe.Close()
		if err := push(pipe, 2, 1, 1); err != nil {
			t.Fatal(err)
		}
		go func() { answered <- (<-pipe.Consumer()).Error() }()
		beforeAnswer(t, telling, answered)
	})
}

// beforeAnswer finds that there is no answer while the match is being told, and one afterwards.
func beforeAnswer(t *testing.T, telling <-chan struct{}, answered <-chan error) {
	t.Helper()
	<-telling // tell has been called, and stays
	synctest.Wait()
	select {
	case <-answered:
		t.Fatal("Raft saw the answer before the match was told")
	default:
	}
	<-telling
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func openPipe(t *testing.T, p *pair) raft.AppendPipeline {
	t.Helper()
	pipe, err := p.a.AppendEntriesPipeline("b", "b")
	if err != nil {
		t.Fatal(err)
	}
	return pipe
}

func push(pipe raft.AppendPipeline, from, n uint64, size int) error {
	_, err := pipe.AppendEntries(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: from - 1, Entries: logs(from, n, size)}, &raft.AppendEntriesResponse{})
	return err
}

func TestAPipelineHandsOverAnswersInOrder(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		n.SetPath("h2", "h1", Path{Jitter: 100 * time.Millisecond, Reorder: true})
		pipe := openPipe(t, p)
		for i := range uint64(20) {
			if err := push(pipe, i+1, 1, 1); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint64(20) {
			f := <-pipe.Consumer()
			if f.Error() != nil || !f.Response().Success || f.Request().PrevLogEntry != i {
				t.Fatalf("answer %d: %+v", i, f.Request())
			}
		}
		pipe.Close()
		if err := push(pipe, 1, 1, 1); !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Errorf("closed: %v", err)
		}
	})
}

func TestAPipelineHasABoundInRequestsAndBytes(t *testing.T) {
	for name, cfg := range map[string]Config{
		"requests": {WindowRequests: 4, Timeout: time.Hour},
		"bytes":    {WindowBytes: 4000, Timeout: time.Hour},
	} {
		bubble(t, cfg, func(t *testing.T, n *Net) {
			p := newPair(t, n, yes)
			n.Host("h2").Pause()
			pipe := openPipe(t, p)
			var sent atomic.Int32
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for i := range uint64(10) {
					if push(pipe, i+1, 1, 1000) != nil {
						return
					}
					sent.Add(1)
				}
			}()
			if synctest.Wait(); sent.Load() != 4 {
				t.Errorf("%s: %d requests under way, want 4", name, sent.Load())
			}
			go func() {
				for {
					select {
					case <-pipe.Consumer():
					case <-ended:
						return
					}
				}
			}()
			n.Host("h2").Resume()
			if <-ended; sent.Load() != 10 {
				t.Errorf("%s: %d sent in the end", name, sent.Load())
			}
			pipe.Close()
		})
	}
}

// hashicorp/raft #612, pyroscope #5518: the sender waits for ever for a window that nobody empties, because
// the reader has gone at the first refusal.
func TestAPipelineIsClosedByTheFirstRefusal(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		bubble(t, Config{Traps: Traps{DeafPipeline: deaf}}, func(t *testing.T, n *Net) {
			p := newPair(t, n, func(any) any { return &raft.AppendEntriesResponse{Term: 1} })
			pipe := openPipe(t, p)
			ended := make(chan error, 1)
			go func() { // Raft's sender
				for i := range uint64(100) {
					if err := push(pipe, i+1, 1, 1); err != nil {
						ended <- err
						return
					}
				}
				ended <- nil
			}()
			if f := <-pipe.Consumer(); f.Response().Success { // Raft's reader leaves now
				t.Error("no refusal")
			}
			time.Sleep(time.Hour)
			select {
			case err := <-ended:
				if deaf || !errors.Is(err, raft.ErrPipelineShutdown) {
					t.Errorf("deaf %v: sender ended with %v", deaf, err)
				}
			default:
				if !deaf {
					t.Error("the sender still waits after an hour")
				}
			}
			pipe.Close()
		})
	}
}

// A failed request must not be handed over: Raft counts whatever it gets as contact with the follower.
func TestAPipelineIsClosedByADeadlineAndHandsNothingOver(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		pipe := openPipe(t, p)
		n.CutOneWay("h2", "h1")
		if err := push(pipe, 1, 1, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		select {
		case <-pipe.Consumer():
			t.Error("handed over a failure")
		default:
		}
		if err := push(pipe, 2, 1, 1); !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Errorf("after a deadline: %v", err)
		}
	})
}

func TestNoHeartbeatHandlerRuns(t *testing.T) {
	for _, fast := range []bool{false, true} {
		bubble(t, Config{Traps: Traps{FastHeartbeat: fast}}, func(t *testing.T, n *Net) {
			p := newPair(t, n, yes)
			var ran atomic.Int32
			p.b.SetHeartbeatHandler(func(rpc raft.RPC) { ran.Add(1); rpc.Respond(yes(rpc.Command), nil) })
			if err := p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{}); err != nil {
				t.Fatal(err)
			}
			if (ran.Load() == 1) != fast || (len(p.arrived()) == 0) != fast {
				t.Errorf("fast %v: the handler ran %d times, Raft got %d requests", fast, ran.Load(), len(p.arrived()))
			}
		})
	}
}

func TestSnapshotsGoToTheInterceptorAndNeverToRaft(t *testing.T) {
	for _, plain := range []bool{false, true} {
		bubble(t, Config{Timeout: time.Second, Traps: Traps{PlainSnapshot: plain}}, func(t *testing.T, n *Net) {
			p := newPair(t, n, func(any) any { return &raft.InstallSnapshotResponse{Term: 1, Success: true} })
			send := func() error {
				return p.a.InstallSnapshot("b", "b", &raft.InstallSnapshotRequest{Term: 1, Size: 5}, &raft.InstallSnapshotResponse{}, bytes.NewReader([]byte("state")))
			}
			if err := send(); (err == nil) != plain {
				t.Errorf("plain %v: nobody intercepts: %v", plain, err)
			}
			i := &installed{}
			p.b.Intercept(i)
			if err := send(); err != nil {
				t.Errorf("plain %v: %v", plain, err)
			}
			want := 1
			if plain {
				want = 0
			}
			if len(i.state) != want || want == 1 && i.state[0] != "state" || (len(p.arrived()) == 2) != plain {
				t.Errorf("plain %v: intercepted %q, Raft got %d", plain, i.state, len(p.arrived()))
			}
		})
	}
}

func TestARequestThatIsNeverAnsweredEnds(t *testing.T) {
	bubble(t, Config{Timeout: 3 * time.Second}, func(t *testing.T, n *Net) {
		a := n.Host("h1").Endpoint("g", "a")
		n.Host("h2").Endpoint("g", "b") // nobody consumes
		began := time.Now()
		if err := a.AppendEntries("b", "b", &raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{}); !errors.Is(err, ErrNoAnswer) || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := a.AppendEntries("c", "c", &raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{}); !errors.Is(err, ErrRefused) {
			t.Errorf("unknown replica: %v", err)
		}
	})
}

func TestInjectNeverBlocks(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		e := n.Host("h1").Endpoint("g", "a")
		took := 0
		for e.Inject(raft.RPC{}) {
			took++
		}
		if took < inboxRequests {
			t.Errorf("took %d", took)
		}
	})
}
