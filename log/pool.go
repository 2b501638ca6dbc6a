package log

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

const (
	freeMagic       = "TMFREE\x00\x00"
	freeSuffix      = ".free"
	defaultPool     = 1 << 30
	minPooled       = 1 << 20 // smaller files are not worth the renames
	maxPoolFiles    = 4096
	pooledSizeSlack = 4 // a file may be a quarter larger than the segments of the log that takes it
)

// Pool keeps the files of given-up segments for new ones, broker-wide.
// Overwriting blocks that were written before takes fdatasync a half to a third of
// the time of growing a file, and deleting large files stalls the disk.
//
// A file in the pool that may be taken begins with the magic of a free file.
// That is taken off before the file gets a segment's name, and put on after its last
// reader has left. So a name that a crash leaves behind in the pool, of a file that is in use
// elsewhere, is never taken: OpenPool unlinks it.
type Pool struct {
	fs    fsx.FS
	dir   string
	limit int64
	min   int64

	mu    sync.Mutex
	free  []pooled // guarded by mu; ready to be taken
	bytes int64    // guarded by mu; of all files in the directory, also of those with readers
	next  uint64   // guarded by mu; of names
}

type pooled struct {
	path string
	size int64
}

// OpenPool opens the pool in dir, creating it. It holds at most limit bytes, 1 GiB by
// default. The directory must be on the file system of the logs.
func OpenPool(fsys fsx.FS, dir string, limit int64) (*Pool, error) {
	if limit <= 0 {
		limit = defaultPool
	}
	p := &Pool{fs: fsys, dir: dir, limit: limit, min: minPooled}
	if err := ensureDir(fsys, dir); err != nil {
		return nil, fmt.Errorf("open segment pool %s: %w", dir, err)
	}
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open segment pool %s: %w", dir, err)
	}
	for _, e := range entries {
		if err := p.load(e); err != nil {
			return nil, fmt.Errorf("open segment pool %s: %w", dir, err)
		}
	}
	// No name that was unlinked here may come back beside the one that its file has by then.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, fmt.Errorf("open segment pool %s: %w", dir, err)
	}
	return p, nil
}

// load takes over a file of an earlier process, or unlinks it.
func (p *Pool) load(e fs.DirEntry) error {
	path := filepath.Join(p.dir, e.Name())
	var n uint64
	if _, err := fmt.Sscanf(e.Name(), "%016x"+freeSuffix, &n); err != nil || !strings.HasSuffix(e.Name(), freeSuffix) {
		return nil // not ours
	}
	p.next = max(p.next, n+1)
	f, err := p.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	b := make([]byte, len(freeMagic))
	got, _ := f.ReadAt(b, 0)
	size, err := f.Size()
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if string(b[:got]) != freeMagic || p.bytes+size > p.limit || len(p.free) == maxPoolFiles {
		return p.fs.Remove(path)
	}
	p.free = append(p.free, pooled{path, size})
	p.bytes += size
	return nil
}

// Bytes is what the pool holds now.
func (p *Pool) Bytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

// take makes a file of the pool the file of segment g; nil, nil when there is none that fits.
//
// The header is replaced and synced first: a crash before the rename leaves a
// file that is not free any more. The pool's directory is synced last: its name must
// not come back when the file is given to the pool again, under another one.
func (p *Pool) take(l *Log, g *segment) (fsx.File, error) {
	if p == nil {
		return nil, nil
	}
	size := l.segmentBytes()
	c, ok := p.pick(size + size/pooledSizeSlack)
	if !ok {
		return nil, nil
	}
	f, err := p.fs.OpenFile(c.path, os.O_RDWR, filePerm)
	if err != nil {
		l.logger.Warn("segment pool: file cannot be opened", "path", c.path, "err", err)
		return nil, nil
	}
	g.header.recycled = true
	failpoint.Hit("log/pool/take")
	if err := l.stampFile(f, g); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := p.fs.Rename(c.path, g.path+logSuffix); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	failpoint.Hit("log/pool/renamed")
	if err := p.fs.SyncDir(p.dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.metrics.recycled()
	return f, nil
}

// pick removes a file of at most that size from the list.
func (p *Pool) pick(atMost int64) (pooled, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, c := range p.free {
		if c.size <= atMost {
			p.free = append(p.free[:k], p.free[k+1:]...)
			p.bytes -= c.size
			return c, true
		}
	}
	return pooled{}, false
}

// room reserves a name for a file of that size, if the pool wants it.
func (p *Pool) room(size int64) (pooled, bool) {
	if p == nil || size < p.min {
		return pooled{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes+size > p.limit || len(p.free) >= maxPoolFiles {
		return pooled{}, false
	}
	p.bytes += size
	p.next++
	return pooled{filepath.Join(p.dir, fmt.Sprintf("%016x%s", p.next-1, freeSuffix)), size}, true
}

// ready is called when the last reader of a given file has left.
func (p *Pool) ready(c pooled, l *Log) {
	f, err := p.fs.OpenFile(c.path, os.O_RDWR, filePerm)
	if err == nil {
		block := make([]byte, blockBytes)
		copy(block, freeMagic)
		_, err = f.WriteAt(block, 0)
		err = errors.Join(err, f.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.bytes -= c.size
		l.logger.Warn("segment pool: file cannot be reused", "path", c.path, "err", err)
		return
	}
	p.free = append(p.free, c)
}

// retire takes a given-up segment's files out of the directory; its data file
// goes to the pool when that has room. The caller syncs the directory.
func (l *Log) retire(g *segment) error {
	c, ok := l.cfg.Pool.room(alignBlock(g.endPos) + blockBytes)
	if !ok {
		err := l.removeSegment(g)
		g.ref.abandon(nil)
		return err
	}
	if err := l.fs.Rename(g.path+logSuffix, c.path); err != nil {
		return err
	}
	failpoint.Hit("log/pool/give")
	err := l.removeSegment(g) // what is left: the sidecars
	g.ref.abandon(func() { l.cfg.Pool.ready(c, l) })
	return err
}
