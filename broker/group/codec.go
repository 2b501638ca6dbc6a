package group

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
)

var errMalformed = errors.New("malformed")

// codec writes and reads the same fields in the same order, so that one
// function describes a format in both directions. Lengths are bounded by what is left
// to read before memory is taken: every element takes a byte at least.
type codec struct {
	b       []byte
	reading bool
	err     error // sticky; only when reading
}

func (c *codec) fail() {
	c.err = errMalformed
	c.b = nil
}

func (c *codec) u8(v *uint8) {
	if !c.reading {
		c.b = append(c.b, *v)
		return
	}
	if len(c.b) < 1 {
		c.fail()
		return
	}
	*v, c.b = c.b[0], c.b[1:]
}

func (c *codec) boolean(v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	c.u8(&b)
	if b > 1 {
		c.fail()
	}
	*v = b == 1
}

func (c *codec) u64(v *uint64) {
	if !c.reading {
		c.b = binary.AppendUvarint(c.b, *v)
		return
	}
	x, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		return
	}
	*v, c.b = x, c.b[n:]
}

func (c *codec) i64(v *int64) {
	if !c.reading {
		c.b = binary.AppendVarint(c.b, *v)
		return
	}
	x, n := binary.Varint(c.b)
	if n <= 0 {
		c.fail()
		return
	}
	*v, c.b = x, c.b[n:]
}

func (c *codec) i32(v *int32) {
	x := int64(*v)
	c.i64(&x)
	if x != int64(int32(x)) {
		c.fail()
	}
	*v = int32(x)
}

// length bounds a count that was read by the bytes that are left.
func (c *codec) length(n int) int {
	x := uint64(n)
	c.u64(&x)
	if c.reading && x > uint64(len(c.b)) {
		c.fail()
		return 0
	}
	return int(x)
}

func (c *codec) bytes(v *[]byte) {
	n := c.length(len(*v))
	if !c.reading {
		c.b = append(c.b, *v...)
		return
	}
	if c.err != nil {
		return
	}
	// A copy: the state must not keep a whole command alive, nor share memory with Raft.
	*v, c.b = slices.Clone(c.b[:n]), c.b[n:]
	if n == 0 {
		*v = nil
	}
}

func (c *codec) str(v *string) {
	n := c.length(len(*v))
	if !c.reading {
		c.b = append(c.b, *v...)
		return
	}
	if c.err != nil {
		return
	}
	*v, c.b = string(c.b[:n]), c.b[n:]
}

func (c *codec) id(v *[16]byte) {
	if !c.reading {
		c.b = append(c.b, v[:]...)
		return
	}
	if len(c.b) < len(v) {
		c.fail()
		return
	}
	c.b = c.b[copy(v[:], c.b):]
}

func (c *codec) topicPartition(v *TopicPartition) {
	c.str(&v.Topic)
	c.i32(&v.Partition)
}

func (c *codec) strs(v *[]string) { list(c, v, (*codec).str) }

// list codes a slice. It grows as elements are read, so that a small input
// with a large count takes little memory.
func list[T any](c *codec, v *[]T, each func(*codec, *T)) {
	n := c.length(len(*v))
	if !c.reading {
		for i := range *v {
			each(c, &(*v)[i])
		}
		return
	}
	*v = nil
	for range n {
		var x T
		if each(c, &x); c.err != nil {
			return
		}
		*v = append(*v, x)
	}
}

// dict codes a map, in the order of its keys: equal maps give equal bytes.
func dict[K ~string | ~int32, V any](c *codec, v *map[K]V, key func(*codec, *K), each func(*codec, *V)) {
	n := c.length(len(*v))
	if !c.reading {
		for _, k := range slices.Sorted(maps.Keys(*v)) {
			x := (*v)[k]
			key(c, &k)
			each(c, &x)
		}
		return
	}
	*v = make(map[K]V)
	for range n {
		var k K
		var x V
		key(c, &k)
		if each(c, &x); c.err != nil {
			return
		}
		(*v)[k] = x
	}
}

// done fails unless everything was read.
func (c *codec) done() error {
	if c.err == nil && len(c.b) > 0 {
		c.fail()
	}
	return c.err
}
