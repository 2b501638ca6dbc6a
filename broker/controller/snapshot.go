package controller

import (
	"maps"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// snapshotVersion is the first byte of a snapshot.
const snapshotVersion = 1

// Snapshot implements raftgroup.StateMachine. Equal states have equal snapshots.
func (s *State) Snapshot() ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.encodeLocked(), nil
}

// Restore implements raftgroup.StateMachine. Nil is the
// empty state. A snapshot that cannot be read changes nothing.
func (s *State) Restore(b []byte) error {
	fresh := NewState()
	if b != nil {
		var err error
		if fresh, err = decodeState(b); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.cluster, s.feature, s.coordinators = fresh.cluster, fresh.feature, fresh.coordinators
	s.nextBroker, s.nextProducer = fresh.nextBroker, fresh.nextProducer
	s.brokers, s.topics, s.tombstones, s.configs = fresh.brokers, fresh.topics, fresh.tombstones, fresh.configs
	s.names, s.hosted = fresh.names, fresh.hosted
	s.mu.Unlock()
	s.watchers.notify()
	return nil
}

func (s *State) encodeLocked() []byte {
	w := &writer{}
	w.byte(snapshotVersion)
	w.id(s.cluster)
	w.int(int64(s.feature))
	w.int(int64(s.coordinators))
	w.int(int64(s.nextBroker))
	w.int(s.nextProducer)
	w.stringMap(s.configs)
	writeSorted(w, s.brokers, func(a, b int32) int { return int(a) - int(b) }, writeBroker)
	writeSorted(w, s.topics, compareUUID, writeTopic)
	writeSorted(w, s.tombstones, compareUUID, writeTombstone)
	return w.b
}

func decodeState(b []byte) (*State, error) {
	r := &reader{b: b}
	if v := r.byte(); v != snapshotVersion {
		return nil, errs.Errorf(errs.UnsupportedVersion, "metadata snapshot has version %d; this version reads %d", v, snapshotVersion)
	}
	s := NewState()
	s.cluster, s.feature, s.coordinators = r.id(), r.int32(), r.int32()
	s.nextBroker, s.nextProducer = r.int32(), r.int()
	s.configs = r.stringMap()
	for _, b := range readList(r, readBroker) {
		s.brokers[b.ID] = b
	}
	for _, t := range readList(r, readTopic) {
		s.topics[t.ID], s.names[t.Name] = t, t.ID
		s.host(t.Partitions, +1)
	}
	for _, t := range readList(r, readTombstone) {
		s.tombstones[t.Topic] = t
	}
	if err := r.end(); err != nil {
		return nil, errs.Errorf(errs.CorruptMessage, "metadata snapshot of %d bytes: %w", len(b), err)
	}
	if s.feature > FeatureLevel {
		return nil, errs.Errorf(errs.UnsupportedVersion, "the cluster is at feature level %d; this version understands up to %d: start a newer one", s.feature, FeatureLevel)
	}
	return s, nil
}

func compareUUID(a, b UUID) int { return slices.Compare(a[:], b[:]) }

func writeSorted[K comparable, V any](w *writer, m map[K]V, by func(a, b K) int, write func(*writer, V)) {
	w.count(len(m))
	for _, k := range slices.SortedFunc(maps.Keys(m), by) {
		write(w, m[k])
	}
}

func writeBroker(w *writer, b Broker) {
	w.int(int64(b.ID))
	w.id(b.UUID)
	w.uint(b.Incarnation)
	w.string(b.Rack)
	w.string(b.Version)
	w.string(b.GRPCAddress)
	w.string(b.KafkaAddress)
	w.int(int64(b.PartitionLimit))
}

func readBroker(r *reader) Broker {
	return Broker{r.int32(), r.id(), r.uint(), r.string(), r.string(), r.string(), r.string(), r.int32()}
}

func writeTopic(w *writer, t Topic) {
	w.id(t.ID)
	w.string(t.Name)
	w.bool(t.Internal)
	w.stringMap(t.Configs)
	writeList(w, t.Partitions, writeAssignment)
}

func readTopic(r *reader) Topic {
	t := Topic{ID: r.id(), Name: r.string(), Internal: r.bool(), Configs: r.stringMap(), Partitions: readList(r, readAssignment)}
	for i := range t.Partitions {
		t.Partitions[i].Partition = int32(i)
	}
	return t
}

func writeAssignment(w *writer, a Assignment) {
	w.int(int64(a.Leader))
	w.int(int64(a.LeaderEpoch))
	w.ints(a.ISR)
	writeList(w, a.Replicas, func(w *writer, r Replica) { w.int(int64(r.Broker)); w.id(r.UUID); w.byte(byte(r.State)) })
}

func readAssignment(r *reader) Assignment {
	return Assignment{Leader: r.int32(), LeaderEpoch: r.int32(), ISR: r.ints(), Replicas: readList(r, func(r *reader) Replica {
		return Replica{r.int32(), r.id(), ReplicaState(r.byte())}
	})}
}

func writeTombstone(w *writer, t Tombstone) {
	w.id(t.Topic)
	w.string(t.Name)
	w.ints(t.Brokers)
}

func readTombstone(r *reader) Tombstone { return Tombstone{r.id(), r.string(), r.ints()} }
