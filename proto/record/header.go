package record

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

// Where the fields of a batch's header lie. All are big-endian.
const (
	atBaseOffset      = 0  // int64, outside the CRC
	atLength          = 8  // int32, bytes from atLeaderEpoch to the end, outside the CRC
	atLeaderEpoch     = 12 // int32, outside the CRC
	atMagic           = 16 // int8, outside the CRC
	atCRC             = 17 // uint32, CRC32C of all that follows it
	atAttributes      = 21 // int16
	atLastOffsetDelta = 23 // int32
	atFirstTimestamp  = 27 // int64
	atMaxTimestamp    = 35 // int64
	atProducerID      = 43 // int64
	atProducerEpoch   = 51 // int16
	atBaseSequence    = 53 // int32
	atCount           = 57 // int32
)

// frameBytes is what the length field does not count: itself and the base offset.
const frameBytes = atLeaderEpoch

// magic is the only format version of batches that is accepted.
const magic = 2

// The bits of the attributes.
const (
	codecMask        = 0x07
	logAppendTimeBit = 1 << 3
	transactionalBit = 1 << 4
	controlBit       = 1 << 5
)

// None stands in the producer's fields of a batch that is not idempotent, and
// in the timestamps of one that has none.
const None = -1

// TimestampType says who set the timestamps of a batch.
type TimestampType int8

// The types, as they stand in the attributes.
const (
	CreateTime    TimestampType = 0 // set by the producer, one for each record
	LogAppendTime TimestampType = 1 // set by the broker, one for the whole batch
)

// String returns Kafka's name of the type.
func (t TimestampType) String() string {
	if t == LogAppendTime {
		return "LogAppendTime"
	}
	return "CreateTime"
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// BaseOffset is the offset of the first record.
func (b Raw) BaseOffset() Offset { return Offset(b.int64(atBaseOffset)) }

// LeaderEpoch is the epoch in which the batch was appended; what a client puts here means nothing.
func (b Raw) LeaderEpoch() Epoch { return Epoch(b.int32(atLeaderEpoch)) }

// Size is the length of the whole batch as its header tells it.
func (b Raw) Size() int { return int(b.int32(atLength)) + frameBytes }

// Magic is the version of the format.
func (b Raw) Magic() int8 { return int8(b[atMagic]) }

// CRC is the checksum that the header carries.
func (b Raw) CRC() uint32 { return binary.BigEndian.Uint32(b[atCRC:]) }

// ComputeCRC is the checksum that the header should carry.
func (b Raw) ComputeCRC() uint32 { return crc32.Checksum(b[atAttributes:], castagnoli) }

// Attributes are the codec, the timestamp type and the flags.
func (b Raw) Attributes() int16 { return b.int16(atAttributes) }

// Codec is how the records are compressed.
func (b Raw) Codec() Codec { return Codec(b.Attributes() & codecMask) }

// TimestampType says who set the timestamps.
func (b Raw) TimestampType() TimestampType {
	if b.Attributes()&logAppendTimeBit != 0 {
		return LogAppendTime
	}
	return CreateTime
}

// Transactional tells whether the batch is part of a transaction.
func (b Raw) Transactional() bool { return b.Attributes()&transactionalBit != 0 }

// Control tells whether the batch holds a marker, which readers skip.
func (b Raw) Control() bool { return b.Attributes()&controlBit != 0 }

// LastOffsetDelta is the last record's offset less the base offset.
func (b Raw) LastOffsetDelta() int32 { return b.int32(atLastOffsetDelta) }

// LastOffset is the offset of the last record.
func (b Raw) LastOffset() Offset { return b.BaseOffset() + Offset(b.LastOffsetDelta()) }

// EndOffset is one past the last record: where the next batch begins.
func (b Raw) EndOffset() Offset { return b.LastOffset() + 1 }

// FirstTimestamp is the first record's timestamp; the others are stored as differences from it.
func (b Raw) FirstTimestamp() int64 { return b.int64(atFirstTimestamp) }

// MaxTimestamp is the largest timestamp of the batch, or the time of its append.
func (b Raw) MaxTimestamp() int64 { return b.int64(atMaxTimestamp) }

// ProducerID is the id of an idempotent producer, or None.
func (b Raw) ProducerID() int64 { return b.int64(atProducerID) }

// ProducerEpoch is the epoch of an idempotent producer, or None.
func (b Raw) ProducerEpoch() int16 { return b.int16(atProducerEpoch) }

// BaseSequence is the producer's number of the first record, or None.
func (b Raw) BaseSequence() int32 { return b.int32(atBaseSequence) }

// LastSequence is the producer's number of the last record. Numbers begin
// again at 0 after the largest int32, within a batch too.
func (b Raw) LastSequence() int32 {
	if b.BaseSequence() == None {
		return None
	}
	return AddSequence(b.BaseSequence(), b.LastOffsetDelta())
}

// AddSequence advances a sequence number as Kafka does: 0 follows the largest int32.
func AddSequence(seq, by int32) int32 {
	if seq > math.MaxInt32-by {
		return by - (math.MaxInt32 - seq) - 1
	}
	return seq + by
}

// Count is the number of records.
func (b Raw) Count() int32 { return b.int32(atCount) }

// SetBaseOffset stamps the offset of the first record. The CRC does not cover it.
func (b Raw) SetBaseOffset(o Offset) { b.putInt64(atBaseOffset, int64(o)) }

// SetLeaderEpoch stamps the epoch of the append. The CRC does not cover it.
func (b Raw) SetLeaderEpoch(e Epoch) { b.putInt32(atLeaderEpoch, int32(e)) }

// SetLogAppendTime gives all records the time of their append, and computes the CRC anew.
func (b Raw) SetLogAppendTime(ms int64) {
	b.putInt16(atAttributes, b.Attributes()|logAppendTimeBit)
	b.putInt64(atMaxTimestamp, ms)
	b.stampCRC()
}

// SetProducer names the idempotent producer and its number of the first
// record, and computes the CRC anew.
func (b Raw) SetProducer(id int64, epoch int16, seq int32) {
	b.putInt64(atProducerID, id)
	b.putInt16(atProducerEpoch, epoch)
	b.putInt32(atBaseSequence, seq)
	b.stampCRC()
}

func (b Raw) stampCRC() { binary.BigEndian.PutUint32(b[atCRC:], b.ComputeCRC()) }

func (b Raw) int16(at int) int16 { return int16(binary.BigEndian.Uint16(b[at:])) }
func (b Raw) int32(at int) int32 { return int32(binary.BigEndian.Uint32(b[at:])) }
func (b Raw) int64(at int) int64 { return int64(binary.BigEndian.Uint64(b[at:])) }

func (b Raw) putInt16(at int, v int16) { binary.BigEndian.PutUint16(b[at:], uint16(v)) }
func (b Raw) putInt32(at int, v int32) { binary.BigEndian.PutUint32(b[at:], uint32(v)) }
func (b Raw) putInt64(at int, v int64) { binary.BigEndian.PutUint64(b[at:], uint64(v)) }
