// Package consumer reads records from Tidemark.
//
// A Consumer reads partitions that it was told (Assign), or that its group gives
// it (WithGroup and WithTopics). It holds to this:
//
//   - Within a partition Poll returns each committed record once, in offset order,
//     without gaps, over reconnects and changes of leader too.
//   - Automatic commits cover only records that an earlier Poll returned, never
//     those that the caller may still be working on: at least once.
//   - What is fetched ahead is bounded in bytes.
//   - Rebalance callbacks run inside Poll and Close, so they never run while
//     the caller processes records.
//
// A Consumer is safe for concurrent use, but Poll is meant for one goroutine.
package consumer

import (
	"fmt"
	"time"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// ErrClosed: the consumer is closed.
var ErrClosed = errs.New(errs.InvalidRequest, "the consumer is closed")

// TopicPartition names one partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// String is topic/partition.
func (tp TopicPartition) String() string { return fmt.Sprintf("%s/%d", tp.Topic, tp.Partition) }

// Record is one record that was read. Its slices belong to the caller.
type Record struct {
	Topic     string
	Partition int32
	Offset    record.Offset
	Epoch     record.Epoch // leader epoch under which it was appended
	Timestamp time.Time
	// AppendTime: Timestamp is the broker's, not the producer's.
	AppendTime bool
	Key        []byte // nil: no key
	Value      []byte // nil: a tombstone
	Headers    []record.Header

	topicID [16]byte // of the topic that it comes from; by now another may have its name
}

// TopicPartition names the partition of the record.
func (r *Record) TopicPartition() TopicPartition { return TopicPartition{r.Topic, r.Partition} }

// PartitionError is an error of one partition. Poll returns it; the partition
// rests until Seek or a new assignment starts it again.
type PartitionError struct {
	TopicPartition
	Err error
}

// Error implements error.
func (e *PartitionError) Error() string { return fmt.Sprintf("%s: %v", e.TopicPartition, e.Err) }

// Unwrap gives the cause.
func (e *PartitionError) Unwrap() error { return e.Err }

// OutOfRangeError says that a position does not exist. Its code is errs.OffsetOutOfRange.
type OutOfRangeError struct {
	Offset     record.Offset // asked for
	Start, End record.Offset // what there is; -1 where unknown
	err        error
}

// Error implements error.
func (e *OutOfRangeError) Error() string {
	return fmt.Sprintf("offset %d is out of range: the partition holds [%d,%d); seek, or set a reset policy", e.Offset, e.Start, e.End)
}

// Unwrap gives the broker's error.
func (e *OutOfRangeError) Unwrap() error { return e.err }

// TruncatedError says that records which were read are not part of the log any
// more: from Diverged on, the partition's history is another one. Its code is errs.TokenTruncated.
type TruncatedError struct {
	Offset   record.Offset // where the consumer was
	Diverged record.Offset // where the histories part
	err      error
}

// Error implements error.
func (e *TruncatedError) Error() string {
	return fmt.Sprintf("the log was truncated at offset %d, below this consumer's position %d; records from there on were lost or replaced; seek to go on", e.Diverged, e.Offset)
}

// Unwrap gives the broker's error.
func (e *TruncatedError) Unwrap() error { return e.err }

type positionKind int

const (
	kindStart positionKind = iota
	kindEnd
	kindOffset
	kindTime
	kindAfterStart
	kindBeforeEnd
	kindCommitted
)

// Position is a place in a partition to read from. The zero Position is AtStart.
type Position struct {
	kind positionKind
	n    int64
}

// AtStart is the oldest record that the partition holds.
func AtStart() Position { return Position{} }

// AtEnd is after the newest committed record.
func AtEnd() Position { return Position{kind: kindEnd} }

// AtOffset is the record with offset o.
func AtOffset(o record.Offset) Position { return Position{kindOffset, int64(o)} }

// AtTime is the first record whose timestamp is t or later; the end where there is none.
func AtTime(t time.Time) Position { return Position{kindTime, t.UnixMilli()} }

// AfterStart is n records after the start, but not beyond the end.
func AfterStart(n int64) Position { return Position{kindAfterStart, n} }

// BeforeEnd is n records before the end, but not before the start.
func BeforeEnd(n int64) Position { return Position{kindBeforeEnd, n} }

// AtCommitted is what the group committed; where there is nothing, the position of WithStart.
func AtCommitted() Position { return Position{kind: kindCommitted} }

// Lag is how far a consumer is behind in one partition.
type Lag struct {
	Position      record.Offset // next record that Poll returns
	HighWatermark record.Offset // as of the last response; -1 before the first
	Records       int64         // high watermark - position; -1 before the first response
}
