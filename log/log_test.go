package log

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tidemarkhq/tidemark/proto/record"
)

func TestEntriesComeBackAsTheyWereWritten(t *testing.T) {
	cfg := testConfig(t.TempDir())
	l := mustOpen(t, cfg)
	a := &appender{t: t, next: 1, term: 1}
	var want []Entry
	for k := range 300 {
		var batch []Entry
		batch = append(batch, a.accepted(1+k%5, 100*(k%20), int64(1000+k)))
		if k%7 == 0 {
			batch = append(batch, a.void("void"))
		}
		if k == 150 {
			a.term = 4
		}
		if l.NeedsRoll(10000) {
			must(t, l.Roll([]byte{byte(k)}))
		}
		must(t, l.Write(batch, 0))
		if k%3 == 0 {
			must(t, l.Sync())
		}
		want = append(want, batch...)
	}
	if l.Stats().Segments < 3 {
		t.Fatalf("only %d segments", l.Stats().Segments)
	}
	compare := func(l *Log) {
		t.Helper()
		if l.LastIndex() != a.next-1 || l.EndOffset() != a.end || l.FirstIndex() != 1 {
			t.Fatalf("log holds [%d,%d], ends at %d; want %d, %d", l.FirstIndex(), l.LastIndex(), l.EndOffset(), a.next-1, a.end)
		}
		for _, w := range want {
			got, err := l.Entry(w.Index)
			must(t, err)
			if got.Term != w.Term || got.Verdict != w.Verdict || got.BaseOffset != w.BaseOffset || got.Type != w.Type ||
				got.MetaBytes != w.MetaBytes || got.AppendedAt != w.AppendedAt || !bytes.Equal(got.Body, w.Body) {
				t.Fatalf("entry %d: %+v, want %+v", w.Index, got, w)
			}
		}
		next := record.Offset(0)
		for next < a.end {
			batches, err := l.Read(next, a.end, 3000)
			must(t, err)
			for _, b := range batches {
				if b.BaseOffset() != next {
					t.Fatalf("batch at %d, want %d", b.BaseOffset(), next)
				}
				if _, err := record.Check(b); err != nil {
					t.Fatal(err)
				}
				next = b.EndOffset()
			}
		}
	}
	compare(l)
	must(t, l.Close())
	l = mustOpen(t, cfg)
	compare(l)
	if e, o := l.EpochEnd(3); e != 1 || l.EpochAt(o-1) != 1 || l.EpochAt(o) != 4 {
		t.Fatalf("epoch 1 ends at %d", o)
	}
	must(t, l.Close())
}

func TestEntryBelowTheFirstIsAStub(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	defer l.Close()
	a := &appender{t: t, next: 10, term: 2}
	must(t, l.Write([]Entry{a.void("x")}, 0))
	if _, err := l.Entry(9); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a log that begins at 10 knows nothing about 9: %v", err)
	}
	must(t, l.Roll(nil))
	must(t, l.Write([]Entry{a.accepted(1, 10, 5)}, 10))
	must(t, l.Sync())
	l.SetRetention(Retention{Age: -1, Bytes: 0})
	n, err := l.Retain(10)
	must(t, err)
	if n != 1 || l.FirstIndex() != 11 {
		t.Fatalf("gave up %d segments, first index %d", n, l.FirstIndex())
	}
	e, err := l.Entry(10)
	must(t, err)
	if e.Term != 2 || e.Index != 10 || e.Body != nil {
		t.Fatalf("stub %+v", e)
	}
}

// A frame of an earlier use of a recycled file is whole, and does not count.
func TestFramesBelongToOneUseOfAFile(t *testing.T) {
	h := frameHeader{length: frameHeaderBytes, index: 1}
	b := make([]byte, frameHeaderBytes)
	h.put(b, seedOf(1))
	if _, err := checkFrame(b, seedOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := checkFrame(b, seedOf(2)); err == nil {
		t.Fatal("a frame of another use passed")
	}
}
