package log

import (
	"container/list"
	"os"
	"sync"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

const (
	defaultOpenFiles  = 512
	defaultIndexBytes = 16 << 20
)

// Files bounds what the logs of one broker keep open and loaded together:
// descriptors of sealed segments, and their indexes. The least recently used
// go first; a file with readers is closed by the last of them.
type Files struct {
	maxOpen  int
	maxIndex int64

	mu         sync.Mutex
	open       *list.List // guarded by mu; of *fileRef, most recently used first
	indexes    *list.List // guarded by mu; of *fileRef
	indexBytes int64      // guarded by mu
}

// NewFiles returns bounds of so many open sealed segments and so many bytes of loaded
// indexes. Zeros mean the defaults: 512 files and 16 MiB.
func NewFiles(open int, indexBytes int64) *Files {
	if open <= 0 {
		open = defaultOpenFiles
	}
	if indexBytes <= 0 {
		indexBytes = defaultIndexBytes
	}
	return &Files{maxOpen: open, maxIndex: indexBytes, open: list.New(), indexes: list.New()}
}

// fileRef is how readers reach a segment's file. Its fields are guarded by Files.mu.
type fileRef struct {
	files *Files
	fs    fsx.FS
	name  string

	file   fsx.File
	users  int
	at     *list.Element // in Files.open, while file is open and not pinned
	pinned bool          // the active segment: file belongs to the appender
	gone   bool          // given up: close when the last reader leaves, then call left
	left   func()        // once, when gone and without readers

	index   []indexEntry
	indexAt *list.Element
}

func (fs *Files) newRef(fsys fsx.FS, name string) *fileRef {
	return &fileRef{files: fs, fs: fsys, name: name}
}

// acquire opens the file if need be. Every acquire needs a release.
func (r *fileRef) acquire() (fsx.File, error) {
	fs := r.files
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if r.file == nil {
		if r.gone {
			return nil, os.ErrNotExist
		}
		// Opening under the lock keeps it to one descriptor; it is rare.
		f, err := r.fs.OpenFile(r.name, os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		r.file = f
		r.at = fs.open.PushFront(r)
	} else if r.at != nil {
		fs.open.MoveToFront(r.at)
	}
	r.users++
	fs.shrinkLocked()
	return r.file, nil
}

// release gives a file back.
func (r *fileRef) release() {
	fs := r.files
	fs.mu.Lock()
	r.users--
	left := r.leaveLocked()
	fs.shrinkLocked()
	fs.mu.Unlock()
	if left != nil {
		left()
	}
}

// leaveLocked closes a given-up file after its last reader.
func (r *fileRef) leaveLocked() (left func()) {
	if !r.gone || r.users > 0 {
		return nil
	}
	r.closeLocked()
	left, r.left = r.left, nil
	return left
}

func (r *fileRef) closeLocked() {
	if r.at != nil {
		r.files.open.Remove(r.at)
		r.at = nil
	}
	if r.file != nil && !r.pinned {
		_ = r.file.Close() // opened for reading: nothing can be lost
	}
	r.file = nil
}

// pin makes the appender's own file the one that readers use.
func (r *fileRef) pin(f fsx.File) {
	r.files.mu.Lock()
	defer r.files.mu.Unlock()
	r.file, r.pinned = f, true
}

// unpin hands the appender's file over to the readers, who close it.
func (r *fileRef) unpin() {
	fs := r.files
	fs.mu.Lock()
	defer fs.mu.Unlock()
	r.pinned = false
	if r.file != nil && r.at == nil {
		r.at = fs.open.PushFront(r)
	}
	fs.shrinkLocked()
}

// abandon is for a file that leaves the log: readers in flight keep it, and
// left (which may be nil) is called after the last of them.
func (r *fileRef) abandon(left func()) {
	fs := r.files
	fs.mu.Lock()
	r.gone, r.left = true, left
	r.pinned = false
	r.setIndexLocked(nil)
	call := r.leaveLocked()
	fs.mu.Unlock()
	if call != nil {
		call()
	}
}

// forget ends the use of a segment when its log is closed. The appender closes its own file.
func (r *fileRef) forget() {
	if r.pinned {
		r.files.mu.Lock()
		r.file = nil
		r.files.mu.Unlock()
	}
	r.abandon(nil)
}

// shrinkLocked closes the least recently used files that nobody reads.
func (fs *Files) shrinkLocked() {
	for at := fs.open.Back(); at != nil && fs.open.Len() > fs.maxOpen; {
		r := at.Value.(*fileRef)
		at = at.Prev()
		if r.users == 0 {
			r.closeLocked()
		}
	}
}

// loaded is the index that setIndex left, nil when it was dropped.
func (r *fileRef) loaded() []indexEntry {
	r.files.mu.Lock()
	defer r.files.mu.Unlock()
	if r.indexAt != nil {
		r.files.indexes.MoveToFront(r.indexAt)
	}
	return r.index
}

// setIndex keeps a sealed segment's index in memory, within the bound.
func (r *fileRef) setIndex(index []indexEntry) {
	fs := r.files
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if r.gone {
		return
	}
	r.setIndexLocked(index)
	for fs.indexBytes > fs.maxIndex && fs.indexes.Len() > 1 {
		fs.indexes.Back().Value.(*fileRef).setIndexLocked(nil)
	}
}

func (r *fileRef) setIndexLocked(index []indexEntry) {
	fs := r.files
	if r.indexAt != nil {
		fs.indexes.Remove(r.indexAt)
		fs.indexBytes -= int64(cap(r.index)) * indexEntryBytes
		r.indexAt, r.index = nil, nil
	}
	if index != nil {
		r.index = index
		r.indexAt = fs.indexes.PushFront(r)
		fs.indexBytes += int64(cap(index)) * indexEntryBytes
	}
}

// SyncLimit bounds how many fsyncs run at once: each takes a thread, and a
// disk does not get faster by a thousand of them.
type SyncLimit struct{ slots chan struct{} }

// NewSyncLimit allows n at once.
func NewSyncLimit(n int) *SyncLimit { return &SyncLimit{make(chan struct{}, max(n, 1))} }

func (s *SyncLimit) acquire() {
	if s != nil {
		s.slots <- struct{}{}
	}
}

func (s *SyncLimit) release() {
	if s != nil {
		<-s.slots
	}
}
