package check_test

import (
	"fmt"
	"io"
	"strconv"
	"testing"

	. "github.com/tidemarkhq/tidemark/internal/check"
)

// large is a clean history of n operations: a third sends, a third polls, and a third reads of the end of the
// log and commits; over eight partitions, with every record read at the end.
func large(n int) *History {
	rec := NewRecorder("bench", 1, 2*n)
	const parts = 8
	var ends [parts]int64
	var now int64
	for i := 0; i < n; i += 3 {
		p := i / 3 % parts
		k := Key{Topic: "t", Partition: int32(p)}
		records := []Record{{ends[p], "value-" + strconv.Itoa(i)}}
		now += 10
		rec.Add(Op{Kind: Send, Process: fmt.Sprint("p", p), Key: k, Invoke: now - 25, Complete: now, Outcome: OK, Records: records,
			Producer: &Producer{ID: int64(p), Seq: int32(ends[p]), Idempotent: true}})
		rec.Add(Op{Kind: Poll, Process: fmt.Sprint("c", p), Key: k, Invoke: now - 5, Complete: now + 5, Outcome: OK, Records: records})
		ends[p]++
		rec.Add(Op{Kind: Latest, Process: "l", Key: k, Invoke: now + 1, Complete: now + 9, Outcome: OK, Offset: ends[p]})
	}
	h := rec.History()
	for p := range parts {
		k := Key{Topic: "t", Partition: int32(p)}
		f := Op{Kind: Final, Process: "f", Key: k, Invoke: now + 10, Complete: now + 20, Outcome: OK, End: ends[p]}
		for i := range h.Ops {
			if op := &h.Ops[i]; op.Kind == Send && op.Key == k {
				f.Records = append(f.Records, op.Records...)
			}
		}
		h.Ops = append(h.Ops, f)
	}
	return h
}

func BenchmarkCheck(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run("ops="+strconv.Itoa(n), func(b *testing.B) {
			h := large(n)
			b.ReportAllocs()
			for b.Loop() {
				if err := Check(h).Err(nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRecorder(b *testing.B) {
	const room = 100_000
	rec := NewRecorder("bench", 1, room)
	op := Op{Kind: Send, Process: "p", Key: k0, Outcome: OK, Records: recs(":a")}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%room == 0 {
			rec = NewRecorder("bench", 1, room)
		}
		rec.End(rec.Begin(op), op)
	}
}

func BenchmarkEncode(b *testing.B) {
	h := large(100_000)
	for b.Loop() {
		if err := Encode(io.Discard, h); err != nil {
			b.Fatal(err)
		}
	}
}
