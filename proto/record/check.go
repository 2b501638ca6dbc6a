package record

import (
	"fmt"
	"io"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// minRecordBytes is the shortest record: its length, attributes, two deltas,
// null key, null value, no headers, one byte each.
const minRecordBytes = 7

// Next splits the first batch off concatenated batches. It trusts nothing but
// the length and the magic: what it returns may fail Check. It returns io.EOF
// when b is empty and io.ErrUnexpectedEOF when b ends within a batch, as fetch
// responses do.
func Next(b []byte) (batch Raw, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, io.EOF
	}
	if len(b) < HeaderBytes {
		// Batches of older formats are shorter than our header: without this,
		// one that is whole would be taken for a partial tail.
		if len(b) > atMagic && int8(b[atMagic]) != magic {
			return nil, b, wrongMagic(int8(b[atMagic]))
		}
		return nil, b, io.ErrUnexpectedEOF
	}
	h := Raw(b)
	if h.Magic() != magic {
		return nil, b, wrongMagic(h.Magic())
	}
	size := h.Size()
	if size < HeaderBytes {
		return nil, b, errs.Errorf(errs.CorruptMessage, "batch of %d bytes is shorter than its header of %d", size, HeaderBytes)
	}
	if size > len(b) {
		return nil, b, io.ErrUnexpectedEOF
	}
	return h[:size:size], b[size:], nil
}

// Check verifies that b is exactly one whole batch with a sane header and the
// right CRC. It does not decompress or decode the records. The Raw is b itself.
func Check(b []byte) (Raw, error) {
	h := Raw(b)
	switch {
	case len(b) <= atMagic:
		return nil, errs.Errorf(errs.CorruptMessage, "batch of %d bytes is shorter than its header of %d", len(b), HeaderBytes)
	case h.Magic() != magic:
		return nil, wrongMagic(h.Magic())
	case len(b) < HeaderBytes:
		return nil, errs.Errorf(errs.CorruptMessage, "batch of %d bytes is shorter than its header of %d", len(b), HeaderBytes)
	case h.Size() != len(b):
		return nil, errs.Errorf(errs.CorruptMessage, "batch says that it has %d bytes, but has %d; send one batch at a time", h.Size(), len(b))
	}
	// The CRC comes before the fields that it covers: a damaged field is
	// damage, not a producer's mistake.
	if got := h.ComputeCRC(); got != h.CRC() {
		return nil, errs.Errorf(errs.CorruptMessage, "batch has CRC %08x, but its bytes give %08x: it was damaged on the way", h.CRC(), got)
	}
	if err := h.checkFields(); err != nil {
		return nil, err
	}
	return h, nil
}

func (b Raw) checkFields() error {
	if c := b.Codec(); c > CodecZstd {
		return errs.Errorf(errs.UnsupportedCompressionType, "batch is compressed by codec %d, which does not exist", int8(c))
	}
	count, last := b.Count(), b.LastOffsetDelta()
	switch {
	case count < 1:
		return errs.Errorf(errs.InvalidRecord, "batch has %d records", count)
	case last != count-1:
		return errs.Errorf(errs.InvalidRecord, "batch has %d records, but its last offset delta is %d", count, last)
	case b.Codec() == CodecNone && int64(count)*minRecordBytes > int64(len(b)-HeaderBytes):
		return errs.Errorf(errs.InvalidRecord, "batch of %d bytes cannot hold %d records", len(b), count)
	case b.FirstTimestamp() < None || b.MaxTimestamp() < None:
		return errs.Errorf(errs.InvalidTimestamp, "batch has timestamps %d to %d", b.FirstTimestamp(), b.MaxTimestamp())
	}
	return b.checkProducer()
}

func (b Raw) checkProducer() error {
	id, epoch, seq := b.ProducerID(), b.ProducerEpoch(), b.BaseSequence()
	switch {
	case id < None || epoch < None || seq < None:
		return errs.Errorf(errs.InvalidRecord, "batch has producer id %d, epoch %d, sequence %d", id, epoch, seq)
	case id == None && b.Transactional():
		return errs.Errorf(errs.InvalidRecord, "transactional batch has no producer id")
	// Markers come from a transaction's coordinator and have no sequence.
	case id != None && (epoch == None || seq == None && !b.Control()):
		return errs.Errorf(errs.InvalidRecord, "batch has producer id %d without epoch or sequence (%d, %d)", id, epoch, seq)
	}
	return nil
}

func wrongMagic(m int8) error {
	return errs.Errorf(errs.UnsupportedForMessageFormat, "batch has magic %d: only record batches of version %d are accepted", m, magic)
}

// String describes the header for people.
func (b Raw) String() string {
	if len(b) < HeaderBytes {
		return fmt.Sprintf("batch(%d bytes)", len(b))
	}
	return fmt.Sprintf("batch(offsets %d-%d, epoch %d, %d records, %d bytes, %v)",
		b.BaseOffset(), b.LastOffset(), b.LeaderEpoch(), b.Count(), len(b), b.Codec())
}
