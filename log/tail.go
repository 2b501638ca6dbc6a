package log

import (
	"container/list"
	"sync"
	"sync/atomic"
)

const (
	defaultBudget = 64 << 20
	minChunk      = 32 << 10
	maxChunk      = 1 << 20
)

// chunk is a piece of a segment as it stands in the file, still in memory. What
// is below the published end of the segment never changes, so readers keep
// slices of it for as long as they like; the garbage collector frees it.
type chunk struct {
	pos  int64 // in the file
	size int64
	// data is nil once the budget took the memory back: the bytes are read from the file then.
	data atomic.Pointer[[]byte]
	at   *list.Element // guarded by Budget.mu
}

// bytes is the chunk's memory, nil when it was given back.
func (c *chunk) bytes() []byte {
	if p := c.data.Load(); p != nil {
		return *p
	}
	return nil
}

// Budget is memory that the logs of one broker share for their tails. Above the
// limit the oldest chunks go first, whichever log they belong to: a log that was
// busy once and is idle now must not keep the memory from the others.
//
// A log that was not written to between two calls of Retain keeps nothing.
type Budget struct {
	mu    sync.Mutex
	limit int64
	used  int64      // guarded by mu
	queue *list.List // guarded by mu; of *chunk, oldest first
}

// NewBudget returns a budget of so many bytes.
func NewBudget(bytes int64) *Budget {
	if bytes <= 0 {
		bytes = defaultBudget
	}
	return &Budget{limit: bytes, queue: list.New()}
}

// Used is how many bytes the tails take now.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// chunk makes a chunk that begins at pos, and makes room for it. The newest chunk always
// stays: one Write may be larger than the budget.
func (b *Budget) chunk(pos int64, data []byte) *chunk {
	size := len(data)
	c := &chunk{pos: pos, size: int64(size)}
	c.data.Store(&data)
	b.mu.Lock()
	defer b.mu.Unlock()
	c.at = b.queue.PushBack(c)
	b.used += c.size
	for b.used > b.limit && b.queue.Len() > 1 {
		b.dropLocked(b.queue.Front().Value.(*chunk))
	}
	return c
}

// drop gives chunks back.
func (b *Budget) drop(chunks []*chunk) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range chunks {
		b.dropLocked(c)
	}
}

func (b *Budget) dropLocked(c *chunk) {
	if c.at == nil {
		return
	}
	b.queue.Remove(c.at)
	c.at = nil
	c.data.Store(nil)
	b.used -= c.size
}

// room returns memory for the next n bytes of the file at pos (n is whole
// blocks), in one piece. The part that was not handed out yet belongs to the appender alone.
func (l *Log) room(g *segment, pos int64, n int) []byte {
	size := int64(0)
	if len(g.tail) > 0 {
		c := g.tail[len(g.tail)-1]
		if data := c.bytes(); data != nil {
			if at := pos - c.pos; at >= 0 && at+int64(n) <= c.size {
				return data[at : at+int64(n)]
			}
			size = c.size
		}
	}
	// Chunks grow with use, so that a quiet log keeps little. A large write
	// gets one of its own, without a rest that would be wasted.
	size = min(max(size*2, minChunk, int64(n)), maxChunk)
	if n > maxChunk/4 {
		size = int64(n)
	}
	data := make([]byte, size)
	c := l.cfg.Budget.chunk(pos, data) // other logs may have taken it back already
	l.mu.Lock()
	g.tail = append(livingTail(g.tail), c)
	l.mu.Unlock()
	return data[:n]
}

// dropIdleTail gives the tail's memory back when nothing was written since the last call.
// Callers hold appendMu.
func (l *Log) dropIdleTail() {
	last := l.LastIndex()
	idle := last == l.retainedAt
	l.retainedAt = last
	if !idle {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.segments {
		l.cfg.Budget.drop(g.tail)
		g.tail = nil
	}
}

// livingTail copies what was not given back yet; readers may hold the old slice.
func livingTail(tail []*chunk) []*chunk {
	var living []*chunk
	for _, c := range tail {
		if c.bytes() != nil {
			living = append(living, c)
		}
	}
	return living
}

// inTail finds n bytes at pos in memory.
func inTail(tail []*chunk, pos, n int64) ([]byte, bool) {
	for k := len(tail) - 1; k >= 0; k-- {
		c := tail[k]
		if pos < c.pos {
			continue
		}
		data := c.bytes()
		if data == nil || pos+n > c.pos+c.size {
			return nil, false
		}
		at := pos - c.pos
		return data[at : at+n : at+n], true
	}
	return nil, false
}

func tailBytes(tail []*chunk) (n int64) {
	for _, c := range tail {
		if c.bytes() != nil {
			n += c.size
		}
	}
	return n
}
