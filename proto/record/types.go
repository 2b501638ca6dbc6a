// Package record is the Kafka record batch, version 2, byte for byte: the unit
// that is appended, replicated, stored, and served.
//
// A batch is handled as bytes wherever possible: Raw reads and stamps its
// header in place. The base offset and the leader epoch lie outside the
// batch's CRC, so a broker can stamp them without touching the rest.
package record

// Offset is the position of a record in one partition.
type Offset int64

// Epoch is a leader epoch: the Raft term in which a batch was appended.
type Epoch int32

// HeaderBytes is the length of a batch before its first record.
const HeaderBytes = 61

// Record is one record of a batch. Nil and empty are different: a nil Value is
// a tombstone, a nil Key is no key.
type Record struct {
	Offset    Offset
	Timestamp int64 // milliseconds since 1970
	Key       []byte
	Value     []byte
	Headers   []Header
}

// Header is one header of a record. A nil Value is null.
type Header struct {
	Key   string
	Value []byte
}

// Raw is one encoded batch, whole. Its methods read and write the header in
// place; they panic on slices shorter than HeaderBytes, so Raws come from Check
// or Next.
type Raw []byte
