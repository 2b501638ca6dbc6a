package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Appender appends the text of a record to b.
type Appender func(b []byte, r *Record) ([]byte, error)

// NewAppender writes records in a format. "terminal" is for people: one line,
// with what could move the cursor made visible.
func NewAppender(name string) (Appender, error) {
	switch {
	case name == "line" || name == "":
		return func(b []byte, r *Record) ([]byte, error) { return append(append(b, r.Value...), '\n'), nil }, nil
	case name == "kv":
		return func(b []byte, r *Record) ([]byte, error) {
			b = append(append(b, r.Key...), '\t')
			return append(append(b, r.Value...), '\n'), nil
		}, nil
	case name == "json":
		return func(b []byte, r *Record) ([]byte, error) { return appendEnvelope(b, r), nil }, nil
	case name == "value-json":
		return appendValueJSON, nil
	case name == "terminal":
		return appendTerminal, nil
	case name == "csv" || name == "file":
		return nil, fmt.Errorf("format %s is for produce; consume has line, kv, json, value-json, or a string with %%", name)
	case IsLayout(name):
		return newLayoutAppender(name)
	default:
		return nil, fmt.Errorf("format %q: want line, kv, json, value-json, or a string with %%", name)
	}
}

func appendValueJSON(b []byte, r *Record) ([]byte, error) {
	if r.Value == nil {
		return append(b, "null\n"...), nil
	}
	var out bytes.Buffer
	if err := json.Compact(&out, r.Value); err != nil {
		return b, fmt.Errorf("%s/%d offset %d: the value is not JSON; -f json shows any record", r.Topic, r.Partition, r.Offset)
	}
	return append(append(b, out.Bytes()...), '\n'), nil
}

func appendTerminal(b []byte, r *Record) ([]byte, error) {
	b = fmt.Appendf(b, "%d/%d  ", r.Partition, r.Offset)
	if r.Key != nil {
		b = append(append(b, visible(r.Key)...), "  "...)
	}
	if r.Value == nil {
		b = append(b, "(tombstone)"...)
	} else {
		b = append(b, visible(r.Value)...)
	}
	return append(b, '\n'), nil
}

// visible keeps printable text and quotes everything else.
func visible(v []byte) string {
	s := string(v)
	if !utf8.ValidString(s) {
		return strconv.QuoteToASCII(s)
	}
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

func newLayoutAppender(layout string) (Appender, error) {
	f, err := kgo.NewRecordFormatter(layout)
	if err != nil {
		return nil, fmt.Errorf("format %q: %w", layout, err)
	}
	if !strings.Contains(layout, "%") {
		return nil, fmt.Errorf("format %q has no %%", layout)
	}
	return func(b []byte, r *Record) ([]byte, error) {
		k := kgo.Record{
			Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, LeaderEpoch: r.Epoch,
			Timestamp: time.UnixMilli(r.Timestamp), Key: r.Key, Value: r.Value,
		}
		for _, h := range r.Headers {
			k.Headers = append(k.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
		return f.AppendRecord(b, &k), nil
	}, nil
}
