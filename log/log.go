// Package log stores one partition's record batches on one disk, as the frames
// of a Raft log.
//
// A Log has one appender and any number of readers. What holds:
//
//   - Indexes are dense from FirstIndex to LastIndex, and the offsets of accepted
//     batches are dense from StartOffset to EndOffset; StartOffset never goes
//     back, EndOffset only by TruncateSuffix.
//   - Entries are readable once Write returned, and survive a power cut once
//     Durable has reached them; Durable is raised only after an fsync returned.
//   - Nothing is served from the disk unless the CRC of its frame holds.
//   - Bytes that were acknowledged are never cut: damage at or below the
//     acknowledged watermark quarantines the log instead.
//   - A failed write, sync or close is final: the log is poisoned, and nothing
//     is tried a second time.
//
// docs/format/log.md draws every file byte by byte.
package log

import (
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Index is a Raft index. Term is a Raft term.
type (
	Index uint64
	Term  uint64
)

// UUID identifies a topic on disk.
type UUID [16]byte

// EntryType is what Raft says the entry is (raft.LogType's numbers).
type EntryType uint8

// Verdict is what became of an entry when it was stored. Only Accepted
// entries carry a record batch with offsets; all others are void: they take an
// index and no offset. The numbers from 16 on belong to package partition.
type Verdict uint8

const (
	Void     Verdict = 0 // Raft's own entries
	Accepted Verdict = 1
)

// Entry is one Raft entry as the log stores it.
type Entry struct {
	Index      Index
	Term       Term
	Type       EntryType
	Verdict    Verdict
	BaseOffset record.Offset // of the batch when Accepted; the log end offset otherwise
	// Body is MetaBytes bytes that belong to package partition, then the
	// record batch when Accepted (exactly one). Write stamps base offset and
	// leader epoch into the batch in place. Entries read from the log share
	// its memory: never change them.
	Body      []byte
	MetaBytes int
	// AppendedAt is the proposer's wall-clock time in ms.
	AppendedAt int64
}

// Config says where a log lives and how it behaves. Zero values of the
// numbers mean the defaults; nil helpers mean none (or, for Budget and Files,
// small ones of this log's own).
type Config struct {
	Dir       string
	Topic     UUID
	Partition int32
	// SegmentBytes is where the active segment is sealed; recovery rereads one
	// segment, so it also bounds restart time. 64 MiB by default.
	SegmentBytes int64
	// SegmentAge seals the active segment when its first record is older. 0: never.
	SegmentAge time.Duration
	// IndexIntervalBytes is how much of a segment may lie between two index
	// entries: what a cold lookup walks over, and the index's memory. 16 KiB by default.
	IndexIntervalBytes int
	// ClockGrace is how long a wall clock that jumped ahead must stay ahead
	// before age retention believes it. 1 h by default; negative: no time at all.
	ClockGrace time.Duration

	FS     fsx.FS
	Clock  clock.Clock
	Logger *slog.Logger
	// Metrics are shared by the logs of a broker.
	Metrics *Metrics

	// Budget bounds the tail memory of all logs of a broker together.
	Budget *Budget
	// Files bounds open descriptors and loaded indexes of all logs of a broker together.
	Files *Files
	// Watchdog notices writes and syncs that hang.
	Watchdog *Watchdog
	// Space knows how full the disk is.
	Space *Space
	// Pool keeps given-up segment files for new segments.
	Pool *Pool
	// Syncs bounds how many fsyncs run at once.
	Syncs *SyncLimit

	// OnPoison is called once, without locks, when the log is poisoned. The owner
	// of the process ends it: a log that failed a write must not go on as a member
	// of its Raft group.
	OnPoison func(error)
	// OnCorrupt is called once, without locks, when a read finds damage; the
	// quarantine marker is on disk by then.
	OnCorrupt func(error)

	salt func() uint64 // of new segments; tests make it predictable
}

// Retention says what a log may give up. The zero Retention keeps nothing
// longer than it must. Before SetRetention a log has no limits.
type Retention struct {
	Age   time.Duration // <0: no limit
	Bytes int64         // <0: no limit
}

// Recovery tells what Open found.
type Recovery struct {
	Commit         Index // highest commit index that the frames carry, clamped to the last index
	Repaired       bool  // a torn tail was cut
	CutBytes       int64
	IndexesRebuilt int
}

// Stats describes the log for metrics and describe commands.
type Stats struct {
	SizeBytes int64
	Segments  int
	TailBytes int64
}

// Log is one partition's log. One goroutine appends (Write, Roll,
// TruncateSuffix, Close); Sync may run beside it, and any number read.
//
// Lock order: appendMu, syncMu, mu. Only appendMu and syncMu are held across disk calls.
type Log struct {
	cfg     Config
	dir     string
	fs      fsx.FS
	logger  *slog.Logger
	metrics *Metrics
	lock    io.Closer
	acked   *watermark // guarded by syncMu
	writeOp *Gauge     // what the watchdog looks at
	syncOp  *Gauge

	appendMu sync.Mutex // one appender at a time; also held by Retain and SetStart
	syncMu   sync.Mutex // one fsync at a time, and nothing that changes the active file beside it

	mu         sync.RWMutex
	segments   []*segment    // guarded by mu; oldest first, the last one is active; empty until the first entry
	epochs     epochTable    // guarded by mu
	start      record.Offset // guarded by mu; log start offset
	state      []byte        // guarded by mu; see ActiveState
	replayFrom Index         // guarded by mu; see ActiveState
	commit     Index         // guarded by mu; highest commit index seen, never above last
	retention  Retention     // guarded by mu
	segBytes   int64         // guarded by mu
	segAge     time.Duration // guarded by mu
	age        ageClock      // guarded by appendMu
	opened     clock.Mono    // immutable
	last       atomic.Uint64 // LastIndex; written under mu
	end        atomic.Int64  // EndOffset; written under mu
	durable    atomic.Uint64 // written under syncMu
	ahead      readahead     // has its own lock
	// changes grows by two when Retain takes segments away, and by one at the begin and at the end of
	// a truncation: while it is odd, readers may find less in a file than they expect.
	changes    atomic.Uint64
	failed     atomic.Pointer[failure]
	announced  atomic.Bool // OnPoison was called
	corrupt    atomic.Pointer[failure]
	corruptMu  sync.Mutex  // one writer of the quarantine marker
	retainedAt Index       // guarded by appendMu; LastIndex at the last Retain
	frames     []frame     // guarded by appendMu; scratch of Write
	closed     atomic.Bool // written under appendMu
}

type failure struct{ err error }

// FirstIndex and LastIndex are 0, 0 while the log is empty and was never
// trimmed; First may be Last+1 after everything was given up.
func (l *Log) FirstIndex() Index {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.segments) == 0 {
		return 0
	}
	if a := l.active(); len(l.segments) == 1 && a.last < a.header.first && a.header.prevIndex == 0 {
		return 0 // everything was truncated again
	}
	return l.segments[0].header.first
}

// LastIndex is the index of the newest entry.
func (l *Log) LastIndex() Index { return Index(l.last.Load()) }

// Durable is the highest index that survives a power cut.
func (l *Log) Durable() Index { return Index(l.durable.Load()) }

// StartOffset is the first offset that is kept; EndOffset is the next to be written.
func (l *Log) StartOffset() record.Offset {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.start
}

// EndOffset is the offset that the next accepted record gets.
func (l *Log) EndOffset() record.Offset { return record.Offset(l.end.Load()) }

// SetRetention changes what Retain gives up.
func (l *Log) SetRetention(r Retention) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retention = r
}

// SetSegment changes where the active segment is sealed. Zero bytes mean the default.
func (l *Log) SetSegment(bytes int64, age time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segBytes, l.segAge = clampSegmentBytes(bytes), age
}

// NeedsRoll tells whether the active segment shall be sealed before n more bytes.
// NeedsRoll(0) is for a log that nobody writes to: it is also true when all of the active
// segment is older than retention allows, because only sealed segments can be given up.
// (Not before a write: an import of old records would get a segment for each.)
func (l *Log) NeedsRoll(n int) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	a := l.active()
	if a == nil || a.last < a.header.first {
		return false
	}
	if alignBlock(a.endPos)+alignBlock(int64(n)+frameHeaderBytes) > l.segBytes {
		return true
	}
	now := l.cfg.Clock.Now()
	if n == 0 && l.retention.Age >= 0 && now.Sub(a.youngest()) > l.retention.Age {
		return true
	}
	age := now.UnixMilli() - a.firstAppended
	return l.segAge > 0 && a.firstAppended > 0 && age > l.segAge.Milliseconds()
}

// LowSpace tells whether the disk is so full that nothing new may be proposed.
// What was proposed already still fits: that is what the reserve is for.
func (l *Log) LowSpace() bool { return l.cfg.Space.Low() }

// Stalled tells whether a write or sync hangs since longer than the watchdog's limit.
func (l *Log) Stalled() bool { return l.writeOp.Stalled() || l.syncOp.Stalled() }

// Stats adds up the log's sizes.
func (l *Log) Stats() Stats {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s := Stats{Segments: len(l.segments)}
	for _, g := range l.segments {
		s.SizeBytes += alignBlock(g.endPos)
		s.TailBytes += tailBytes(g.tail)
	}
	return s
}

// segmentBytes is where segments are sealed now.
func (l *Log) segmentBytes() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.segBytes
}

// active is the segment that is appended to, nil in an empty log. Callers hold mu or appendMu.
func (l *Log) active() *segment {
	if len(l.segments) == 0 {
		return nil
	}
	return l.segments[len(l.segments)-1]
}
