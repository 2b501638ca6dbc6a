package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// The envelope of a Raft command of a data group; docs/format/partition.md draws it.
const (
	metaBytes   = HeadRoom
	metaVersion = 1
	claimBytes  = 20 // what is kept of a batch that was not accepted
)

// kind is what a command asks for.
type kind uint8

const (
	kindBatch kind = 1 // append the batch behind the meta bytes
	kindTrim  kind = 2 // advance the log start to meta.expect
)

// The verdicts of this package. Void is the verdict of a command that no
// leader has stored yet; it never reaches a disk.
const (
	duplicate log.Verdict = 16 // was appended before, at meta.offset
	refused   log.Verdict = 17 // not appended, because of meta.code; the log ended at meta.offset
	withdrawn log.Verdict = 18 // its proposer had given it up before it was stored
	trimmed   log.Verdict = 19 // the log starts at meta.expect, once this is committed
)

// meta is the fixed part of the envelope.
type meta struct {
	kind        kind
	verdict     log.Verdict
	conditional bool
	code        errs.Code     // refused: why
	expect      record.Offset // conditional: where the log must end; trim: the new log start
	offset      record.Offset // accepted: base offset; duplicate: the original one; else: the log end
	// time is the log time: the leader's clock (see logClock) in ms when it stored the
	// entry, never below that of the entry before. While the verdict is Void the field
	// is the proposal's number, known to its proposer only.
	time int64
}

const flagConditional = 1

func (m meta) put(b []byte) {
	_ = b[metaBytes-1]
	b[0] = metaVersion
	b[1] = byte(m.kind)
	b[2] = byte(m.verdict)
	b[3] = 0
	if m.conditional {
		b[3] = flagConditional
	}
	binary.BigEndian.PutUint16(b[4:], uint16(m.code))
	binary.BigEndian.PutUint16(b[6:], 0)
	binary.BigEndian.PutUint64(b[8:], uint64(m.expect))
	binary.BigEndian.PutUint64(b[16:], uint64(m.offset))
	binary.BigEndian.PutUint64(b[24:], uint64(m.time))
}

// putProposal numbers a command that was made before its number was known.
func putProposal(b []byte, number uint64) { binary.BigEndian.PutUint64(b[24:], number) }

// parseMeta reads the fixed part. What it accepts is exactly what put writes:
// replicas compare these bytes, so there is one encoding of each meta.
func parseMeta(b []byte) (meta, error) {
	if len(b) < metaBytes {
		return meta{}, fmt.Errorf("envelope has %d bytes, its meta alone needs %d", len(b), metaBytes)
	}
	if b[0] != metaVersion {
		return meta{}, fmt.Errorf("envelope version %d is not known; this build knows %d", b[0], metaVersion)
	}
	if b[3]&^flagConditional != 0 || b[6] != 0 || b[7] != 0 {
		return meta{}, fmt.Errorf("envelope has unknown flags % x", b[3:8])
	}
	m := meta{
		kind:        kind(b[1]),
		verdict:     log.Verdict(b[2]),
		conditional: b[3]&flagConditional != 0,
		code:        errs.Code(binary.BigEndian.Uint16(b[4:])),
		expect:      record.Offset(binary.BigEndian.Uint64(b[8:])),
		offset:      record.Offset(binary.BigEndian.Uint64(b[16:])),
		time:        int64(binary.BigEndian.Uint64(b[24:])),
	}
	return m, m.check(len(b) - metaBytes)
}

// check tells whether a meta can stand before a payload of so many bytes.
func (m meta) check(payload int) error {
	switch {
	case m.kind != kindBatch && m.kind != kindTrim:
		return fmt.Errorf("envelope kind %d is not known", m.kind)
	case m.kind == kindTrim && (m.conditional || payload != 0 || (m.verdict != log.Void && m.verdict != trimmed && m.verdict != withdrawn)):
		return fmt.Errorf("trim with verdict %d, conditional %t and %d bytes of payload", m.verdict, m.conditional, payload)
	case m.code != errs.None && m.verdict != refused:
		return fmt.Errorf("verdict %d with error code %d", m.verdict, m.code)
	case m.verdict == trimmed || m.verdict == withdrawn || m.kind == kindTrim:
		return nil
	}
	switch m.verdict {
	case log.Void, log.Accepted:
		if payload < record.HeaderBytes {
			return fmt.Errorf("envelope holds %d bytes, a batch needs %d", payload, record.HeaderBytes)
		}
	case duplicate, refused:
		if payload != claimBytes {
			return fmt.Errorf("verdict %d with %d bytes of payload, want %d", m.verdict, payload, claimBytes)
		}
	default:
		return fmt.Errorf("verdict %d is not known", m.verdict)
	}
	return nil
}

// claim is what a batch says about its place in its producer's sequence.
type claim struct {
	producer    int64 // -1: not idempotent
	first, last int32 // sequences
	epoch       int16
}

func claimOf(b record.Raw) claim {
	c := claim{producer: b.ProducerID(), epoch: b.ProducerEpoch(), first: b.BaseSequence()}
	c.last = c.first
	if c.producer >= 0 {
		c.last = b.LastSequence()
	}
	return c
}

func (c claim) put(b []byte) {
	binary.BigEndian.PutUint64(b, uint64(c.producer))
	binary.BigEndian.PutUint32(b[8:], uint32(c.first))
	binary.BigEndian.PutUint32(b[12:], uint32(c.last))
	binary.BigEndian.PutUint16(b[16:], uint16(c.epoch))
	binary.BigEndian.PutUint16(b[18:], 0)
}

func readClaim(b []byte) claim {
	return claim{
		producer: int64(binary.BigEndian.Uint64(b)),
		first:    int32(binary.BigEndian.Uint32(b[8:])),
		last:     int32(binary.BigEndian.Uint32(b[12:])),
		epoch:    int16(binary.BigEndian.Uint16(b[16:])),
	}
}
