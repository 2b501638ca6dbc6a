package producer

import (
	"fmt"
	"testing"
)

// The vectors are those of Kafka's UtilsTest.testMurmur2.
func TestMurmur2IsJavas(t *testing.T) {
	for key, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestEmptyKeyIsAKey(t *testing.T) {
	p := DefaultPartitioner()
	want := p.Partition(&Record{Topic: "t", Key: []byte{}}, 97)
	for range 50 {
		p.(batchAware).batchClosed("t", want)
		if got := p.Partition(&Record{Topic: "t", Key: []byte{}}, 97); got != want {
			t.Fatalf("an empty key went to %d, then to %d", want, got)
		}
	}
}

func TestStickyMovesWhenItsBatchCloses(t *testing.T) {
	p := StickyPartitioner()
	seen := make(map[int32]bool)
	for range 200 {
		first := p.Partition(&Record{Topic: "t"}, 8)
		for range 5 {
			if got := p.Partition(&Record{Topic: "t"}, 8); got != first {
				t.Fatalf("left %d for %d within a batch", first, got)
			}
		}
		seen[first] = true
		p.(batchAware).batchClosed("t", first)
	}
	if len(seen) != 8 {
		t.Errorf("200 batches reached %d of 8 partitions", len(seen))
	}
}

func TestConsistentHashMovesFewKeys(t *testing.T) {
	p := ConsistentPartitioner()
	const keys = 20_000
	moved, counts := 0, make([]int, 11)
	for i := range keys {
		r := &Record{Topic: "t", Key: fmt.Appendf(nil, "key-%d", i)}
		before, after := p.Partition(r, 10), p.Partition(r, 11)
		counts[after]++
		if before != after {
			moved++
			if after != 10 {
				t.Fatalf("key %d moved from %d to %d, an old partition", i, before, after)
			}
		}
	}
	if share := float64(moved) / keys; share < 0.07 || share > 0.11 {
		t.Errorf("%.3f of the keys moved, want about 1/11", share)
	}
	for n, c := range counts {
		if c < keys/11*8/10 || c > keys/11*12/10 {
			t.Errorf("partition %d has %d of %d keys", n, c, keys)
		}
	}
}
