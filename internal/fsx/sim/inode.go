package sim

import "slices"

// inode is a directory or a file.
type inode struct {
	dir  bool
	name string // of a file, when it was last opened or renamed
	// A directory's names: as seen, and as certain.
	seen, durable map[string]*inode

	// A file's content as seen, as certain, and the writes between, oldest first.
	data, safe content
	pending    []write
	seq        int // of the newest write
	thin       int // when pending is thinned out next
}

// write is a change of a file that was not synced.
type write struct {
	seq      int
	off      int64
	data     []byte
	truncate bool // to off
}

func newDir() *inode {
	return &inode{dir: true, seen: map[string]*inode{}, durable: map[string]*inode{}}
}

func (n *inode) size() int64 { return int64(len(n.data.b)) }

// used is the size of a file, or of all files below a directory.
func (n *inode) used() int64 {
	total := n.size()
	for _, c := range n.seen {
		total += c.used()
	}
	return total
}

// note takes a change that happened to what is seen.
func (n *inode) note(w write) {
	n.seq++
	w.seq = n.seq
	n.data.apply(w)
	if len(n.pending) >= max(n.thin, 32) {
		// Files that are written again and again and never synced: what the newest write covers
		// would be on its way to the disk by now.
		n.pending = slices.DeleteFunc(n.pending, func(old write) bool {
			return !old.truncate && w.off <= old.off && w.off+int64(len(w.data)) >= old.off+int64(len(old.data))
		})
		n.thin = 2 * len(n.pending)
	}
	n.pending = append(n.pending, w)
}

// settle ends the pending writes up to seq: durable, or (after a failed sync) forgotten.
func (n *inode) settle(seq int, durable bool) {
	n.pending = slices.DeleteFunc(n.pending, func(w write) bool {
		if w.seq <= seq && durable {
			n.safe.apply(w)
		}
		return w.seq <= seq
	})
}

// content is a file's bytes. Copies share them until one of them changes.
type content struct {
	b      []byte
	shared bool
}

func (c *content) share() content {
	c.shared = true
	return *c
}

func (c *content) apply(w write) {
	if w.truncate {
		c.resize(w.off)
		return
	}
	c.resize(max(int64(len(c.b)), w.off+int64(len(w.data))))
	copy(c.b[w.off:], w.data)
}

// resize makes the bytes so long, and this content's own.
func (c *content) resize(size int64) {
	old := len(c.b)
	switch {
	case c.shared:
		b := make([]byte, size)
		copy(b, c.b)
		*c = content{b: b}
	case size > int64(cap(c.b)):
		b := make([]byte, size, max(size, 2*int64(old)))
		copy(b, c.b)
		c.b = b
	default:
		c.b = c.b[:size]
		if int(size) > old {
			clear(c.b[old:])
		}
	}
}
