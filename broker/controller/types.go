// Package controller keeps the cluster's metadata: brokers, topics, who holds
// which replica, settings, producer ids.
//
// All of it is the state of one Raft group, "meta". State is its state machine: a
// pure function of the commands, the same on every broker, without clock, randomness or
// settings of this process; what a command needs of those it carries. A command that the
// state machine does not understand changes nothing and answers with an error.
// Ids of brokers and producers are never handed out twice. Values that
// left State are never changed again, so readers need no lock for them.
package controller

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// UUID identifies clusters, brokers, topics and replicas.
type UUID [16]byte

// NewUUID returns a random UUID (version 4).
func NewUUID() UUID {
	var u UUID
	rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// String is the usual form with dashes.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// IsZero tells whether u was never set.
func (u UUID) IsZero() bool { return u == UUID{} }

// ParseUUID reads what String wrote.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	b, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		return u, fmt.Errorf("%q is not a UUID: %w", s, err)
	}
	copy(u[:], b)
	return u, nil
}

// Topic is a topic as the metadata knows it. Its slices and maps are shared: read only.
type Topic struct {
	Name       string
	ID         UUID
	Internal   bool
	Partitions []Assignment
	Configs    map[string]string // only those that were set for the topic
}

// ReplicationFactor is the number of replicas of the first partition.
func (t Topic) ReplicationFactor() int {
	if len(t.Partitions) == 0 {
		return 0
	}
	return len(t.Partitions[0].Replicas)
}

// Assignment says where one partition lives.
type Assignment struct {
	Partition   int32
	Leader      int32 // broker id; -1 while none is known
	LeaderEpoch int32 // -1 while none is known
	Replicas    []Replica
	ISR         []int32 // broker ids
}

// ReplicaState tells how far a replica has come.
type ReplicaState uint8

const (
	// ReplicaNew may be bootstrapped.
	ReplicaNew ReplicaState = iota
	// ReplicaFormed was bootstrapped, durably. One that is missing on its
	// broker is lost and must not be made again under the same UUID.
	ReplicaFormed
)

// Replica is one replica of a partition.
type Replica struct {
	Broker int32
	UUID   UUID // new for each creation of a replica
	State  ReplicaState
}

// Broker is one broker of the cluster.
type Broker struct {
	ID           int32
	UUID         UUID
	Incarnation  uint64 // grows with every start
	Rack         string
	Version      string
	GRPCAddress  string
	KafkaAddress string
	// PartitionLimit is how many replicas the broker hosts at most.
	PartitionLimit int32
}

// ConfigEntry is one setting with where it comes from.
type ConfigEntry struct {
	Name    string
	Value   string
	Default string
	Origin  string // default, cluster, topic
	Doc     string
}
