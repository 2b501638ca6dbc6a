package producer

import (
	"math/rand/v2"
)

// Partitioner chooses the partition of a record. The producer calls it with its
// own lock held, so it needs none, must not block, and belongs to one producer.
type Partitioner interface {
	// Partition returns a partition in [0, partitions). It must not keep r.
	Partition(r *Record, partitions int32) int32
}

// batchAware is a Partitioner that learns when a batch closes.
type batchAware interface {
	batchClosed(topic string, partition int32)
}

// DefaultPartitioner does as Kafka's Java client does: murmur2 of the key, so
// both clients put a key into the same partition; records without a key stick
// to one partition until its batch closes.
func DefaultPartitioner() Partitioner { return &murmurOrSticky{newSticky()} }

// StickyPartitioner ignores keys: records go to one partition of a topic until
// its batch closes, then to another chosen at random.
func StickyPartitioner() Partitioner { return newSticky() }

// ExplicitPartitioner sends each record to its Partition field.
func ExplicitPartitioner() Partitioner { return explicit{} }

// ConsistentPartitioner moves few keys when partitions are added: growing from
// n to m partitions moves a share of (m-n)/m of the keys, all of them to new partitions.
//
// The algorithm is jump consistent hash (Lamping and Veach, 2014) on the 64-bit
// FNV-1a hash of the key, finished with MurmurHash3's fmix64. Records without a key stick as with
// DefaultPartitioner.
func ConsistentPartitioner() Partitioner { return &consistent{newSticky()} }

type murmurOrSticky struct{ *sticky }

func (m *murmurOrSticky) Partition(r *Record, n int32) int32 {
	if r.Key == nil {
		return m.sticky.Partition(r, n)
	}
	return int32(murmur2(r.Key)&0x7fffffff) % n
}

type explicit struct{}

func (explicit) Partition(r *Record, _ int32) int32 { return r.Partition }

type consistent struct{ *sticky }

func (c *consistent) Partition(r *Record, n int32) int32 {
	if r.Key == nil {
		return c.sticky.Partition(r, n)
	}
	return jump(fmix64(fnv1a(r.Key)), n)
}

type sticky struct {
	current map[string]int32 // by topic
}

func newSticky() *sticky { return &sticky{current: make(map[string]int32)} }

func (s *sticky) Partition(r *Record, n int32) int32 {
	p, ok := s.current[r.Topic]
	if !ok || p >= n {
		p = rand.Int32N(n)
		s.current[r.Topic] = p
	}
	return p
}

func (s *sticky) batchClosed(topic string, partition int32) {
	if p, ok := s.current[topic]; ok && p == partition {
		delete(s.current, topic)
	}
}

// murmur2 is the hash of Kafka's Java client (org.apache.kafka.common.utils.Utils.murmur2).
func murmur2(b []byte) uint32 {
	const (
		seed uint32 = 0x9747b28c
		m    uint32 = 0x5bd1e995
		r           = 24
	)
	h := seed ^ uint32(len(b))
	for len(b) >= 4 {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
		b = b[4:]
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}

func fnv1a(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h ^= uint64(c)
		h *= 1099511628211
	}
	return h
}

func fmix64(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// jump maps key to [0, n). Each step is where the key would move if buckets
// were added one by one.
func jump(key uint64, n int32) int32 {
	b, j := int64(-1), int64(0)
	for j < int64(n) {
		b = j
		key = key*2862933555777941757 + 1
		j = int64(float64(b+1) * (float64(int64(1)<<31) / float64((key>>33)+1)))
	}
	return int32(b)
}
