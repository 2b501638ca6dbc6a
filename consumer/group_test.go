package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/client/fakeserver"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func TestCommitAndGoOn(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 100)
	ctx := within(t)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithManualCommit())
	records, err := c.Poll(ctx, 30)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CommitRecords(ctx, records[:10]...); err != nil {
		t.Fatal(err)
	}
	if got := s.Committed("g", "t", 0); got != 10 {
		t.Errorf("committed %d, want 10", got)
	}
	if err := c.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Committed(ctx, t0); err != nil || got[t0] != record.Offset(len(records)) {
		t.Errorf("committed %v, %v; want %d", got, err, len(records))
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if m := s.Members("g"); len(m) != 0 {
		t.Errorf("members after Close: %v", m)
	}
	again := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"))
	expect(t, ctx, again, len(records), 100)
}

// What the caller committed by itself is more than what automatic commits know to be processed:
// the last of them, in Close, leaves it.
func TestAutoCommitNeverTakesACommitBack(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 10)
	ctx := within(t)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithAutoCommit(time.Hour))
	n := 0
	for n < 10 {
		records, err := c.Poll(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		n += len(records)
	}
	if err := c.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.Committed("g", "t", 0); got != 10 {
		t.Errorf("committed %d after Close, want 10", got)
	}
}

// Automatic commits cover what was returned before the last Poll call, no more.
func TestAutoCommitIsAtLeastOnce(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 100)
	ctx := within(t)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithAutoCommit(time.Millisecond))
	first, err := c.Poll(ctx, 20)
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Poll(ctx, 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.Committed("g", "t", 0); got != int64(len(first)) {
		t.Errorf("committed %d; %d records were processed, and %d may be under work", got, len(first), len(second))
	}
}

// member polls in a goroutine and notes what it gets and gives up.
type member struct {
	c *consumer.Consumer

	mu     sync.Mutex
	got    map[string]int
	events []string
	owned  map[consumer.TopicPartition]bool
	err    error
}

func join(t *testing.T, s *fakeserver.Server, ctx context.Context, opts ...consumer.Option) *member {
	m := &member{got: make(map[string]int), owned: make(map[consumer.TopicPartition]bool)}
	note := func(what string, own bool) func(context.Context, []consumer.TopicPartition) {
		return func(_ context.Context, tps []consumer.TopicPartition) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, tp := range tps {
				m.events = append(m.events, fmt.Sprint(what, " ", tp))
				if m.owned[tp] = own; !own {
					delete(m.owned, tp)
				}
			}
		}
	}
	opts = append(opts, consumer.WithGroup("g"), consumer.WithTopics("t"),
		consumer.OnAssigned(note("assigned", true)), consumer.OnRevoked(note("revoked", false)), consumer.OnLost(note("lost", false)))
	m.c = open(t, s, opts...)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	wg.Go(func() {
		for {
			records, err := m.c.Poll(ctx, 10)
			if ctx.Err() != nil || errors.Is(err, consumer.ErrClosed) {
				return
			}
			m.mu.Lock()
			if err != nil {
				m.err = err
			}
			for _, r := range records {
				if !m.owned[r.TopicPartition()] {
					m.err = fmt.Errorf("got offset %d of %s, which is not owned", r.Offset, r.TopicPartition())
				}
				m.got[fmt.Sprintf("%d/%d", r.Partition, r.Offset)]++
			}
			m.mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m
}

func (m *member) owns() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.owned)
}

func eventually(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestMembersShareAndHandOver(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 4})
	ctx := within(t)
	a := join(t, s, ctx)
	eventually(t, ctx, "the first member has all", func() bool { return a.owns() == 4 })
	b := join(t, s, ctx)
	eventually(t, ctx, "two members share", func() bool { return a.owns() == 2 && b.owns() == 2 })
	for p := range int32(4) {
		fill(s, "t", p, 0, 50)
	}
	all := func(ms ...*member) map[string]int {
		sum := make(map[string]int)
		for _, m := range ms {
			m.mu.Lock()
			for k, n := range m.got {
				sum[k] += n
			}
			m.mu.Unlock()
		}
		return sum
	}
	eventually(t, ctx, "all records came", func() bool { return len(all(a, b)) == 200 })
	for k, n := range all(a, b) {
		if n != 1 {
			t.Errorf("record %s came %d times in a quiet group", k, n)
		}
	}
	if err := b.c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the first member has all again", func() bool { return a.owns() == 4 })
	for p := range int32(4) {
		fill(s, "t", p, 50, 50)
	}
	eventually(t, ctx, "all later records came", func() bool { return len(all(a, b)) == 400 })
	for _, m := range []*member{a, b} {
		m.mu.Lock()
		if m.err != nil {
			t.Error(m.err)
		}
		m.mu.Unlock()
	}
}

func TestEvictedMemberLosesAndJoinsAgain(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	ctx := within(t)
	a := join(t, s, ctx)
	eventually(t, ctx, "the member has all", func() bool { return a.owns() == 2 })
	s.Evict("g", s.Members("g")[0])
	eventually(t, ctx, "it lost and got them again", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.Contains(a.events, "lost t/0") && len(a.owned) == 2
	})
}

// Others may have its partitions once the session is over, so the member must not read on beyond that,
// however long a heartbeat of its own would still wait.
func TestMemberLosesItsPartitionsWhenItsSessionEnds(t *testing.T) {
	const session = 1500 * time.Millisecond
	s := fakeserver.Start(t, map[string]int{"t": 1})
	ctx := within(t)
	a := join(t, s, ctx, consumer.WithSessionTimeout(session))
	eventually(t, ctx, "the member has all", func() bool { return a.owns() == 1 })
	eventually(t, ctx, "it has told so", func() bool { return s.Calls("Heartbeat") > 2 })
	last := s.Silence()
	eventually(t, ctx, "it gave up", func() bool { return a.owns() == 0 })
	if d := time.Since(last); d > session+session/6 {
		t.Errorf("a member without a coordinator read on for %v; its session is %v", d, session)
	}
}

func TestGroupSurvivesARestartOfTheBroker(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	ctx := within(t)
	a := join(t, s, ctx)
	eventually(t, ctx, "the member has all", func() bool { return a.owns() == 2 })
	s.Restart(t)
	fill(s, "t", 0, 0, 30)
	eventually(t, ctx, "records come", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.got) == 30 })
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		t.Error(a.err)
	}
}

func TestRevokedCallbackMayCommit(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	fill(s, "t", 1, 0, 10)
	ctx := within(t)
	var c *consumer.Consumer
	committed := make(chan error, 8)
	c = open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithManualCommit(),
		consumer.OnRevoked(func(ctx context.Context, _ []consumer.TopicPartition) { committed <- c.Commit(ctx) }))
	if _, err := c.Poll(ctx, 0); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	polling, stop := context.WithCancel(ctx)
	wg.Go(func() {
		for polling.Err() == nil {
			_, _ = c.Poll(polling, 0) // ends with the context
		}
	})
	b := join(t, s, ctx)
	eventually(t, ctx, "the second member has one", func() bool { return b.owns() == 1 })
	if err := <-committed; err != nil {
		t.Errorf("commit in the callback: %v", err)
	}
	if got := s.Committed("g", "t", 1); got != 10 {
		t.Errorf("committed %d, want 10", got)
	}
	stop()
	wg.Wait()
}

// A Poll that is called off while it gives a partition up still commits what was processed.
func TestRevocationCommitsAlthoughThePollIsCalledOff(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 2})
	fill(s, "t", 0, 0, 10)
	fill(s, "t", 1, 0, 10)
	ctx := within(t)
	polling, stop := context.WithCancel(ctx)
	defer stop()
	given := make(chan int32, 1)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithAutoCommit(time.Hour),
		consumer.OnRevoked(func(_ context.Context, revoked []consumer.TopicPartition) {
			given <- revoked[0].Partition
			stop()
		}))
	for n := 0; n < 20; {
		records, err := c.Poll(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		n += len(records)
	}
	b := join(t, s, ctx)
	for polling.Err() == nil {
		_, _ = c.Poll(polling, 0) // ends with the context
	}
	if p := <-given; s.Committed("g", "t", p) != 10 {
		t.Errorf("partition %d was given up with %d committed, want 10", p, s.Committed("g", "t", p))
	}
	eventually(t, ctx, "the second member has one", func() bool { return b.owns() == 1 })
}

func TestMemberThatDoesNotPollLeaves(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 10)
	ctx := within(t)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"), consumer.WithMaxPollInterval(30*time.Millisecond), consumer.WithSessionTimeout(60*time.Millisecond))
	if _, err := c.Poll(ctx, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "it left", func() bool { return len(s.Members("g")) == 0 })
	expect(t, ctx, c, 0, 10) // nothing was committed, so it begins again
}

func TestGroupErrorsThatDoNotPass(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	s.Fail("Heartbeat", fakeserver.Error(errs.GroupMaxSizeReached, "the group is full"))
	ctx := within(t)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithTopics("t"))
	if _, err := c.Poll(ctx, 0); errs.CodeOf(err) != errs.GroupMaxSizeReached {
		t.Errorf("got %v", err)
	}
}

func TestCommitsWithoutMembership(t *testing.T) {
	s := fakeserver.Start(t, map[string]int{"t": 1})
	fill(s, "t", 0, 0, 20)
	ctx := within(t)
	c := open(t, s, consumer.WithGroup("g"), consumer.WithManualCommit())
	assign(t, c, consumer.AtCommitted())
	expect(t, ctx, c, 0, 20)
	if err := c.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.Committed("g", "t", 0); got != 20 {
		t.Errorf("committed %d", got)
	}
	if err := c.CommitOffsets(ctx, map[consumer.TopicPartition]record.Offset{t0: 5}); err != nil {
		t.Fatal(err)
	}
	d := open(t, s, consumer.WithGroup("g"))
	assign(t, d, consumer.AtCommitted())
	expect(t, ctx, d, 5, 20)
	if err := open(t, s).Commit(ctx); errs.CodeOf(err) != errs.InvalidGroupID {
		t.Errorf("commit without a group: %v", err)
	}
}
