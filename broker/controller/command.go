package controller

import (
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// A command is
//
//	byte 0   version of the encoding (1)
//	byte 1   kind
//	2..      fields of the kind, canonical, nothing after them
//
// Kinds and the meaning of their fields never change. A new field means a new kind, and a
// new kind names the feature level from which on it may be applied, so that a
// broker of an older version never sees one that it cannot apply.
const commandVersion = 1

type kind byte

const (
	kindBootstrap kind = iota + 1
	kindRegisterBroker
	kindCreateTopic
	kindDeleteTopic
	kindAlterTopic
	kindAddPartitions
	kindFormed
	kindReport
	kindTrashed
	kindTakeProducers
	kindSetFeature
	kindAlterCluster
)

// FeatureLevel is the newest feature level that this version understands.
const FeatureLevel int32 = 1

// command is one change of the state. apply is called with the state's lock held.
type command interface {
	kind() kind
	write(w *writer)
	apply(s *State) (any, error)
}

// kinds tells how to read each kind and from which feature level on it applies.
var kinds = map[kind]struct {
	level int32
	read  func(r *reader) command
}{
	kindBootstrap:      {0, readBootstrap},
	kindRegisterBroker: {1, readRegisterBroker},
	kindCreateTopic:    {1, readCreateTopic},
	kindDeleteTopic:    {1, readDeleteTopic},
	kindAlterTopic:     {1, readAlterTopic},
	kindAddPartitions:  {1, readAddPartitions},
	kindFormed:         {1, readFormed},
	kindReport:         {1, readReport},
	kindTrashed:        {1, readTrashed},
	kindTakeProducers:  {1, readTakeProducers},
	kindSetFeature:     {1, readSetFeature},
	kindAlterCluster:   {1, readAlterCluster},
}

func encodeCommand(c command) []byte {
	w := &writer{b: make([]byte, 0, 64)}
	w.byte(commandVersion)
	w.byte(byte(c.kind()))
	c.write(w)
	return w.b
}

func decodeCommand(b []byte) (command, int32, error) {
	if len(b) < 2 {
		return nil, 0, errs.Errorf(errs.InvalidRequest, "metadata command: %w", errShort)
	}
	if b[0] != commandVersion {
		return nil, 0, errs.Errorf(errs.UnsupportedVersion, "metadata command has version %d; this broker understands %d", b[0], commandVersion)
	}
	k, ok := kinds[kind(b[1])]
	if !ok {
		return nil, 0, errs.Errorf(errs.UnsupportedVersion, "metadata command is of kind %d, which this broker does not understand", b[1])
	}
	r := &reader{b: b[2:]}
	c := k.read(r)
	if err := r.end(); err != nil {
		return nil, 0, errs.Errorf(errs.InvalidRequest, "metadata command of kind %d: %w", b[1], err)
	}
	return c, k.level, nil
}

type bootstrap struct {
	Cluster           UUID
	CoordinatorGroups int32
	Feature           int32
}

func (c bootstrap) kind() kind { return kindBootstrap }

func (c bootstrap) write(w *writer) {
	w.id(c.Cluster)
	w.int(int64(c.CoordinatorGroups))
	w.int(int64(c.Feature))
}

func readBootstrap(r *reader) command {
	return bootstrap{r.id(), r.int32(), r.int32()}
}

type registerBroker struct{ Self Self }

func (c registerBroker) kind() kind { return kindRegisterBroker }

func (c registerBroker) write(w *writer) {
	w.id(c.Self.UUID)
	w.string(c.Self.Rack)
	w.string(c.Self.Version)
	w.string(c.Self.GRPCAddress)
	w.string(c.Self.KafkaAddress)
	w.int(int64(c.Self.PartitionLimit))
}

func readRegisterBroker(r *reader) command {
	return registerBroker{Self{r.id(), r.string(), r.string(), r.string(), r.string(), r.int32()}}
}

// placement names the replicas of one partition.
type placement []Replica

func writePlacement(w *writer, p placement) {
	writeList(w, p, func(w *writer, r Replica) { w.int(int64(r.Broker)); w.id(r.UUID) })
}

func readPlacement(r *reader) placement {
	return readList(r, func(r *reader) Replica { return Replica{Broker: r.int32(), UUID: r.id()} })
}

type createTopic struct {
	ID         UUID
	Name       string
	Internal   bool
	Configs    map[string]string
	Partitions []placement
}

func (c createTopic) kind() kind { return kindCreateTopic }

func (c createTopic) write(w *writer) {
	w.id(c.ID)
	w.string(c.Name)
	w.bool(c.Internal)
	w.stringMap(c.Configs)
	writeList(w, c.Partitions, writePlacement)
}

func readCreateTopic(r *reader) command {
	return createTopic{r.id(), r.string(), r.bool(), r.stringMap(), readList(r, readPlacement)}
}

type deleteTopic struct{ ID UUID }

func (c deleteTopic) kind() kind        { return kindDeleteTopic }
func (c deleteTopic) write(w *writer)   { w.id(c.ID) }
func readDeleteTopic(r *reader) command { return deleteTopic{r.id()} }

type alterTopic struct {
	ID    UUID
	Set   map[string]string
	Unset []string
}

func (c alterTopic) kind() kind { return kindAlterTopic }

func (c alterTopic) write(w *writer) {
	w.id(c.ID)
	w.stringMap(c.Set)
	w.strings(c.Unset)
}

func readAlterTopic(r *reader) command { return alterTopic{r.id(), r.stringMap(), r.strings()} }

type addPartitions struct {
	ID    UUID
	First int32 // number of the first new partition: the count that the caller saw
	Added []placement
}

func (c addPartitions) kind() kind { return kindAddPartitions }

func (c addPartitions) write(w *writer) {
	w.id(c.ID)
	w.int(int64(c.First))
	writeList(w, c.Added, writePlacement)
}

func readAddPartitions(r *reader) command {
	return addPartitions{r.id(), r.int32(), readList(r, readPlacement)}
}

// FormedReplica says that a replica was bootstrapped durably.
type FormedReplica struct {
	Topic     UUID
	Partition int32
	Replica   UUID
}

type formed struct{ Replicas []FormedReplica }

func (c formed) kind() kind { return kindFormed }

func (c formed) write(w *writer) {
	writeList(w, c.Replicas, func(w *writer, f FormedReplica) { w.id(f.Topic); w.int(int64(f.Partition)); w.id(f.Replica) })
}

func readFormed(r *reader) command {
	return formed{readList(r, func(r *reader) FormedReplica { return FormedReplica{r.id(), r.int32(), r.id()} })}
}

// Leadership says who leads a partition and which replicas keep up.
type Leadership struct {
	Topic     UUID
	Partition int32
	Leader    int32 // broker id; -1: none
	Epoch     int32
	ISR       []int32
}

type report struct{ Partitions []Leadership }

func (c report) kind() kind { return kindReport }

func (c report) write(w *writer) {
	writeList(w, c.Partitions, func(w *writer, l Leadership) {
		w.id(l.Topic)
		w.int(int64(l.Partition))
		w.int(int64(l.Leader))
		w.int(int64(l.Epoch))
		w.ints(l.ISR)
	})
}

func readReport(r *reader) command {
	return report{readList(r, func(r *reader) Leadership {
		return Leadership{r.id(), r.int32(), r.int32(), r.int32(), r.ints()}
	})}
}

type trashed struct {
	Topic  UUID
	Broker int32
}

func (c trashed) kind() kind        { return kindTrashed }
func (c trashed) write(w *writer)   { w.id(c.Topic); w.int(int64(c.Broker)) }
func readTrashed(r *reader) command { return trashed{r.id(), r.int32()} }

type takeProducers struct {
	Broker int32
	Count  int32
}

func (c takeProducers) kind() kind        { return kindTakeProducers }
func (c takeProducers) write(w *writer)   { w.int(int64(c.Broker)); w.int(int64(c.Count)) }
func readTakeProducers(r *reader) command { return takeProducers{r.int32(), r.int32()} }

type setFeature struct{ Level int32 }

func (c setFeature) kind() kind        { return kindSetFeature }
func (c setFeature) write(w *writer)   { w.int(int64(c.Level)) }
func readSetFeature(r *reader) command { return setFeature{r.int32()} }

type alterCluster struct {
	Set   map[string]string
	Unset []string
}

func (c alterCluster) kind() kind        { return kindAlterCluster }
func (c alterCluster) write(w *writer)   { w.stringMap(c.Set); w.strings(c.Unset) }
func readAlterCluster(r *reader) command { return alterCluster{r.stringMap(), r.strings()} }
