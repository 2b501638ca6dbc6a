package log

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// testTopic is the topic of every test log.
var testTopic = UUID{0: 0x7d, 15: 1}

const testMeta = 8

// batchOf builds a batch of n records with the given value size; its content names seed.
func batchOf(seed, n, size int, ts int64) []byte {
	b := record.NewBuilder(record.BuilderConfig{})
	for k := range n {
		value := bytes.Repeat([]byte{byte(seed + k)}, size)
		b.Append(record.Record{Timestamp: ts + int64(k), Key: fmt.Appendf(nil, "k%d", seed), Value: value})
	}
	raw, err := b.Build()
	if err != nil {
		panic(err) // the arguments are wrong
	}
	return bytes.Clone(raw)
}

// appender makes entries that continue a log.
type appender struct {
	t    testing.TB
	next Index
	end  record.Offset
	term Term
}

func (a *appender) accepted(n, size int, ts int64) Entry {
	batch := batchOf(int(a.next), n, size, ts)
	e := Entry{
		Index: a.next, Term: a.term, Verdict: Accepted, BaseOffset: a.end,
		Body: append(make([]byte, testMeta), batch...), MetaBytes: testMeta, AppendedAt: ts,
	}
	a.next, a.end = a.next+1, a.end+record.Offset(n)
	return e
}

func (a *appender) void(body string) Entry {
	e := Entry{Index: a.next, Term: a.term, Type: 1, BaseOffset: a.end, Body: []byte(body), AppendedAt: 1000}
	a.next++
	return e
}

func mustOpen(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, _, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testConfig(dir string) Config {
	return Config{Dir: dir, Topic: testTopic, Partition: 3, SegmentBytes: MinSegmentBytes, IndexIntervalBytes: 4096}
}
