package format

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// envelope is one record as a line of JSON. Absent and null mean null.
type envelope struct {
	Topic     string          `json:"topic"`
	Partition *int32          `json:"partition"`
	Offset    *int64          `json:"offset"`
	Epoch     *int32          `json:"leader_epoch"`
	Timestamp *int64          `json:"timestamp"`
	Key       *string         `json:"key"`
	KeyB64    *string         `json:"key_b64"`
	Value     *string         `json:"value"`
	ValueB64  *string         `json:"value_b64"`
	Headers   []headerElement `json:"headers"`
}

type headerElement struct {
	Key      *string `json:"key"`
	KeyB64   *string `json:"key_b64"`
	Value    *string `json:"value"`
	ValueB64 *string `json:"value_b64"`
}

type jsonRecords struct{ *lineReader }

func (r jsonRecords) Next() (Record, error) {
	for {
		line, err := r.next()
		if err != nil {
			return fresh(), err
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		rec, err := decodeEnvelope(line)
		if err != nil {
			err = r.errorf("%w", err)
		}
		return rec, err
	}
}

func decodeEnvelope(line []byte) (Record, error) {
	rec := fresh()
	if !utf8.Valid(line) {
		return rec, errors.New("is not UTF-8; binary keys and values go into key_b64 and value_b64")
	}
	var e envelope
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return rec, fmt.Errorf("is no record in JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return rec, errors.New("has more than one JSON value")
	}
	rec.Topic = e.Topic
	set(&rec.Partition, e.Partition)
	set(&rec.Offset, e.Offset)
	set(&rec.Epoch, e.Epoch)
	set(&rec.Timestamp, e.Timestamp)
	var err error
	if rec.Key, err = either("key", e.Key, e.KeyB64); err != nil {
		return rec, err
	}
	if rec.Value, err = either("value", e.Value, e.ValueB64); err != nil {
		return rec, err
	}
	for _, h := range e.Headers {
		key, err := either("header key", h.Key, h.KeyB64)
		if err != nil {
			return rec, err
		}
		value, err := either("header value", h.Value, h.ValueB64)
		if err != nil {
			return rec, err
		}
		rec.Headers = append(rec.Headers, record.Header{Key: string(key), Value: value})
	}
	return rec, nil
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func either(what string, text, b64 *string) ([]byte, error) {
	switch {
	case text != nil && b64 != nil:
		return nil, fmt.Errorf("%s is given twice, as text and as base64", what)
	case text != nil:
		return []byte(*text), nil
	case b64 != nil:
		b, err := base64.StdEncoding.DecodeString(*b64)
		if err != nil {
			return nil, fmt.Errorf("%s is not base64: %w", what, err)
		}
		return full(b), nil
	}
	return nil, nil
}

// appendEnvelope writes a record as one line of JSON.
func appendEnvelope(b []byte, r *Record) []byte {
	b = append(b, `{"topic":`...)
	b = appendString(b, []byte(r.Topic))
	b = fmt.Appendf(b, `,"partition":%d,"offset":%d,"timestamp":%d,`, r.Partition, r.Offset, r.Timestamp)
	b = appendField(b, "key", r.Key)
	b = append(b, ',')
	b = appendField(b, "value", r.Value)
	b = append(b, `,"headers":[`...)
	for i, h := range r.Headers {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		b = appendField(b, "key", []byte(h.Key))
		b = append(b, ',')
		b = appendField(b, "value", h.Value)
		b = append(b, '}')
	}
	return append(b, "]}\n"...)
}

func appendField(b []byte, name string, v []byte) []byte {
	b = append(b, '"')
	b = append(b, name...)
	switch {
	case v == nil:
		return append(b, `":null`...)
	case utf8.Valid(v):
		return appendString(append(b, `":`...), v)
	default:
		b = append(b, `_b64":"`...)
		b = base64.StdEncoding.AppendEncode(b, v)
		return append(b, '"')
	}
}

const hexDigits = "0123456789abcdef"

// appendString writes valid UTF-8 as a JSON string.
func appendString(b, s []byte) []byte {
	b = append(b, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\t':
			b = append(b, '\\', 't')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
