package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// headerStructBytes is what one header takes once it is decoded; on the wire it takes two bytes or more.
const headerStructBytes = 40

// Records decodes the records of a batch that passed Check, in order. At most
// limit bytes are decompressed (0: DefaultDecompressLimit). An error ends the
// iteration, and says that the producer built the batch wrongly.
//
// Keys and values share the batch's memory, or one buffer that is not used
// again: they may be kept, and keep that memory alive.
func (b Raw) Records(limit int) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if limit <= 0 {
			limit = DefaultDecompressLimit
		}
		body, err := decompress(b[HeaderBytes:], b.Codec(), limit)
		if err != nil {
			yield(Record{}, err)
			return
		}
		d := decoder{batch: b, rest: body, limit: limit, lastDelta: -1}
		for range b.Count() {
			r, err := d.next()
			if err != nil {
				yield(Record{}, err)
				return
			}
			if !yield(r, nil) {
				return
			}
		}
		if len(d.rest) > 0 {
			yield(Record{}, errs.Errorf(errs.InvalidRecord, "batch of %d records has %d bytes after the last", b.Count(), len(d.rest)))
		}
	}
}

// decoder walks the records of one batch.
type decoder struct {
	batch     Raw
	rest      []byte
	limit     int
	lastDelta int64
}

var (
	errShort  = errors.New("ends within a field")
	errVarint = errors.New("holds a number that is too long")
	errLength = errors.New("holds a length that cannot be")
)

func (d *decoder) next() (Record, error) {
	r, delta, err := d.decode()
	if err == nil && (delta <= d.lastDelta || delta > int64(d.batch.LastOffsetDelta())) {
		err = fmt.Errorf("has offset delta %d after %d in a batch that ends at %d", delta, d.lastDelta, d.batch.LastOffsetDelta())
	}
	if err != nil {
		return Record{}, errs.Errorf(errs.InvalidRecord, "record after delta %d: %w", d.lastDelta, err)
	}
	d.lastDelta = delta
	return r, nil
}

func (d *decoder) decode() (r Record, offsetDelta int64, err error) {
	n, err := length(&d.rest, 1)
	if err != nil || n < 0 {
		return r, 0, cmpErr(err, errLength)
	}
	f := d.rest[:n:n]
	d.rest = d.rest[n:]
	if len(f) == 0 {
		return r, 0, errShort
	}
	f = f[1:] // attributes: none are defined
	timestampDelta, err := varint(&f)
	if err != nil {
		return r, 0, err
	}
	if offsetDelta, err = varint(&f); err != nil {
		return r, 0, err
	}
	if r.Key, err = bytesOrNil(&f); err != nil {
		return r, 0, err
	}
	if r.Value, err = bytesOrNil(&f); err != nil {
		return r, 0, err
	}
	if r.Headers, err = d.headers(&f); err != nil {
		return r, 0, err
	}
	if len(f) > 0 {
		return r, 0, fmt.Errorf("has %d bytes after its last field", len(f))
	}
	r.Offset = d.batch.BaseOffset() + Offset(offsetDelta)
	r.Timestamp = d.batch.FirstTimestamp() + timestampDelta
	if d.batch.TimestampType() == LogAppendTime {
		r.Timestamp = d.batch.MaxTimestamp()
	}
	return r, offsetDelta, nil
}

func (d *decoder) headers(f *[]byte) ([]Header, error) {
	n, err := length(f, 2)
	if err != nil || n < 0 {
		return nil, cmpErr(err, errLength)
	}
	if n == 0 {
		return nil, nil
	}
	if n*headerStructBytes > d.limit {
		return nil, fmt.Errorf("has %d headers, which take more than the limit of %d bytes", n, d.limit)
	}
	headers := make([]Header, n)
	for i := range headers {
		k, err := bytesOrNil(f)
		if err != nil || k == nil {
			return nil, cmpErr(err, errLength) // a header's key is never null
		}
		headers[i].Key = string(k)
		if headers[i].Value, err = bytesOrNil(f); err != nil {
			return nil, err
		}
	}
	return headers, nil
}

// bytesOrNil reads a length, of which -1 means null, and so many bytes.
func bytesOrNil(f *[]byte) ([]byte, error) {
	n, err := length(f, 1)
	if err != nil || n < 0 {
		return nil, err
	}
	v := (*f)[:n:n]
	*f = (*f)[n:]
	return v, nil
}

// length reads a length of -1 or more. It is within what is left of f, when
// each of the things that it counts takes unit bytes or more.
func length(f *[]byte, unit int) (int, error) {
	v, err := varint(f)
	switch {
	case err != nil:
		return 0, err
	case v < -1 || v > math.MaxInt32:
		return 0, errLength
	case v > int64(len(*f)/unit):
		return 0, errShort
	}
	return int(v), nil
}

func varint(f *[]byte) (int64, error) {
	v, n := binary.Varint(*f)
	if n == 0 {
		return 0, errShort
	}
	if n < 0 {
		return 0, errVarint
	}
	*f = (*f)[n:]
	return v, nil
}

// cmpErr is err, or other when there is none.
func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
