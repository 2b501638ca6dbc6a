package log

import (
	"errors"
	"fmt"
	"sync"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// Entry reads one entry. Below FirstIndex-1 it fails with ErrNotFound; at
// FirstIndex-1 it returns a stub of the right term; a damaged frame is ErrCorrupt.
func (l *Log) Entry(i Index) (Entry, error) {
	for {
		l.mu.RLock()
		g := byIndex(l.segments, i)
		if g == nil {
			e, err := l.stubLocked(i)
			l.mu.RUnlock()
			return e, err
		}
		v := l.viewLocked(g)
		l.mu.RUnlock()
		e, err := l.entryIn(v, i)
		if err == nil {
			return e, nil
		}
		if again, err := l.readFailed(v, err); !again {
			return Entry{}, err
		}
	}
}

// stubLocked answers for an index without a frame. Raft asks for the entry
// before the first one, and needs only its term.
func (l *Log) stubLocked(i Index) (Entry, error) {
	if len(l.segments) > 0 {
		if h := l.segments[0].header; i > 0 && i == h.prevIndex {
			return Entry{Index: i, Term: h.prevTerm, BaseOffset: h.base}, nil
		}
	}
	return Entry{}, ErrNotFound
}

func (l *Log) entryIn(v view, i Index) (Entry, error) {
	if c := l.ahead.take(v, i); c != nil {
		c.want = coldNext
		defer l.ahead.put(c)
		return entryAt(c, i)
	}
	index, err := l.indexOf(v)
	if err != nil {
		return Entry{}, err
	}
	c := cursor{l: l, view: v, pos: indexFor(index, i), want: coldRead}
	e, err := entryAt(&c, i)
	if err == nil && c.buf != nil {
		l.ahead.put(&c)
	}
	return e, err
}

func entryAt(c *cursor, i Index) (Entry, error) {
	for {
		f, err := c.frame()
		if errors.Is(err, errEnd) {
			return Entry{}, c.corrupt(fmt.Errorf("entry %d is missing", i))
		}
		if err != nil {
			return Entry{}, err
		}
		if f.index == i {
			return f.entry(), nil
		}
	}
}

// readahead remembers where the last cold Entry ended. Raft replicates and
// replays entry by entry, in order; without it each would be a lookup and a read.
type readahead struct {
	mu sync.Mutex
	c  *cursor // guarded by mu
}

// take hands out the cursor if entry i is the next behind it.
func (a *readahead) take(v view, i Index) *cursor {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.c
	if c == nil || c.g != v.g || c.changes != v.changes || c.next != i {
		return nil
	}
	a.c = nil
	c.view = v
	return c
}

func (a *readahead) put(c *cursor) {
	kept := *c
	a.mu.Lock()
	a.c = &kept
	a.mu.Unlock()
}

func (a *readahead) drop() {
	a.mu.Lock()
	a.c = nil
	a.mu.Unlock()
}

// Read returns accepted batches from the one that holds offset from, ending
// before limit (exclusive, a batch boundary such as the high watermark), at
// most maxBytes of them but at least one. Slices share the
// log's memory or a buffer of this call; callers must not write to them.
// ErrOutOfRange when from is outside [StartOffset, limit].
func (l *Log) Read(from, limit record.Offset, maxBytes int) ([]record.Raw, error) {
	for {
		l.mu.RLock()
		limit := min(limit, l.EndOffset())
		if from < l.start || from > limit {
			start := l.start
			l.mu.RUnlock()
			return nil, fmt.Errorf("read offset %d of [%d,%d]: %w", from, start, limit, ErrOutOfRange)
		}
		k := byOffset(l.segments, from)
		if from == limit || k < 0 {
			l.mu.RUnlock()
			return nil, nil
		}
		v := l.viewLocked(l.segments[k])
		l.mu.RUnlock()
		batches, err := l.readIn(v, from, limit, maxBytes)
		if err == nil {
			return batches, nil
		}
		if again, err := l.readFailed(v, err); !again {
			return nil, err
		}
	}
}

// readIn reads from one segment: the one that holds from, so that there is at least one batch.
func (l *Log) readIn(v view, from, limit record.Offset, maxBytes int) ([]record.Raw, error) {
	index, err := l.indexOf(v)
	if err != nil {
		return nil, err
	}
	c := cursor{l: l, view: v, pos: offsetFor(index, from)}
	var batches []record.Raw
	next, total := from, 0
	for {
		rest := min(max(maxBytes-total, 0), coldAhead)
		c.want = rest + rest/16 + l.cfg.IndexIntervalBytes // what is wanted, headers and padding too
		f, err := c.frame()
		if errors.Is(err, errEnd) && len(batches) > 0 {
			return batches, nil
		}
		if errors.Is(err, errEnd) {
			return nil, c.corrupt(fmt.Errorf("offset %d is missing", from))
		}
		if err != nil {
			return nil, err
		}
		if f.verdict != Accepted || f.end() <= from {
			continue
		}
		if f.base > next {
			return nil, c.corrupt(fmt.Errorf("offset %d is missing before %d", next, f.base))
		}
		batch := f.batch()
		if f.end() > limit || len(batches) > 0 && total+len(batch) > maxBytes {
			return batches, nil
		}
		batches, total, next = append(batches, batch), total+len(batch), f.end()
		if next >= limit || total >= maxBytes {
			return batches, nil
		}
	}
}
