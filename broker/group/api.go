package group

import (
	"time"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// TopicPartition names a partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// Assignment names partitions of one topic.
type Assignment struct {
	Topic      string
	Partitions []int32
}

// HeartbeatRequest joins a native group, keeps its member alive and says what it works on.
type HeartbeatRequest struct {
	Group      string
	MemberID   string // chosen by the member
	InstanceID string // of a static member
	// MemberEpoch is 0 to join, afterwards the newest one the member has learnt.
	MemberEpoch      int32
	ClientID         string
	ClientHost       string
	SessionTimeout   time.Duration // 0: the default, or unchanged
	RebalanceTimeout time.Duration // how long giving up partitions may take; 0 likewise
	// Topics and TopicRegex are the subscription. Both empty, after the join: unchanged.
	Topics     []string
	TopicRegex string // RE2; matches whole names; never internal topics
	// Owned is all that the member works on now. A partition that the
	// coordinator took away is given up once it is missing here under the newest epoch.
	// It is not looked at when joining: who joins works on nothing.
	Owned []Assignment
	// MaxWait holds the answer back while nothing changes; at most the heartbeat interval.
	MaxWait time.Duration
	Rack    string
}

// HeartbeatResponse tells a native member what to work on. It replaces
// whatever an answer with a lower epoch said; such late answers are to be ignored.
type HeartbeatResponse struct {
	MemberEpoch       int32
	Generation        int32
	HeartbeatInterval time.Duration
	Assigned          []Assignment // sorted
}

// EpochReleaseInstance in LeaveRequest.MemberEpoch says that a static member
// stops but will be back: its assignment is kept until its session ends, and
// its instance id is free at once.
const EpochReleaseInstance = -2

// LeaveRequest removes a native member.
type LeaveRequest struct {
	Group       string
	MemberID    string
	InstanceID  string
	MemberEpoch int32
}

// OffsetCommit is how far a group has read a partition: Offset is the next record to read.
type OffsetCommit struct {
	Topic       string
	Partition   int32
	Offset      record.Offset
	LeaderEpoch record.Epoch // -1: not known
	Metadata    string
	// TopicID, in a commit, is of the topic that was read; zero: not known. Where another topic has the
	// name by now the commit is refused.
	TopicID [16]byte
}

// CommitRequest commits offsets. A native member may commit only partitions
// that it holds. An outsider (no member id, and a negative epoch in the classic
// protocol) may commit only while the group has no members.
type CommitRequest struct {
	Group       string
	MemberID    string
	InstanceID  string // classic only
	MemberEpoch int32  // the generation in the classic protocol
	Classic     bool
	Offsets     []OffsetCommit
}

// PartitionError is what was wrong with one partition of a request.
type PartitionError struct {
	Topic     string
	Partition int32
	Err       error
}

// CommittedOffset is a committed offset; Offset -1 where nothing is committed.
type CommittedOffset struct {
	OffsetCommit
	CommittedAt int64 // ms; -1 where nothing is committed
}

// Listing is one line of List.
type Listing struct {
	Name         string
	State        string
	Protocol     string
	ProtocolType string // of a classic group: "consumer", "connect"
	Members      int
	Coordinator  int32
}

// Description is a group in full.
type Description struct {
	Name         string
	State        string
	Protocol     string
	ProtocolType string // classic
	ProtocolName string // classic: the chosen assignor
	Generation   int32
	Coordinator  int32
	Members      []MemberDescription
	Partitions   []PartitionDescription
}

// MemberDescription is a member of a group.
type MemberDescription struct {
	MemberID    string
	InstanceID  string
	ClientID    string
	Host        string
	MemberEpoch int32
	Assigned    []Assignment
	Owned       []Assignment // what its last heartbeat said; unknown after a change of leader until it speaks
	Topics      []string
	TopicRegex  string
	// Metadata and Assignment are the bytes of a classic member.
	Metadata, Assignment []byte
}

// PartitionDescription is how far a group is in one partition.
type PartitionDescription struct {
	CommittedOffset
	LogStart      record.Offset
	HighWatermark record.Offset
	Lag           int64         // records; -1 unknown
	LagTime       time.Duration // age of the first unread record; 0 when caught up, -1 unknown
	MemberID      string
	Err           error // log start, high watermark and lag are unknown
}

// ClassicProtocol is one assignor that a classic member offers.
type ClassicProtocol struct {
	Name     string
	Metadata []byte
}

// JoinRequest is Kafka's JoinGroup.
type JoinRequest struct {
	Group            string
	MemberID         string // empty at first
	InstanceID       string
	ClientID         string
	ClientHost       string
	SessionTimeout   time.Duration
	RebalanceTimeout time.Duration // 0: the session timeout (v0)
	ProtocolType     string
	Protocols        []ClassicProtocol // in order of preference
	// RequireMemberID (v4 on) answers a first join of a dynamic member with
	// MEMBER_ID_REQUIRED and a member id to join with.
	RequireMemberID bool
	// SkipAssignment (v9 on): the client understands JoinResponse.SkipAssignment.
	SkipAssignment bool
}

// JoinResponse is Kafka's answer. With an error, MemberID is still meaningful
// for MEMBER_ID_REQUIRED.
type JoinResponse struct {
	Generation     int32
	ProtocolType   string
	ProtocolName   string
	Leader         string
	SkipAssignment bool
	MemberID       string
	Members        []JoinMember // for the leader only
}

// JoinMember is a member in the list that the leader gets.
type JoinMember struct {
	MemberID   string
	InstanceID string
	Metadata   []byte
}

// SyncRequest is Kafka's SyncGroup. Assignments come from the leader.
type SyncRequest struct {
	Group        string
	MemberID     string
	InstanceID   string
	Generation   int32
	ProtocolType string // v5 on; empty: not checked
	ProtocolName string // v5 on; empty: not checked
	Assignments  map[string][]byte
}

// SyncResponse is Kafka's answer.
type SyncResponse struct {
	ProtocolType string
	ProtocolName string
	Assignment   []byte
}

// ClassicHeartbeatRequest is Kafka's Heartbeat.
type ClassicHeartbeatRequest struct {
	Group      string
	MemberID   string
	InstanceID string
	Generation int32
}

// MemberIdentity names a classic member that leaves, by id or by instance id.
type MemberIdentity struct {
	MemberID   string
	InstanceID string
}

// LeaveResult is what became of one leaving member.
type LeaveResult struct {
	MemberIdentity
	Err error
}
