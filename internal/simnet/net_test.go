package simnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs f with a network in a bubble of virtual time.
func bubble(t *testing.T, cfg Config, f func(t *testing.T, n *Net)) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		n := New(rand.New(rand.NewPCG(seed, seed)), cfg)
		defer n.Close()
		f(t, n)
	})
}

// pair is two endpoints of one group; the second answers what answer says.
type pair struct {
	a, b *Endpoint
	mu   sync.Mutex
	seen []any // guarded by mu; what arrived at b
}

func newPair(t *testing.T, n *Net, answer func(any) any) *pair {
	p := &pair{a: n.Host("h1").Endpoint("g", "a"), b: n.Host("h2").Endpoint("g", "b")}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() {
		for {
			select {
			case rpc := <-p.b.Consumer():
				p.mu.Lock()
				p.seen = append(p.seen, rpc.Command)
				p.mu.Unlock()
				if r := answer(rpc.Command); r != nil {
					rpc.Respond(r, nil)
				} else {
					rpc.Respond(nil, errors.New("no"))
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return p
}

func (p *pair) arrived() []any {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

func yes(req any) any {
	switch r := req.(type) {
	case *raft.AppendEntriesRequest:
		return &raft.AppendEntriesResponse{Term: r.Term, Success: true}
	case *raft.RequestVoteRequest:
		return &raft.RequestVoteResponse{Term: r.Term, Granted: true}
	case *raft.RequestPreVoteRequest:
		return &raft.RequestPreVoteResponse{Term: r.Term, Granted: true}
	case *raft.TimeoutNowRequest:
		return &raft.TimeoutNowResponse{}
	}
	return nil
}

func vote(p *pair, term uint64) error {
	return p.a.RequestVote("b", "b", &raft.RequestVoteRequest{Term: term}, &raft.RequestVoteResponse{})
}

func terms(seen []any) (out []uint64) {
	for _, s := range seen {
		out = append(out, s.(*raft.RequestVoteRequest).Term)
	}
	return out
}

func TestEveryRequestOfRaftArrivesAndIsAnswered(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		n.SetDefault(Path{Delay: 10 * time.Millisecond})
		began := time.Now()
		var v raft.RequestVoteResponse
		if err := p.a.RequestVote("b", "b", &raft.RequestVoteRequest{Term: 7}, &v); err != nil || !v.Granted || v.Term != 7 {
			t.Errorf("vote: %+v %v", v, err)
		}
		if took := time.Since(began); took != 20*time.Millisecond {
			t.Errorf("took %v with 10 ms each way", took)
		}
		var pv raft.RequestPreVoteResponse
		if err := p.a.RequestPreVote("b", "b", &raft.RequestPreVoteRequest{Term: 8}, &pv); err != nil || !pv.Granted {
			t.Errorf("pre-vote: %+v %v", pv, err)
		}
		if err := p.a.TimeoutNow("b", "b", &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{}); err != nil {
			t.Errorf("timeout now: %v", err)
		}
		var ae raft.AppendEntriesResponse
		if err := p.a.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 9}, &ae); err != nil || !ae.Success {
			t.Errorf("append: %+v %v", ae, err)
		}
	})
}

func TestNothingIsShared(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		now := time.Now()
		sent := &raft.Log{Index: 1, Term: 1, Data: []byte("abc"), Extensions: []byte{}, AppendedAt: now}
		req := &raft.AppendEntriesRequest{Term: 1, Entries: []*raft.Log{sent}, RPCHeader: raft.RPCHeader{Addr: []byte("a")}}
		if err := p.a.AppendEntries("b", "b", req, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
		got := p.arrived()[0].(*raft.AppendEntriesRequest)
		sent.Data[0], req.Addr[0] = 'X', 'X'
		e := got.Entries[0]
		if e == sent || string(e.Data) != "abc" || string(got.Addr) != "a" || e.Extensions != nil || !e.AppendedAt.Equal(now) {
			t.Errorf("arrived %+v %+v", got, e)
		}
	})
}

func TestCutsLoseRequestsOrAnswers(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		n.CutOneWay("h1", "h2")
		if err := vote(p, 1); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("cut request: %v", err)
		}
		n.HealAll()
		n.CutOneWay("h2", "h1")
		began := time.Now()
		if err := vote(p, 2); !errors.Is(err, ErrNoAnswer) || time.Since(began) != time.Second {
			t.Errorf("cut answer: %v after %v", err, time.Since(began))
		}
		n.Heal("h1", "h2")
		if err := vote(p, 3); err != nil {
			t.Errorf("healed: %v", err)
		}
		if got := terms(p.arrived()); !slices.Equal(got, []uint64{2, 3}) {
			t.Errorf("requests %v arrived, want 2 and 3", got)
		}
	})
}

func TestACutLosesWhatIsUnderWay(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		n.SetDefault(Path{Delay: 100 * time.Millisecond})
		time.AfterFunc(50*time.Millisecond, func() { n.Cut("h1", "h2") })
		if err := vote(p, 1); !errors.Is(err, ErrNoAnswer) || len(p.arrived()) != 0 {
			t.Errorf("%v, %d arrived", err, len(p.arrived()))
		}
	})
}

func TestDuplicatesAreServedTwiceAndAnsweredOnce(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		n.SetPath("h1", "h2", Path{Duplicate: 1})
		if err := vote(p, 5); err != nil {
			t.Fatal(err)
		}
		got := p.arrived()
		if !slices.Equal(terms(got), []uint64{5, 5}) || got[0] == got[1] {
			t.Errorf("arrived %v", got)
		}
	})
}

func TestOrderIsKeptUnlessThePathReorders(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		for _, reorder := range []bool{false, true} {
			n.SetDefault(Path{Jitter: 100 * time.Millisecond, Reorder: reorder})
			before := len(p.arrived())
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() { _ = vote(p, uint64(i)) })
				synctest.Wait()
			}
			wg.Wait()
			if got := terms(p.arrived()[before:]); slices.IsSorted(got) == reorder {
				t.Errorf("reorder %v: arrived %v", reorder, got)
			}
		}
	})
}

func TestInterceptedMessagesAreHeldChangedDroppedAndRepeated(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		var gate Gate
		n.Intercept(func(m *Message) Fate {
			r, ok := m.Body.(*raft.RequestVoteRequest)
			switch {
			case !ok:
			case r.Term == 1:
				return Fate{Gate: &gate}
			case r.Term == 2:
				return Fate{Drop: true}
			case r.Term == 3:
				r.Term = 33
			case r.Term == 4:
				return Fate{Copies: 2, Delay: time.Minute}
			}
			return Fate{}
		})
		for term := range uint64(5) {
			_ = vote(p, term)
		}
		if got := terms(p.arrived()); !slices.Equal(got, []uint64{0, 33}) || gate.Held() != 1 {
			t.Errorf("arrived %v, held %d", got, gate.Held())
		}
		gate.Open()
		time.Sleep(time.Minute)
		if got := terms(p.arrived()); !slices.Equal(got, []uint64{0, 33, 1, 4, 4, 4}) {
			t.Errorf("in the end %v", got)
		}
	})
}

func TestACrashedHostIsSilentForEver(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		var gate Gate
		n.Intercept(func(m *Message) Fate {
			if m.Answer {
				return Fate{Gate: &gate}
			}
			return Fate{}
		})
		_ = vote(p, 1) // answered before the crash: may arrive
		n.Intercept(nil)
		n.Host("h2").Crash()
		gate.Open()
		if err := vote(p, 2); !errors.Is(err, ErrRefused) {
			t.Errorf("nobody is there: %v", err)
		}
		if err := p.b.RequestVote("a", "a", &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}); err == nil {
			t.Error("a dead endpoint got an answer")
		}
		next := n.Host("h2").Endpoint("g", "b")
		go func() { r := <-next.Consumer(); r.Respond(yes(r.Command), nil) }()
		if err := vote(p, 3); err != nil {
			t.Errorf("the next process: %v", err)
		}
	})
}

func TestAPausedHostAnswersLate(t *testing.T) {
	bubble(t, Config{Timeout: time.Minute}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		n.Host("h2").Pause()
		time.AfterFunc(10*time.Second, n.Host("h2").Resume)
		began := time.Now()
		if err := vote(p, 1); err != nil || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestGroupsOfTwoHostsShareTheirFate(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		first := newPair(t, n, yes)
		second := n.Host("h1").Endpoint("other", "a")
		peer := n.Host("h2").Endpoint("other", "b")
		go func() { r := <-peer.Consumer(); r.Respond(yes(r.Command), nil) }()
		n.Cut("h1", "h2")
		req, resp := &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}
		if vote(first, 1) == nil || second.RequestVote("b", "b", req, resp) == nil {
			t.Error("one of the groups got through")
		}
		n.HealAll()
		first.b.Stop()
		if err := second.RequestVote("b", "b", req, resp); err != nil {
			t.Errorf("the end of one group's endpoint ended the other's: %v", err)
		}
	})
}

func TestAMutedGroupAnswersNothing(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		p := newPair(t, n, yes)
		var speaks atomic.Bool
		p.b.AnswerTerm(func() (uint64, bool) { return 4, speaks.Load() })
		if err := vote(p, 1); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("vote of a muted group: %v", err)
		}
		if err := p.a.Confirm(t.Context(), 4, []raft.ServerID{"a", "b"}); err == nil {
			t.Error("a muted group confirmed")
		}
		speaks.Store(true)
		if err := vote(p, 2); err != nil {
			t.Error(err)
		}
	})
}

func TestConfirmNeedsAMajorityOfTheSameTerm(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		voters := []raft.ServerID{"a", "b", "c"}
		var third atomic.Uint64
		third.Store(4)
		var es []*Endpoint
		for i, v := range voters {
			e := n.Host(fmt.Sprint("h", i)).Endpoint("g", raft.ServerAddress(v))
			e.AnswerTerm(func() (uint64, bool) {
				if v == "c" {
					return third.Load(), true
				}
				return 4, true
			})
			es = append(es, e)
		}
		n.SetDefault(Path{Duplicate: 1, Jitter: time.Millisecond, Reorder: true})
		if err := es[0].Confirm(t.Context(), 4, voters); err != nil {
			t.Error(err)
		}
		n.Cut("h0", "h1")
		if err := es[0].Confirm(t.Context(), 4, voters); err != nil {
			t.Errorf("one of two is enough: %v", err)
		}
		third.Store(5)
		if err := es[0].Confirm(t.Context(), 4, voters); err == nil {
			t.Error("confirmed by nobody; one copy of a voter counted twice?")
		}
		if err := es[0].Confirm(t.Context(), 4, voters[:1]); err != nil {
			t.Errorf("a sole voter: %v", err)
		}
	})
}

// An answer that was sent before the question must not count: VerifyLeader's trap.
func TestConfirmIgnoresAnswersToEarlierQuestions(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		a, b := n.Host("h1").Endpoint("g", "a"), n.Host("h2").Endpoint("g", "b")
		var now atomic.Uint64
		now.Store(4)
		b.AnswerTerm(func() (uint64, bool) { return now.Load(), true })
		var gate Gate
		n.Intercept(func(m *Message) Fate {
			if m.Answer {
				return Fate{Gate: &gate}
			}
			return Fate{}
		})
		first := a.Confirm(t.Context(), 4, []raft.ServerID{"a", "b"})
		now.Store(5)
		n.Intercept(nil)
		time.AfterFunc(time.Millisecond, gate.Open)
		second := a.Confirm(t.Context(), 4, []raft.ServerID{"a", "b"})
		if first == nil || second == nil {
			t.Errorf("first %v, second %v", first, second)
		}
	})
}

func TestCallsAreAnsweredRefusedOrUnknown(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		client, broker := n.Host("client"), n.Host("broker")
		if _, err := client.Call(t.Context(), "broker", "x"); !errors.Is(err, ErrRefused) {
			t.Errorf("nobody serves: %v", err)
		}
		boom := errors.New("boom")
		var served atomic.Int32
		broker.Serve(func(_ context.Context, from string, request any) (any, error) {
			served.Add(1)
			if request == "fail" {
				return nil, boom
			}
			return fmt.Sprint(from, request), nil
		})
		if a, err := client.Call(t.Context(), "broker", "x"); a != "clientx" || err != nil {
			t.Errorf("answer %v %v", a, err)
		}
		if _, err := client.Call(t.Context(), "broker", "fail"); !errors.Is(err, boom) {
			t.Errorf("the handler's error: %v", err)
		}
		n.CutOneWay("broker", "client")
		if _, err := client.Call(t.Context(), "broker", "x"); !errors.Is(err, ErrNoAnswer) || served.Load() != 3 {
			t.Errorf("lost answer: %v, served %d", err, served.Load())
		}
		n.HealAll()
		n.SetPath("client", "broker", Path{Duplicate: 1})
		if _, err := client.Call(t.Context(), "broker", "x"); err != nil {
			t.Error(err)
		}
		if synctest.Wait(); served.Load() != 5 {
			t.Errorf("served %d, want a duplicate", served.Load())
		}
	})
}

func TestACallServedByACrashedHostIsUnknown(t *testing.T) {
	bubble(t, Config{Timeout: time.Second}, func(t *testing.T, n *Net) {
		n.Host("broker").Serve(func(ctx context.Context, _ string, _ any) (any, error) {
			<-ctx.Done()
			return "too late", nil
		})
		time.AfterFunc(time.Second, n.Host("broker").Crash)
		if a, err := n.Host("client").Call(t.Context(), "broker", "x"); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("%v %v", a, err)
		}
	})
}

type installed struct{ state []string }

func (i *installed) InstallSnapshot(req *raft.InstallSnapshotRequest, state io.Reader) (*raft.InstallSnapshotResponse, error) {
	b, err := io.ReadAll(state)
	i.state = append(i.state, string(b))
	return &raft.InstallSnapshotResponse{Term: req.Term, Success: true}, err
}
