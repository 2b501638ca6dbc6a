package cutfs

import (
	"maps"
	"math/rand/v2"
)

const pageBytes = 4096

type page [pageBytes]byte

// content is a sparse file. Pages may be shared with another content and are
// copied before they are written, unless own says that they are ours.
type content struct {
	size  int64
	pages map[int64]*page
}

func newContent() content { return content{pages: map[int64]*page{}} }

func (c *content) clone() content { return content{size: c.size, pages: maps.Clone(c.pages)} }

// write changes pages in place only where other does not hold the same one.
func (c *content) write(off int64, data []byte, other *content) {
	c.size = max(c.size, off+int64(len(data)))
	for len(data) > 0 {
		i, at := off/pageBytes, int(off%pageBytes)
		p := c.pages[i]
		switch {
		case p == nil:
			p = new(page)
		case other != nil && other.pages[i] == p:
			own := *p
			p = &own
		}
		c.pages[i] = p
		n := copy(p[at:], data)
		off, data = off+int64(n), data[n:]
	}
}

// read fills buf and returns how much of it lies within the file.
func (c *content) read(off int64, buf []byte) int {
	if off >= c.size {
		return 0
	}
	buf = buf[:min(int64(len(buf)), c.size-off)]
	for done := 0; done < len(buf); {
		i, at := (off+int64(done))/pageBytes, int((off+int64(done))%pageBytes)
		n := min(len(buf)-done, pageBytes-at)
		if p := c.pages[i]; p != nil {
			copy(buf[done:done+n], p[at:])
		} else {
			clear(buf[done : done+n])
		}
		done += n
	}
	return len(buf)
}

func (c *content) truncate(size int64, other *content) {
	if size < c.size {
		for i := range c.pages {
			if i*pageBytes >= size {
				delete(c.pages, i)
			}
		}
		if at := size % pageBytes; at > 0 && c.pages[size/pageBytes] != nil {
			c.write(size, make([]byte, pageBytes-at), other)
		}
	}
	c.size = size
}

// change is a write or a truncation that no sync has covered.
type change struct {
	off      int64
	data     []byte // of a write
	truncate bool   // to off
}

// sync makes the sure content what is seen, as far as pending tells: what
// a failed sync forgot stays unwritten.
func (n *inode) sync() {
	for _, c := range n.pending {
		if c.truncate {
			n.safe.truncate(min(c.off, n.safe.size), &n.seen)
			continue
		}
		for i := c.off / pageBytes; i*pageBytes < c.off+int64(len(c.data)); i++ {
			if p := n.seen.pages[i]; p != nil {
				n.safe.pages[i] = p
			} else {
				delete(n.safe.pages, i)
			}
		}
	}
	if len(n.pending) > 0 {
		n.safe.size = n.seen.size
	}
	n.pending, n.grown = nil, false
}

// cut loses what is pending, or keeps a random part of it.
func (n *inode) cut(rng *rand.Rand, sector int, torn bool, lost *Lost) {
	keep := 0.0
	if torn {
		keep = chance(rng)
	}
	kept := n.safe.clone()
	for _, c := range n.pending {
		n.tear(&kept, c, rng, sector, keep, lost)
	}
	n.safe, n.seen = kept, kept.clone()
	n.pending, n.grown = nil, false
}

func (n *inode) tear(kept *content, c change, rng *rand.Rand, sector int, keep float64, lost *Lost) {
	if c.truncate {
		if rng.Float64() < keep {
			kept.truncate(c.off, &n.safe)
		}
		return
	}
	for off, data := c.off, c.data; len(data) > 0; {
		k := min(len(data), sector-int(off%int64(sector)))
		if rng.Float64() < keep {
			kept.write(off, data[:k], &n.safe)
			lost.SectorsKept++
		} else {
			lost.SectorsLost++
		}
		off, data = off+int64(k), data[k:]
	}
}
