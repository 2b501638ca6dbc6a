package partition

import (
	"math"
	"testing"

	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// offer judges a batch of n records and appends it when it is accepted.
func (s *state) offer(pid int64, epoch int16, seq int32, n int32) ruling {
	c := claim{producer: pid, epoch: epoch, first: seq, last: record.AddSequence(seq, n-1)}
	r := s.judge(meta{kind: kindBatch}, c)
	if r.verdict == log.Accepted {
		s.accept(c, n)
	}
	return r
}

// The rules of Kafka's ProducerStateManager.
func TestProducerSequences(t *testing.T) {
	type step struct {
		pid    int64
		epoch  int16
		seq, n int32
		want   log.Verdict
		code   errs.Code
		offset record.Offset // of an accepted or duplicate batch
	}
	const yes, dup, no = log.Accepted, duplicate, refused
	for name, steps := range map[string][]step{
		"in order": {{1, 0, 0, 3, yes, 0, 0}, {1, 0, 3, 2, yes, 0, 3}, {1, 0, 5, 1, yes, 0, 5}},
		"a duplicate has its first offset": {
			{1, 0, 0, 3, yes, 0, 0}, {2, 0, 0, 1, yes, 0, 3}, {1, 0, 3, 1, yes, 0, 4}, {1, 0, 0, 3, dup, 0, 0}, {1, 0, 3, 1, dup, 0, 4},
		},
		"same first sequence, other length, is no duplicate": {{1, 0, 0, 3, yes, 0, 0}, {1, 0, 0, 2, no, errs.OutOfOrderSequenceNumber, 0}},
		"five batches are remembered, the sixth is not": {
			{1, 0, 0, 1, yes, 0, 0}, {1, 0, 1, 1, yes, 0, 1}, {1, 0, 2, 1, yes, 0, 2}, {1, 0, 3, 1, yes, 0, 3}, {1, 0, 4, 1, yes, 0, 4}, {1, 0, 5, 1, yes, 0, 5},
			{1, 0, 1, 1, dup, 0, 1}, {1, 0, 5, 1, dup, 0, 5}, {1, 0, 0, 1, no, errs.OutOfOrderSequenceNumber, 0},
		},
		"a gap is refused, and so is what follows it": {
			{1, 0, 0, 1, yes, 0, 0}, {1, 0, 2, 1, no, errs.OutOfOrderSequenceNumber, 0}, {1, 0, 3, 1, no, errs.OutOfOrderSequenceNumber, 0}, {1, 0, 1, 1, yes, 0, 1},
		},
		"an unknown producer may begin anywhere":  {{9, 0, 0, 1, yes, 0, 0}, {1, 3, 77, 1, yes, 0, 1}, {1, 3, 78, 1, yes, 0, 2}},
		"but not where nothing was ever appended": {{1, 0, 5, 1, no, errs.OutOfOrderSequenceNumber, 0}, {1, 0, 0, 5, yes, 0, 0}, {1, 0, 5, 1, yes, 0, 5}},
		"an older epoch is fenced":                {{1, 2, 0, 1, yes, 0, 0}, {1, 1, 1, 1, no, errs.InvalidProducerEpoch, 0}, {1, 1, 0, 1, no, errs.InvalidProducerEpoch, 0}},
		"a newer epoch begins at 0, and forgets":  {{1, 0, 0, 1, yes, 0, 0}, {1, 1, 1, 1, no, errs.OutOfOrderSequenceNumber, 0}, {1, 1, 0, 1, yes, 0, 1}, {1, 0, 0, 1, no, errs.InvalidProducerEpoch, 0}, {1, 1, 0, 1, dup, 0, 1}},
		"sequences begin again at 0 after the largest": {
			{9, 0, 0, 1, yes, 0, 0}, {1, 0, math.MaxInt32 - 1, 2, yes, 0, 1}, {1, 0, 0, 1, yes, 0, 3}, {1, 0, math.MaxInt32 - 1, 2, dup, 0, 1},
		},
		"a batch may wrap inside": {
			{9, 0, 0, 1, yes, 0, 0}, {1, 0, math.MaxInt32, 3, yes, 0, 1}, {1, 0, 2, 1, yes, 0, 4}, {1, 0, math.MaxInt32, 3, dup, 0, 1}, {1, 0, 1, 1, no, errs.OutOfOrderSequenceNumber, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(releaseLimits)
			for i, x := range steps {
				r := s.offer(x.pid, x.epoch, x.seq, x.n)
				if r.verdict != x.want || r.code != x.code || (x.want != refused && r.offset != x.offset) {
					t.Fatalf("step %d, %+v: got %+v", i, x, r)
				}
			}
		})
	}
}

func TestProducersExpireByLogTimeAndTheOldestGoesFirst(t *testing.T) {
	s := newState(limits{producers: 3, expiry: 100})
	for pid := range int64(3) {
		s.advance(10 * pid)
		s.offer(pid, 0, 0, 1)
	}
	s.advance(50)
	s.offer(0, 0, 1, 1) // producer 1 is the oldest now
	s.offer(7, 0, 0, 1) // one too many
	if s.producers.byID[1] != nil || s.producers.byID[0] == nil || len(s.producers.byID) != 3 {
		t.Fatalf("kept %v", s.producers.byID)
	}
	s.advance(119) // producer 2 appended at 20
	if s.producers.byID[2] == nil {
		t.Fatal("expired early")
	}
	s.advance(120)
	if s.producers.byID[2] != nil || len(s.producers.byID) != 2 {
		t.Fatal("did not expire")
	}
	s.advance(1000)
	if len(s.producers.byID) != 0 || s.producers.oldest != nil || s.producers.newest != nil {
		t.Fatal("the list is not empty")
	}
}

func TestStateSurvivesItsEncoding(t *testing.T) {
	rng, _ := seeded(t)
	s := newState(releaseLimits)
	s.configured(3, []byte("configuration"))
	for i := range 5000 {
		s.advance(s.time + rng.Int64N(100))
		pid := rng.Int64N(60)
		seq := int32(0)
		if p := s.producers.byID[pid]; p != nil {
			seq = record.AddSequence(p.newest().last, 1)
		}
		s.offer(pid, int16(rng.IntN(2)), seq, 1+rng.Int32N(5))
		s.passed(log.Index(i+1), 1)
		if i%500 != 0 {
			continue
		}
		again, err := decodeState(s.encode(), releaseLimits)
		if err != nil {
			t.Fatal(err)
		}
		if again.hash() != s.hash() {
			t.Fatal("the hash differs after a round trip")
		}
		s = again // and behaves alike from here on
	}
}

func FuzzDecodeState(f *testing.F) {
	s := newState(releaseLimits)
	f.Add(s.encode())
	s.configured(1, []byte{1, 2, 3})
	s.offer(1, 0, 0, 3)
	s.offer(2, 5, 0, 1)
	f.Add(s.encode())
	f.Add(encodeCheckpoint(log.UUID{1}, 2, s.encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeState(b, releaseLimits); err == nil && len(b) > 0 && string(s.encode()) != string(b) {
			t.Fatalf("% x is read, but written as % x", b, s.encode())
		}
		_, _ = decodeCheckpoint(b, log.UUID{1}, 2, releaseLimits)
	})
}

func FuzzParseMeta(f *testing.F) {
	b := make([]byte, metaBytes+record.HeaderBytes)
	meta{kind: kindBatch, verdict: log.Accepted, offset: 5, time: 6}.put(b)
	f.Add(b)
	meta{kind: kindTrim, verdict: trimmed, expect: 5}.put(b)
	f.Add(b[:metaBytes])
	meta{kind: kindBatch, verdict: refused, code: errs.ExpectationFailed, conditional: true}.put(b)
	f.Add(b[:metaBytes+claimBytes])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		out := make([]byte, metaBytes)
		m.put(out)
		if string(out) != string(b[:metaBytes]) {
			t.Fatalf("% x is read, but written as % x", b[:metaBytes], out)
		}
	})
}
