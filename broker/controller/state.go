package controller

import (
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// State is the state machine of the metadata group. It is safe for concurrent use.
type State struct {
	mu sync.RWMutex
	// All below is guarded by mu. Topics are replaced, never changed in place.
	cluster      UUID
	feature      int32
	coordinators int32
	nextBroker   int32
	nextProducer int64
	brokers      map[int32]Broker
	topics       map[UUID]Topic
	tombstones   map[UUID]Tombstone
	configs      map[string]string // defaults for all topics
	names        map[string]UUID   // derived from topics
	hosted       map[int32]int32   // derived: replicas per broker

	watchers watchers
}

// Tombstone is a deleted topic whose replicas are not all in the trash yet.
type Tombstone struct {
	Topic   UUID
	Name    string
	Brokers []int32 // that have not put theirs away
}

// NewState returns the state before the first command.
func NewState() *State {
	s := &State{}
	s.reset()
	return s
}

func (s *State) reset() {
	s.cluster, s.feature, s.coordinators = UUID{}, 0, 0
	s.nextBroker, s.nextProducer = 1, firstProducer
	s.brokers = map[int32]Broker{}
	s.topics = map[UUID]Topic{}
	s.tombstones = map[UUID]Tombstone{}
	s.configs = nil
	s.names = map[string]UUID{}
	s.hosted = map[int32]int32{}
}

// Apply implements raftgroup.StateMachine. The result is a value of the command, or an
// error with a code; an error means that nothing changed.
func (s *State) Apply(_ uint64, b []byte) any {
	result, err := s.apply(b)
	if err != nil {
		return err
	}
	s.watchers.notify()
	return result
}

func (s *State) apply(b []byte) (any, error) {
	c, level, err := decodeCommand(b)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if level > s.feature {
		return nil, errs.Errorf(errs.UnsupportedVersion,
			"metadata command of kind %d needs feature level %d; the cluster is at %d", c.kind(), level, s.feature)
	}
	return c.apply(s)
}

// Hash is equal where the states are.
func (s *State) Hash() [32]byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sha256.Sum256(s.encodeLocked())
}

// Notify sends on ch, without blocking, after each change, until cancel is called.
func (s *State) Notify(ch chan<- struct{}) (cancel func()) { return s.watchers.add(ch) }

// Cluster is zero before bootstrap.
func (s *State) Cluster() UUID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cluster
}

// Feature is the cluster's feature level; 0 before bootstrap.
func (s *State) Feature() int32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.feature
}

// Coordinators is the number of coord/N groups.
func (s *State) Coordinators() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return int(s.coordinators)
}

// Brokers lists the brokers by id.
func (s *State) Brokers() []Broker {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sorted(s.brokers, func(a, b Broker) int { return int(a.ID) - int(b.ID) })
}

// Topics lists the topics by name.
func (s *State) Topics() []Topic {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sorted(s.topics, func(a, b Topic) int { return strings.Compare(a.Name, b.Name) })
}

// Topic finds a topic by name.
func (s *State) Topic(name string) (Topic, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.topics[s.names[name]]
	return t, ok
}

// TopicByID finds a topic by id.
func (s *State) TopicByID(id UUID) (Topic, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t, ok := s.topics[id]
	return t, ok
}

// Tombstones lists the deleted topics that are not cleared away everywhere.
func (s *State) Tombstones() []Tombstone {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sorted(s.tombstones, func(a, b Tombstone) int { return strings.Compare(string(a.Topic[:]), string(b.Topic[:])) })
}

// Configs are the settings that hold for all topics which set nothing else. Read only.
func (s *State) Configs() map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.configs
}

// hostedBy counts the replicas on each broker.
func (s *State) hostedBy() map[int32]int32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.hosted)
}

func sorted[K comparable, V any](m map[K]V, by func(a, b V) int) []V {
	return slices.SortedFunc(maps.Values(m), by)
}

// watchers are channels that are told about changes.
type watchers struct {
	mu   sync.Mutex
	next int
	set  map[int]chan<- struct{} // guarded by mu
}

func (w *watchers) add(ch chan<- struct{}) (cancel func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		w.set = map[int]chan<- struct{}{}
	}
	id := w.next
	w.next++
	w.set[id] = ch
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.set, id)
	}
}

// notify wakes all watchers; one that has a wake-up waiting already sees this change with it.
func (w *watchers) notify() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ch := range w.set {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
