package log

import (
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	logSuffix   = ".log"
	indexSuffix = ".idx"
	startSuffix = ".start"
	newSuffix   = ".new" // a file that is not whole yet; removed by Open

	filePerm = 0o600
	dirPerm  = 0o700
)

// segment is one file of the log. Its state is guarded by Log.mu while it is
// active and never changes once it is sealed, except for tail and doomed.
type segment struct {
	header segHeader
	path   string // without a suffix
	seed   uint32

	last          Index // header.first-1 while empty
	lastTerm      Term
	lastCRC       uint32
	end           record.Offset
	endPos        int64 // end of the last frame; the next Write goes to the block after it
	maxTime       int64 // largest record timestamp, -1 without records
	appendedAt    int64 // largest of the frames
	firstAppended int64 // of the first frame, 0 while empty
	commit        Index
	sealed        bool

	index   []indexEntry // while active; sealed segments have it in a sidecar
	indexed int64        // position after which the next index entry is due
	tail    []*chunk     // what of the segment is in memory, oldest first

	file fsx.File // while active, guarded by Log.appendMu and syncMu
	ref  *fileRef // what readers use
}

// indexEntry points at a frame. The segment's three sparse indexes (offset,
// Raft index, time) are columns of one table.
type indexEntry struct {
	index   Index
	offset  record.Offset // base offset of the frame
	maxTime int64         // largest record timestamp before the frame, -1 for none
	pos     int64
}

const indexEntryBytes = 32

func segmentName(base record.Offset, first Index) string {
	return fmt.Sprintf("%020d-%020d", base, first)
}

// parseSegmentName splits "<base offset>-<first index>".
func parseSegmentName(name string) (base record.Offset, first Index, ok bool) {
	b, f, found := strings.Cut(name, "-")
	if !found || len(b) != 20 || len(f) != 20 {
		return 0, 0, false
	}
	base64, err := strconv.ParseInt(b, 10, 64)
	if err != nil || base64 < 0 {
		return 0, 0, false
	}
	first64, err := strconv.ParseUint(f, 10, 64)
	if err != nil || first64 == 0 {
		return 0, 0, false
	}
	return record.Offset(base64), Index(first64), true
}

// newSegment is an empty segment of that header.
func newSegment(dir string, h segHeader) *segment {
	return &segment{
		header: h, path: filepath.Join(dir, segmentName(h.base, h.first)), seed: seedOf(h.salt),
		last: h.first - 1, lastTerm: h.prevTerm, lastCRC: h.prevCRC, end: h.base, endPos: blockBytes,
		maxTime: -1, indexed: -1,
	}
}

// note takes a frame into the segment's account. It is the one place where
// scan, write and recovery agree on what a frame changes.
func (g *segment) note(f *frame, interval int) {
	if g.indexed < 0 || f.pos-g.indexed >= int64(interval) {
		g.index = append(g.index, indexEntry{f.index, f.base, g.maxTime, f.pos})
		g.indexed = f.pos
	}
	if g.firstAppended == 0 {
		g.firstAppended = f.appendedAt
	}
	g.last, g.lastTerm, g.lastCRC, g.end = f.index, f.term, f.crc, f.end()
	g.endPos = f.pos + int64(f.length)
	g.appendedAt = max(g.appendedAt, f.appendedAt)
	g.commit = max(g.commit, f.commit)
	if f.verdict == Accepted {
		g.maxTime = max(g.maxTime, f.batch().MaxTimestamp())
	}
}

// follows checks that a frame is the one that comes after the segment's last.
func (g *segment) follows(f *frame) error {
	switch {
	case f.prev != g.lastCRC:
		return fmt.Errorf("frame %d does not continue the chain", f.index)
	case f.index != g.last+1:
		return fmt.Errorf("frame %d after %d", f.index, g.last)
	case f.term < g.lastTerm:
		return fmt.Errorf("frame %d: term %d after %d", f.index, f.term, g.lastTerm)
	case f.base != g.end:
		return fmt.Errorf("frame %d: base offset %d, the log ends at %d", f.index, f.base, g.end)
	}
	return nil
}

func (g *segment) footer() segFooter {
	return segFooter{
		salt: g.header.salt, last: g.last, lastTerm: g.lastTerm, lastCRC: g.lastCRC, end: g.end, endPos: g.endPos,
		maxTime: g.maxTime, appendedAt: g.appendedAt, commit: g.commit,
	}
}

// setFooter fills a sealed segment's account from its footer.
func (g *segment) setFooter(f segFooter) {
	g.last, g.lastTerm, g.lastCRC, g.end, g.endPos = f.last, f.lastTerm, f.lastCRC, f.end, f.endPos
	g.maxTime, g.appendedAt, g.commit, g.sealed = f.maxTime, f.appendedAt, f.commit, true
}

// linked checks that g begins where the segment before it ends.
func (g *segment) linked(before *segment) error {
	h := g.header
	if h.prevIndex != before.last || h.prevTerm != before.lastTerm || h.prevCRC != before.lastCRC || h.base != before.end || h.first != before.last+1 {
		return fmt.Errorf("segment %s begins after index %d, term %d; the one before it ends with index %d, term %d, offset %d",
			segmentName(h.base, h.first), h.prevIndex, h.prevTerm, before.last, before.lastTerm, before.end)
	}
	return nil
}

// byIndex finds the segment that holds index i. Callers hold mu.
func byIndex(segments []*segment, i Index) *segment {
	n := sort.Search(len(segments), func(k int) bool { return segments[k].header.first > i })
	if n == 0 || i > segments[n-1].last {
		return nil
	}
	return segments[n-1]
}

// byOffset finds the place of the segment that holds offset o, the last one
// that begins at or below it. Callers hold mu.
func byOffset(segments []*segment, o record.Offset) int {
	n := sort.Search(len(segments), func(k int) bool { return segments[k].header.base > o })
	return n - 1
}

// indexFor finds where to start walking towards index i.
func indexFor(index []indexEntry, i Index) int64 {
	n := sort.Search(len(index), func(k int) bool { return index[k].index > i })
	if n == 0 {
		return blockBytes
	}
	return index[n-1].pos
}

// offsetFor finds where to start walking towards offset o. Void frames share the
// offset that follows them, so it goes to the first entry of a run.
func offsetFor(index []indexEntry, o record.Offset) int64 {
	n := sort.Search(len(index), func(k int) bool { return index[k].offset > o })
	if n == 0 {
		return blockBytes
	}
	return index[n-1].pos
}

// timeFor finds where to start walking towards the first batch at or after ts.
func timeFor(index []indexEntry, ts int64) int64 {
	n := sort.Search(len(index), func(k int) bool { return index[k].maxTime >= ts })
	if n == 0 {
		return blockBytes
	}
	return index[n-1].pos
}
