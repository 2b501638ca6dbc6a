package record

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// BuilderConfig says how batches are built.
type BuilderConfig struct {
	// Codec compresses the records, unless that makes them larger.
	Codec Codec
	// Level is the codec's own; 0 is its default.
	Level int
	// CapacityBytes is how much memory a batch gets at first.
	CapacityBytes int
}

// Builder builds record batches, one after the other. It is not safe for
// concurrent use.
type Builder struct {
	cfg   BuilderConfig
	buf   []byte // the header's room, then the encoded records
	count int32
	first int64
	max   int64
	full  bool // a record did not fit into what the format can express
}

// NewBuilder returns a builder of an empty batch.
func NewBuilder(cfg BuilderConfig) *Builder {
	cfg.CapacityBytes = max(cfg.CapacityBytes, 4*HeaderBytes)
	b := &Builder{cfg: cfg}
	b.Reset()
	return b
}

// Reset begins an empty batch. It must be called between Build and the next Append.
func (b *Builder) Reset() {
	if b.buf == nil {
		b.buf = make([]byte, 0, b.cfg.CapacityBytes)
	}
	b.buf = append(b.buf[:0], make([]byte, HeaderBytes)...)
	b.count, b.first, b.max, b.full = 0, None, None, false
}

// Append adds a record. Its offset is not used: records are numbered as they
// come. Its bytes are copied.
func (b *Builder) Append(r Record) {
	if b.count == 0 {
		b.first, b.max = r.Timestamp, r.Timestamp
	}
	body := b.bodyBytes(r)
	if int64(len(b.buf))+int64(body)+binary.MaxVarintLen64 > math.MaxInt32 || b.count == math.MaxInt32 {
		b.full = true
		return
	}
	b.max = max(b.max, r.Timestamp)
	b.buf = binary.AppendVarint(b.buf, int64(body))
	b.buf = append(b.buf, 0)
	b.buf = binary.AppendVarint(b.buf, r.Timestamp-b.first)
	b.buf = binary.AppendVarint(b.buf, int64(b.count))
	b.buf = appendBytes(b.buf, r.Key)
	b.buf = appendBytes(b.buf, r.Value)
	b.buf = binary.AppendVarint(b.buf, int64(len(r.Headers)))
	for _, h := range r.Headers {
		b.buf = binary.AppendVarint(b.buf, int64(len(h.Key)))
		b.buf = append(b.buf, h.Key...)
		b.buf = appendBytes(b.buf, h.Value)
	}
	b.count++
}

// Count is the number of records so far.
func (b *Builder) Count() int { return int(b.count) }

// SizeEstimate is the size of the batch so far without compression: Build
// returns at most so many bytes.
func (b *Builder) SizeEstimate() int { return len(b.buf) }

// SizeWith is what SizeEstimate would be with one more record.
func (b *Builder) SizeWith(r Record) int {
	n := b.bodyBytes(r)
	return len(b.buf) + varintBytes(int64(n)) + n
}

// Build returns the batch. The memory is the caller's: the builder forgets it.
// Base offset and leader epoch are for the broker to stamp; an idempotent
// producer stamps itself by SetProducer.
func (b *Builder) Build() (Raw, error) {
	if b.count == 0 {
		return nil, errs.Errorf(errs.InvalidRecord, "build batch: it has no records")
	}
	if b.full {
		return nil, errs.Errorf(errs.RecordListTooLarge, "build batch: more than 2 GiB of records in one batch; send smaller batches")
	}
	out, err := b.compressed()
	if err != nil {
		return nil, err
	}
	out.putInt32(atLength, int32(len(out)-frameBytes))
	out.putInt32(atLeaderEpoch, None)
	out[atMagic] = magic
	out.putInt32(atLastOffsetDelta, b.count-1)
	out.putInt64(atFirstTimestamp, b.first)
	out.putInt64(atMaxTimestamp, b.max)
	out.putInt32(atCount, b.count)
	out.SetProducer(None, None, None)
	return out, nil
}

// compressed returns the batch with its codec set and the rest of its header blank.
func (b *Builder) compressed() (Raw, error) {
	if b.cfg.Codec != CodecNone {
		src := b.buf[HeaderBytes:]
		dst := make([]byte, HeaderBytes, HeaderBytes+len(src)/2)
		dst, err := appendCompressed(dst, src, b.cfg.Codec, b.cfg.Level)
		if err != nil {
			return nil, errs.Errorf(errs.UnknownServerError, "build batch: %w", err)
		}
		if len(dst) < len(b.buf) {
			out := Raw(dst)
			out.putInt16(atAttributes, int16(b.cfg.Codec))
			return out, nil
		}
	}
	out := Raw(b.buf)
	b.buf = nil
	return out, nil
}

// bodyBytes is the size of a record after its length.
func (b *Builder) bodyBytes(r Record) int {
	first := b.first
	if b.count == 0 {
		first = r.Timestamp
	}
	n := 1 + varintBytes(r.Timestamp-first) + varintBytes(int64(b.count)) + bytesBytes(r.Key) + bytesBytes(r.Value)
	n += varintBytes(int64(len(r.Headers)))
	for _, h := range r.Headers {
		n += varintBytes(int64(len(h.Key))) + len(h.Key) + bytesBytes(h.Value)
	}
	return n
}

func appendBytes(dst, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(dst, -1)
	}
	return append(binary.AppendVarint(dst, int64(len(v))), v...)
}

func bytesBytes(v []byte) int {
	if v == nil {
		return 1
	}
	return varintBytes(int64(len(v))) + len(v)
}

// varintBytes is the size of a number in zigzag encoding, seven bits to a byte.
func varintBytes(v int64) int {
	return (bits.Len64(uint64(v<<1)^uint64(v>>63)|1) + 6) / 7
}
