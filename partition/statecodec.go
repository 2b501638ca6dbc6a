package partition

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// The encoding of a state in start sidecars and checkpoints; the files around it
// carry the checksum. docs/format/partition.md draws it.
const (
	stateVersion    = 1
	stateFixedBytes = 1 + 3 + 6*8 + 4
	producerBytes   = 12
	pastBytes       = 24
	// maxConfigBytes bounds a Raft configuration: far more than any group has.
	maxConfigBytes = 1 << 20
)

var errShortState = errors.New("state is cut short")

// encode writes the state. Equal states give equal bytes: producers come in the order of
// their last batches, which is the same wherever the log is the same.
func (s *state) encode() []byte {
	n := stateFixedBytes + len(s.config) + 4 + len(s.producers.byID)*(producerBytes+2*pastBytes)
	b := make([]byte, 0, n)
	b = append(b, stateVersion, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(s.index))
	b = binary.BigEndian.AppendUint64(b, uint64(s.term))
	b = binary.BigEndian.AppendUint64(b, uint64(s.end))
	b = binary.BigEndian.AppendUint64(b, uint64(s.start))
	b = binary.BigEndian.AppendUint64(b, uint64(s.time))
	b = binary.BigEndian.AppendUint64(b, uint64(s.configIndex))
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.config)))
	b = append(b, s.config...)
	if bug.On(bug.StateWithoutProducers) {
		return binary.BigEndian.AppendUint32(b, 0)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.producers.byID)))
	for p := s.producers.oldest; p != nil; p = p.next {
		b = p.encode(b)
	}
	return b
}

func (p *producer) encode(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(p.id))
	b = binary.BigEndian.AppendUint16(b, uint16(p.epoch))
	b = append(b, byte(p.count), 0)
	for i := range int(p.count) {
		x := p.batch(i)
		b = binary.BigEndian.AppendUint32(b, uint32(x.first))
		b = binary.BigEndian.AppendUint32(b, uint32(x.last))
		b = binary.BigEndian.AppendUint64(b, uint64(x.base))
		b = binary.BigEndian.AppendUint64(b, uint64(x.time))
	}
	return b
}

// decodeState reads a state. No bytes at all are the state of an empty log.
func decodeState(b []byte, l limits) (*state, error) {
	s := newState(l)
	if len(b) == 0 {
		return s, nil
	}
	if len(b) < stateFixedBytes {
		return nil, errShortState
	}
	if b[0] != stateVersion || b[1]|b[2]|b[3] != 0 {
		return nil, fmt.Errorf("state version % x is not known; this build knows %d", b[:4], stateVersion)
	}
	s.index = log.Index(binary.BigEndian.Uint64(b[4:]))
	s.term = log.Term(binary.BigEndian.Uint64(b[12:]))
	s.end = record.Offset(binary.BigEndian.Uint64(b[20:]))
	s.start = record.Offset(binary.BigEndian.Uint64(b[28:]))
	s.time = int64(binary.BigEndian.Uint64(b[36:]))
	s.configIndex = log.Index(binary.BigEndian.Uint64(b[44:]))
	n := binary.BigEndian.Uint32(b[52:])
	b = b[stateFixedBytes:]
	if n > maxConfigBytes || int(n) > len(b) {
		return nil, errShortState
	}
	if n > 0 {
		s.configured(s.configIndex, b[:n])
	}
	return s, s.producers.decode(b[n:])
}

func (ps *producers) decode(b []byte) error {
	if len(b) < 4 {
		return errShortState
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	// Each producer takes more bytes than producerBytes: a wrong count ends in
	// errShortState, not in a large allocation.
	for range n {
		if len(b) < producerBytes {
			return errShortState
		}
		p := &producer{
			id:    int64(binary.BigEndian.Uint64(b)),
			epoch: int16(binary.BigEndian.Uint16(b[8:])),
		}
		count := int(b[10])
		if count < 1 || count > remembered || b[11] != 0 || ps.byID[p.id] != nil {
			return fmt.Errorf("producer %d with %d batches in state", p.id, count)
		}
		b = b[producerBytes:]
		if len(b) < count*pastBytes {
			return errShortState
		}
		for i := range count {
			x := b[i*pastBytes:]
			p.remember(past{
				first: int32(binary.BigEndian.Uint32(x)),
				last:  int32(binary.BigEndian.Uint32(x[4:])),
				base:  record.Offset(binary.BigEndian.Uint64(x[8:])),
				time:  int64(binary.BigEndian.Uint64(x[16:])),
			})
		}
		b = b[count*pastBytes:]
		ps.byID[p.id] = p
		ps.link(p)
	}
	if len(b) != 0 {
		return fmt.Errorf("%d bytes behind the state", len(b))
	}
	return nil
}
