package consumer

import (
	"github.com/tidemarkhq/tidemark/proto/record"
)

const none = record.Offset(-1)

// part is one assigned partition. Everything but the name is guarded by Consumer.mu.
//
//	done <= position <= fetchAt
//
// Records below position have been returned by Poll, those below done are known to be
// processed, and those from position to fetchAt are buffered.
type part struct {
	TopicPartition
	topicID [16]byte

	start    Position // to be resolved while position is none
	moved    uint64   // counts seeks, so that an answer to an older question is dropped
	position record.Offset
	epoch    record.Epoch  // of the record before position; -1 not known
	done     record.Offset // none: nothing to commit
	doneAt   record.Epoch
	returned bool          // stands in Consumer.returned
	stored   record.Offset // last committed by this consumer; none: nothing

	fetchAt    record.Offset
	fetchEpoch record.Epoch // of the record before fetchAt; -1 not known
	buffer     []chunk      // whole batches
	decoded    []Record     // of the batch before buffer, not returned yet
	current    chunk        // where decoded comes from

	hw       record.Offset
	logStart record.Offset

	link    *link  // whose stream delivers it; nil: none
	session uint64 // on that stream

	paused   bool
	halted   bool  // rests until Seek; err says why
	err      error // to be returned by Poll
	trouble  error // being worked around; nil: none
	attempts int
	delayed  bool
	unknown  int // answers that there is no such partition
	corrupt  int // batches in a row with a wrong checksum
}

// chunk is a batch that was received and not returned yet.
type chunk struct {
	raw   record.Raw
	link  *link // whose credit it holds
	bytes int64
}

func newPart(tp TopicPartition, start Position) *part {
	return &part{TopicPartition: tp, start: start, position: none, epoch: -1, done: none, doneAt: -1, stored: none, fetchAt: none, fetchEpoch: -1, hw: none, logStart: none}
}

// fetchable tells whether the partition belongs on a stream now.
func (t *part) fetchable() bool {
	return t.position != none && !t.paused && !t.halted && !t.delayed && t.link == nil
}

// drop forgets what was fetched ahead and gives its credit back.
func (t *part) dropLocked() {
	for _, ch := range append(t.buffer, t.current) {
		ch.release()
	}
	t.buffer, t.decoded, t.current = nil, nil, chunk{}
	t.fetchAt, t.fetchEpoch = t.position, t.epoch
}

// place moves the position; records that were fetched ahead are forgotten.
func (t *part) placeLocked(o record.Offset, e record.Epoch) {
	t.detachLocked()
	t.position, t.epoch = o, e
	t.dropLocked()
	t.halted, t.err, t.unknown, t.corrupt = false, nil, 0, 0
}

// detach takes the partition off its stream.
func (t *part) detachLocked() {
	if t.link != nil {
		t.link.removeLocked(t)
	}
}

func (ch *chunk) release() {
	if ch.link != nil {
		ch.link.consumedLocked(ch.bytes)
	}
	*ch = chunk{}
}

// buffered tells whether Poll could return something.
func (t *part) buffered() bool { return len(t.decoded) > 0 || len(t.buffer) > 0 }
