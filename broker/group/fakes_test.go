package group

import (
	"context"
	"sync"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// memoryGroup is a state group that applies at once, and keeps its log.
type memoryGroup struct {
	mu      sync.Mutex
	sm      StateMachine
	log     [][]byte
	term    uint64
	leading bool
	hung    bool // accepts commands and never says what became of them
}

func (g *memoryGroup) Propose(ctx context.Context, cmd []byte) (any, error) {
	g.mu.Lock()
	hung := g.hung
	g.mu.Unlock()
	if hung {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.leading {
		return nil, errs.New(errs.NotLeaderOrFollower, "")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.log = append(g.log, cmd)
	return g.sm.Apply(uint64(len(g.log)), cmd), nil
}

func (g *memoryGroup) Read(context.Context) error { return nil }

func (g *memoryGroup) Leading() (uint64, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.term, g.leading
}

func (g *memoryGroup) failover() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.term++
}

func (g *memoryGroup) length() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.log)
}

type fakeTopics struct {
	mu  sync.Mutex
	all map[string]Topic
	ids byte
}

func (f *fakeTopics) set(name string, n int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.all[name]
	if !ok {
		f.ids++
		t = Topic{Name: name, ID: [16]byte{f.ids}, Internal: name[0] == '_'}
	}
	t.Partitions = n
	f.all[name] = t
}

func (f *fakeTopics) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, name)
}

func (f *fakeTopics) Topics() []Topic {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Topic
	for _, t := range f.all {
		all = append(all, t)
	}
	return all
}

func (f *fakeTopics) Topic(name string) (Topic, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.all[name]
	return t, ok
}

// fakePartitions hold records 5 to 100, all from 1999-12-31T23:59:50Z, ten seconds before synctest's clock starts.
type fakePartitions struct{}

func (fakePartitions) State(_ context.Context, topic string, partition int32, from record.Offset) (PartitionState, error) {
	st := PartitionState{LogStart: 5, HighWatermark: 100, UnreadTimestamp: -1}
	if from < st.HighWatermark {
		st.UnreadTimestamp = 946684790000
	}
	return st, nil
}

func (g *memoryGroup) depose() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leading = false
}

func (g *memoryGroup) hang() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hung = true
}
