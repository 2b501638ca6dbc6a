// Package bug names faults that are built into the product on purpose, so that
// its tests can show that they would find them.
//
// Without the build tag "bugs" On is false and the compiler removes what it guards:
// release binaries hold neither a bug nor its name.
package bug

// Bug is one fault. Each stands at one place of the product.
type Bug int

// The bugs. What each breaks stands where it is asked for.
const (
	_ Bug = iota

	// The log.
	NoSync              // an fsync of a segment is skipped
	NoDirSync           // the name of a new segment is not made durable
	RetryFsync          // a failed fsync is tried again, and counts
	TruncateCorrupt     // damage below the watermark is cut like a torn tail
	WatermarkNotLowered // a truncation leaves the watermark above the log
	ServeUnchecked      // what is read from the disk is not checked
	StatelogNoSync      // an fsync of a state group's log is skipped
	ReuseSalt           // recycled segments keep their salt

	// Votes.
	ForgetVote        // a vote is answered before it is durable
	TrustThePageCache // what is read at open is taken for durable
	SplitVote         // the term of a vote is written before its candidate

	// Partitions.
	AckBeforeCommit           // acks=all is answered when the leader has written
	AllIsMajority             // acks=all does not wait for the in-sync replicas
	ZombieRequest             // what waited in Raft's queue since an earlier term takes effect
	CommitIsTheEnd            // a start takes the whole log for committed
	EarlyLeader               // a leader serves before an entry of its term has committed
	ResetUnchecked            // a follower is reset by any offer, a late one too
	HighAboveCommit           // readers see what is not committed
	DedupeLeaderOnly          // followers do not learn the producers of what they store
	StateWithoutProducers     // sidecars and checkpoints lack the producers
	RetentionIgnoresHold      // segments go although a reader or a follower holds them
	RetentionBeforeCheckpoint // retention rests on a checkpoint that is not durable yet
	MetaSnapshot              // a follower is offered the newest state, not the log's begin
	SameIDAfterWipe           // a formed replica without its log starts anew
	LinearizeAlone            // a leader does not ask whether it still leads

	// The transport between replicas.
	FastHeartbeat // Raft's heartbeat handler runs beside its main loop
	LooseCommit   // the commit index leaves as Raft gives it
	DeafPipeline  // a pipeline goes on after a refusal

	// Consumer groups.
	CommitOffsetNoFence // any generation may commit offsets
)
