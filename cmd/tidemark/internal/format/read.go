package format

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// Reader yields records until io.EOF. Its errors name the place in the input.
type Reader interface {
	Next() (Record, error)
}

// ReadOptions pick keys, times and headers out of values.
type ReadOptions struct {
	Key     string   // value-json: path; csv: column
	Time    string   // value-json: path; csv: column
	Headers []string // value-json: name=path
}

// NewReader reads records of a format from r.
func NewReader(name string, r io.Reader, o ReadOptions) (Reader, error) {
	lines := &lineReader{in: bufio.NewReaderSize(r, 64<<10), max: MaxRecordBytes}
	picks := o.Key != "" || o.Time != "" || len(o.Headers) > 0
	if picks && name != "value-json" && name != "csv" {
		return nil, fmt.Errorf("--key, --time and --header work with -f value-json and -f csv, not with -f %s", name)
	}
	switch {
	case name == "line" || name == "":
		return lineRecords{lines}, nil
	case name == "kv":
		return kvRecords{lines}, nil
	case name == "json":
		return jsonRecords{lines}, nil
	case name == "value-json":
		return newValueJSON(lines, o)
	case name == "csv":
		return newCSV(r, o)
	case IsLayout(name):
		return newLayoutReader(name, r)
	default:
		return nil, fmt.Errorf("format %q: want %s, or a string with %%", name, strings.Join(Presets, ", "))
	}
}

// lineReader splits input into lines of bounded length and counts them.
type lineReader struct {
	in   *bufio.Reader
	max  int
	n    int    // of the line that was read last, from 1
	last []byte // that line
}

// next returns a line without its line feed; a last line may have none.
func (l *lineReader) next() ([]byte, error) {
	l.n++
	var line []byte
	for {
		part, err := l.in.ReadSlice('\n')
		if len(line)+len(part) > l.max {
			return nil, fmt.Errorf("line %d is longer than %d bytes", l.n, l.max)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			l.last = line[:len(line)-1]
			return l.last, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			l.last = line
			return line, nil
		default:
			return nil, err
		}
	}
}

func (l *lineReader) errorf(format string, args ...any) error {
	return &BadLine{Text: l.last, err: fmt.Errorf("line %d: "+format, append([]any{l.n}, args...)...)}
}

// BadLine is a line that is no record. The lines after it can still be read.
type BadLine struct {
	Text []byte // without the line end
	err  error
}

func (b *BadLine) Error() string { return b.err.Error() }

// Unwrap gives the cause.
func (b *BadLine) Unwrap() error { return b.err }

type lineRecords struct{ *lineReader }

func (r lineRecords) Next() (Record, error) {
	rec := fresh()
	line, err := r.next()
	rec.Value = full(line)
	return rec, err
}

// full keeps empty apart from null.
func full(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

type kvRecords struct{ *lineReader }

func (r kvRecords) Next() (Record, error) {
	rec := fresh()
	line, err := r.next()
	if err != nil {
		return rec, err
	}
	key, value, ok := bytes.Cut(line, []byte{'\t'})
	if !ok {
		return rec, r.errorf("no TAB between key and value")
	}
	rec.Key, rec.Value = full(key), full(value)
	return rec, nil
}

// valueJSON makes the value of each line a record's value.
type valueJSON struct {
	*lineReader
	key, time path
	headers   []headerPath
}

type headerPath struct {
	name string
	path path
}

func newValueJSON(lines *lineReader, o ReadOptions) (Reader, error) {
	r := &valueJSON{lineReader: lines}
	var err error
	if r.key, err = parsePath(o.Key); err != nil {
		return nil, err
	}
	if r.time, err = parsePath(o.Time); err != nil {
		return nil, err
	}
	for _, h := range o.Headers {
		name, at, ok := strings.Cut(h, "=")
		p, err := parsePath(at)
		if !ok || err != nil || p == nil {
			return nil, fmt.Errorf("--header %q: want name=.path", h)
		}
		r.headers = append(r.headers, headerPath{name, p})
	}
	return r, nil
}

func (r *valueJSON) Next() (Record, error) {
	rec := fresh()
	for {
		line, err := r.next()
		if err != nil {
			return rec, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			rec.Value = line
			break
		}
	}
	if !json.Valid(rec.Value) {
		return rec, r.errorf("is not one JSON value")
	}
	if r.key == nil && r.time == nil && r.headers == nil {
		return rec, nil
	}
	return rec, r.pick(&rec)
}

func (r *valueJSON) pick(rec *Record) error {
	d := json.NewDecoder(bytes.NewReader(rec.Value))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return r.errorf("%w", err)
	}
	if r.key != nil {
		rec.Key = r.key.text(v)
	}
	if r.time != nil {
		ms, err := r.time.time(v)
		if err != nil {
			return r.errorf("%w", err)
		}
		rec.Timestamp = ms
	}
	for _, h := range r.headers {
		if b := h.path.text(v); b != nil {
			rec.Headers = append(rec.Headers, record.Header{Key: h.name, Value: b})
		}
	}
	return nil
}

// csvRecords makes each row an object with the header row's names.
type csvRecords struct {
	in        *csv.Reader
	limit     *recordLimit
	columns   []string
	key, time int
}

func newCSV(r io.Reader, o ReadOptions) (Reader, error) {
	limit := &recordLimit{in: r, left: MaxRecordBytes}
	c := &csvRecords{in: csv.NewReader(limit), limit: limit, key: -1, time: -1}
	head, err := c.in.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("csv: there is no header row")
	}
	if err != nil {
		return nil, fmt.Errorf("csv: %w", err)
	}
	c.columns = head
	c.in.FieldsPerRecord = len(head)
	if c.key, err = column(head, o.Key); err != nil {
		return nil, err
	}
	if len(o.Headers) > 0 {
		return nil, errors.New("--header works with -f value-json only")
	}
	c.time, err = column(head, o.Time)
	return c, err
}

func column(head []string, name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	for i, c := range head {
		if c == name {
			return i, nil
		}
	}
	return -1, fmt.Errorf("csv: no column %q; there are %s", name, strings.Join(head, ", "))
}

func (c *csvRecords) Next() (Record, error) {
	rec := fresh()
	c.limit.left = MaxRecordBytes
	row, err := c.in.Read()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("csv: %w", err)
		}
		return rec, err
	}
	b := []byte{'{'}
	for i, name := range c.columns {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, []byte(strings.ToValidUTF8(name, "\uFFFD")))
		b = append(b, ':')
		b = appendString(b, []byte(strings.ToValidUTF8(row[i], "\uFFFD")))
	}
	rec.Value = append(b, '}')
	if c.key >= 0 {
		rec.Key = full([]byte(row[c.key]))
	}
	if c.time >= 0 {
		ms, err := timeOf(row[c.time])
		if err != nil {
			line, _ := c.in.FieldPos(c.time)
			return rec, fmt.Errorf("csv: line %d: %w", line, err)
		}
		rec.Timestamp = ms
	}
	return rec, nil
}

// recordLimit ends the input when one record takes more than its share.
type recordLimit struct {
	in   io.Reader
	left int
}

func (l *recordLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("a record is longer than %d bytes", MaxRecordBytes)
	}
	n, err := l.in.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// lastLine ends the last line of the input where it has no line feed.
type lastLine struct {
	in    io.Reader
	last  byte
	ended bool
}

func (l *lastLine) Read(p []byte) (int, error) {
	if l.ended || len(p) == 0 {
		return 0, io.EOF
	}
	n, err := l.in.Read(p)
	if n > 0 {
		l.last = p[n-1]
		return n, nil // an error comes again
	}
	if errors.Is(err, io.EOF) && l.last != 0 && l.last != '\n' {
		l.ended = true
		p[0] = '\n'
		return 1, nil
	}
	return n, err
}

// layoutReader reads with a format string.
type layoutReader struct {
	in        *kgo.RecordReader
	limit     *recordLimit
	n         int
	topic     bool
	partition bool
	timestamp bool
	key       bool
	value     bool
}

func newLayoutReader(layout string, r io.Reader) (Reader, error) {
	if strings.HasSuffix(layout, `\n`) || strings.HasSuffix(layout, "\n") {
		r = &lastLine{in: r}
	}
	limit := &recordLimit{in: r, left: MaxRecordBytes}
	in, err := kgo.NewRecordReader(limit, layout)
	if err != nil {
		return nil, fmt.Errorf("format %q: %w", layout, err)
	}
	has := func(verb string) bool { return strings.Contains(strings.ReplaceAll(layout, "%%", ""), "%"+verb) }
	return &layoutReader{in: in, limit: limit, topic: has("t"), partition: has("p"), timestamp: has("d"), key: has("k"), value: has("v")}, nil
}

func (l *layoutReader) Next() (Record, error) {
	rec := fresh()
	l.limit.left = MaxRecordBytes
	l.n++
	r, err := l.in.ReadRecord()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return rec, io.EOF
		}
		return rec, fmt.Errorf("record %d: %w", l.n, err)
	}
	if l.topic {
		rec.Topic = r.Topic
	}
	if l.partition {
		rec.Partition = r.Partition
	}
	if l.timestamp {
		rec.Timestamp = r.Timestamp.UnixMilli()
	}
	if l.key {
		rec.Key = full(r.Key)
	}
	if l.value {
		rec.Value = full(r.Value)
	}
	for _, h := range r.Headers {
		rec.Headers = append(rec.Headers, record.Header{Key: h.Key, Value: h.Value})
	}
	return rec, nil
}
