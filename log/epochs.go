package log

import (
	"sort"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// epochStart says that a term's first offset is start.
type epochStart struct {
	term  Term
	start record.Offset
}

// epochTable maps terms to their first offsets, ascending in both. A term that
// ended without a record is not in it: it has no offsets to tell about.
type epochTable []epochStart

// note takes a frame of a term that begins at offset o.
func (t *epochTable) note(term Term, o record.Offset) {
	n := len(*t)
	if n > 0 && (*t)[n-1].term >= term {
		return
	}
	if n > 0 && (*t)[n-1].start == o {
		n--
	}
	// The table is copied, never changed in place, where readers could see it:
	// appends go beyond the length they hold, and a replaced last element is copied first.
	*t = append((*t)[:n:n], epochStart{term, o})
}

// trim forgets terms that ended at or below the log start.
func (t *epochTable) trim(start record.Offset) {
	k := 0
	for k+1 < len(*t) && (*t)[k+1].start <= start {
		k++
	}
	*t = append(epochTable(nil), (*t)[k:]...)
}

// EpochEnd is the largest epoch at or below e that the log holds, and the
// offset at which it ends (the log end for the newest). Without such an epoch it is -1, -1.
func (l *Log) EpochEnd(e record.Epoch) (record.Epoch, record.Offset) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if e < 0 {
		return -1, -1
	}
	t := l.epochs
	n := sort.Search(len(t), func(k int) bool { return t[k].term > Term(e) })
	switch {
	case n == 0:
		return -1, -1
	case n == len(t):
		return record.Epoch(t[n-1].term), l.EndOffset()
	default:
		return record.Epoch(t[n-1].term), t[n].start
	}
}

// EpochAt is the epoch of the record at o, -1 where the log holds none.
func (l *Log) EpochAt(o record.Offset) record.Epoch {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if o < l.start || o >= l.EndOffset() {
		return -1
	}
	t := l.epochs
	n := sort.Search(len(t), func(k int) bool { return t[k].start > o })
	if n == 0 {
		return -1
	}
	return record.Epoch(t[n-1].term)
}
