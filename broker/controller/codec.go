package controller

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
)

// errShort says that a command or snapshot ends too early or lies about a length.
var errShort = errors.New("the encoding is cut short or names a length that it does not hold")

// writer builds an encoding. Everything is written in one canonical form, maps
// sorted by key, so that equal states have equal bytes.
type writer struct{ b []byte }

func (w *writer) byte(v byte)      { w.b = append(w.b, v) }
func (w *writer) uint(v uint64)    { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) int(v int64)      { w.b = binary.AppendVarint(w.b, v) }
func (w *writer) id(u UUID)        { w.b = append(w.b, u[:]...) }
func (w *writer) string(s string)  { w.uint(uint64(len(s))); w.b = append(w.b, s...) }
func (w *writer) count(n int)      { w.uint(uint64(n)) }
func (w *writer) ints(ids []int32) { writeList(w, ids, func(w *writer, v int32) { w.int(int64(v)) }) }
func (w *writer) strings(s []string) {
	writeList(w, s, (*writer).string)
}

func (w *writer) bool(v bool) {
	if v {
		w.byte(1)
		return
	}
	w.byte(0)
}

func (w *writer) stringMap(m map[string]string) {
	w.count(len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		w.string(k)
		w.string(m[k])
	}
}

func writeList[T any](w *writer, list []T, write func(*writer, T)) {
	w.count(len(list))
	for _, v := range list {
		write(w, v)
	}
}

// reader takes an encoding apart. The first thing that does not fit sets err,
// and everything after it reads as zero. Counts are bounded by the bytes that are
// left, so no length can ask for more memory than the input took.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail() {
	r.err, r.b = errShort, nil
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail()
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) bool() bool {
	v := r.byte()
	if v > 1 {
		r.fail()
	}
	return v == 1
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int32() int32 {
	v := r.int()
	if v != int64(int32(v)) {
		r.fail()
		return 0
	}
	return int32(v)
}

func (r *reader) id() (u UUID) {
	copy(u[:], r.take(len(u)))
	return u
}

// count reads the number of elements that follow, each at least one byte long.
func (r *reader) count() int {
	v := r.uint()
	if v > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(v)
}

func (r *reader) string() string    { return string(r.take(r.count())) }
func (r *reader) ints() []int32     { return readList(r, (*reader).int32) }
func (r *reader) strings() []string { return readList(r, (*reader).string) }

func (r *reader) stringMap() map[string]string {
	n := r.count()
	var m map[string]string
	for range n {
		k, v := r.string(), r.string()
		if r.err != nil {
			return nil
		}
		if m == nil {
			m = map[string]string{}
		}
		m[k] = v
	}
	return m
}

func readList[T any](r *reader, read func(*reader) T) []T {
	n := r.count()
	var list []T
	for range n {
		v := read(r)
		if r.err != nil {
			return nil
		}
		list = append(list, v)
	}
	return list
}

// end reports what went wrong; bytes that are left over are wrong too.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		return errors.New("the encoding has bytes left over")
	}
	return r.err
}
