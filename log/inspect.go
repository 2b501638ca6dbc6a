package log

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Report is what Inspect found in a log's directory.
type Report struct {
	Dir         string
	Topic       UUID
	Partition   int32
	Segments    []SegmentInfo
	Frames      int64
	Batches     int64
	Records     int64
	Bytes       int64 // of frames
	FirstIndex  Index
	LastIndex   Index
	StartOffset record.Offset
	EndOffset   record.Offset
	Acked       Index // the acknowledged watermark when the inspection began
	AckedKnown  bool
	Quarantined string // the marker's text, "" without one
	// TailBytes are bytes behind the last valid frame that were never acknowledged: a write
	// under way, or one that a crash tore. Open cuts them.
	TailBytes int64
	Damage    []Damage
}

// SegmentInfo describes one segment.
type SegmentInfo struct {
	Name         string
	FirstIndex   Index
	LastIndex    Index
	BaseOffset   record.Offset
	EndOffset    record.Offset
	PrevIndex    Index
	PrevTerm     Term
	Frames       int64
	Bytes        int64 // where the last frame ends
	FileBytes    int64
	MaxTimestamp int64 // -1 without records
	Sealed       bool
	Recycled     bool
	StateBytes   int // of the start sidecar
	IndexEntries int // of the sidecar; 0 for the active segment
	unreadable   bool
}

// Damage is one thing that is not as it was written.
type Damage struct {
	File string
	Pos  int64
	// Derived damage is of data that Open rebuilds (indexes, footers); nothing is lost.
	Derived bool
	// Padding damage is of bytes between the frames that hold nothing; every record is whole.
	Padding bool
	What    string
}

// String is the damage on one line.
func (d Damage) String() string { return fmt.Sprintf("%s at %d: %s", d.File, d.Pos, d.What) }

// FrameInfo is one frame as it stands in the file. Entry's memory is valid during the visit.
type FrameInfo struct {
	Segment string
	Pos     int64
	Bytes   int64 // alignment included
	CRC     uint32
	PrevCRC uint32
	Commit  Index
	Synced  Index
	Entry   Entry
}

// inspections is how often damage must be seen to be believed: a running broker may
// write, truncate or retire what is being read.
const inspections = 3

// Inspect reads a whole log and checks all of it: every checksum, the chain
// from frame to frame and from segment to segment, every index entry, every record
// batch. It changes nothing, takes no lock, and works beside a running broker. visit, which
// may be nil, sees every valid frame once, oldest first; its error ends the inspection.
func Inspect(fsys fsx.FS, dir string, visit func(FrameInfo) error) (Report, error) {
	for try := 1; ; try++ {
		in := &inspection{fs: fsys, dir: dir, visit: visit, report: Report{Dir: dir}}
		err := in.run()
		if err != nil || len(in.report.Damage) == 0 || try == inspections {
			return in.report, err
		}
		visit = nil
	}
}

type inspection struct {
	fs     fsx.FS
	dir    string
	visit  func(FrameInfo) error
	report Report
	kept   Index
	owner  owner // zero: no segment says it
}

func (in *inspection) run() error {
	r := &in.report
	var err error
	if r.Quarantined, err = quarantined(in.fs, in.dir); err != nil {
		return err
	}
	if in.owner, err = ownerOf(in.fs, in.dir); err != nil {
		return err
	}
	// The watermark is read before the frames: whatever it says was written by then.
	in.readWatermark()
	begin, err := readLogStart(in.fs, in.dir, in.owner)
	if err != nil {
		in.damage(logStartName, 0, false, err)
	}
	r.StartOffset, in.kept = begin.offset, begin.kept
	segments, err := in.segments(begin)
	if err != nil {
		return err
	}
	for k, g := range segments {
		if err := in.segment(g, k == len(segments)-1); err != nil {
			return err
		}
		// Without a report, retention took the segment since the directory was read.
		if k > 0 && len(r.Segments) > 0 {
			if err := g.linked(segments[k-1]); err != nil && !r.Segments[len(r.Segments)-1].unreadable {
				in.damage(filepath.Base(g.path)+logSuffix, 0, false, err)
			}
		}
	}
	in.sum(segments)
	return nil
}

// ownerOf is whom the first readable segment names.
func ownerOf(fsys fsx.FS, dir string) (owner, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return owner{}, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), logSuffix) {
			continue
		}
		if h, err := readHeader(fsys, filepath.Join(dir, e.Name())); err == nil {
			return owner{h.topic, h.partition}, nil
		}
	}
	return owner{}, nil
}

func (in *inspection) sum(segments []*segment) {
	r := &in.report
	if len(segments) > 0 {
		first, last := segments[0], segments[len(segments)-1]
		r.Topic, r.Partition = first.header.topic, first.header.partition
		r.FirstIndex, r.LastIndex, r.EndOffset = first.header.first, last.last, last.end
		r.StartOffset = max(r.StartOffset, first.header.base)
		if h := first.header; h.prevIndex != 0 && h.first != in.kept {
			in.damage(filepath.Base(first.path)+logSuffix, 0, false, errors.New("the segments before this one are missing"))
		}
	}
	if r.AckedKnown && r.LastIndex < r.Acked && len(r.Damage) == 0 {
		in.damage(watermarkName, 0, false, fmt.Errorf("the log ends with index %d, entries up to %d were acknowledged", r.LastIndex, r.Acked))
	}
}

func (in *inspection) damage(file string, pos int64, derived bool, err error) {
	in.report.Damage = append(in.report.Damage, Damage{File: file, Pos: pos, Derived: derived, What: err.Error()})
}

func (in *inspection) padding(file string, pos int64) {
	in.report.Damage = append(in.report.Damage, Damage{File: file, Pos: pos, Padding: true,
		What: "the padding between record batches is not zero: no record is damaged, but something changed the file"})
}

func (in *inspection) readWatermark() {
	b, err := fsx.ReadFile(in.fs, filepath.Join(in.dir, watermarkName), watermarkBytes)
	if err == nil {
		var w watermark
		w, err = decodeWatermark(in.owner, b)
		in.report.Acked = w.index
		in.report.AckedKnown = err == nil
	}
	if err != nil {
		in.damage(watermarkName, 0, true, err)
	}
}

// segments lists what belongs to the log. A segment with an unreadable header is damage.
func (in *inspection) segments(begin logStart) ([]*segment, error) {
	entries, err := in.fs.ReadDir(in.dir)
	if err != nil {
		return nil, err
	}
	var segments []*segment
	for _, e := range entries {
		stem, isLog := strings.CutSuffix(e.Name(), logSuffix)
		base, first, ok := parseSegmentName(stem)
		if !isLog || !ok || first < begin.kept {
			continue
		}
		h, err := readHeader(in.fs, filepath.Join(in.dir, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // retired since the directory was read
		case err == nil && (h.base != base || h.first != first):
			err = fmt.Errorf("the header names base offset %d and first index %d", h.base, h.first)
			fallthrough
		case err != nil:
			in.damage(e.Name(), 0, false, err)
			continue
		}
		segments = append(segments, newSegment(in.dir, h))
	}
	slices.SortFunc(segments, func(a, b *segment) int {
		if a.header.first < b.header.first {
			return -1
		}
		return 1
	})
	return segments, nil
}

// segment reads one segment from end to end.
func (in *inspection) segment(g *segment, newest bool) error {
	name := filepath.Base(g.path)
	f, err := in.fs.OpenFile(g.path+logSuffix, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info := SegmentInfo{
		Name: name, FirstIndex: g.header.first, BaseOffset: g.header.base, PrevIndex: g.header.prevIndex,
		PrevTerm: g.header.prevTerm, Recycled: g.header.recycled, Sealed: !newest,
	}
	check := in.indexChecker(g, &info, newest)
	var failed error
	var past func(int64) // of a sealed segment; what the newest one may hold behind padding, end judges
	if !newest {
		past = func(pos int64) { in.padding(name+logSuffix, pos) }
	}
	end, err := scanPast(f, g, 1<<30, func(fr *frame) {
		info.Frames++
		check.frame(fr, g.maxTime)
		if failed == nil {
			failed = in.frame(name, fr)
		}
	}, past)
	if failed != nil {
		return failed
	}
	if err != nil {
		in.damage(name+logSuffix, end.pos, false, err)
		info.unreadable = true
	}
	check.done(g)
	in.end(f, g, end, newest)
	in.sidecar(g, &info)
	info.LastIndex, info.EndOffset, info.Bytes, info.FileBytes, info.MaxTimestamp = g.last, g.end, g.endPos, end.size, g.maxTime
	in.report.Segments = append(in.report.Segments, info)
	return nil
}

// frame counts a frame, checks the batch in it, and shows it to the visitor.
func (in *inspection) frame(name string, f *frame) error {
	r := &in.report
	r.Frames++
	r.Bytes += f.bytes()
	if f.verdict == Accepted {
		r.Batches++
		batch := f.batch()
		r.Records += int64(batch.Count())
		if _, err := record.Check(batch); err != nil {
			in.damage(name+logSuffix, f.pos, false, fmt.Errorf("record batch at offset %d: %w", f.base, err))
		} else if batch.BaseOffset() != f.base || batch.LeaderEpoch() != record.Epoch(f.term) {
			in.damage(name+logSuffix, f.pos, false, fmt.Errorf("record batch says offset %d and epoch %d, its frame %d and %d",
				batch.BaseOffset(), batch.LeaderEpoch(), f.base, f.term))
		}
	}
	if in.visit == nil {
		return nil
	}
	return in.visit(FrameInfo{
		Segment: name, Pos: f.pos, Bytes: f.bytes(), CRC: f.crc, PrevCRC: f.prev, Commit: f.commit, Synced: f.synced, Entry: f.entry(),
	})
}

// end judges what follows a segment's frames.
func (in *inspection) end(f fsx.File, g *segment, end scanEnd, newest bool) {
	r := &in.report
	name := filepath.Base(g.path) + logSuffix
	switch {
	case !newest && !end.footer:
		// The frames may all be there: whether they are shows at the next segment.
		in.damage(name, end.pos, end.why == nil, errors.Join(errors.New("no footer ends the frames"), end.why))
	case newest && end.why != nil || newest && end.size > alignBlock(end.pos):
		rest, err := lookBehind(f, g, g.endPos)
		switch {
		case err != nil:
			in.damage(name, end.pos, false, err)
		case rest.synced > g.last || r.AckedKnown && r.Acked > g.last:
			in.damage(name, end.pos, false, fmt.Errorf("entries from %d on were acknowledged: %w", g.last+1, orClean(end.why)))
		case rest.ours && !end.footer:
			r.TailBytes = rest.end - g.endPos
		}
	}
}

// sidecar checks the start sidecar. The log opens without it as long as an older one is whole.
func (in *inspection) sidecar(g *segment, info *SegmentInfo) {
	name := filepath.Base(g.path) + startSuffix
	b, err := readSmall(in.fs, g.path+startSuffix, startMagic, in.owner)
	if err == nil && b == nil {
		err = errors.New("start sidecar is missing")
	}
	var s startState
	if err == nil {
		s, err = decodeStart(b)
	}
	if err == nil && s.first != g.header.first {
		err = fmt.Errorf("start sidecar is of a segment from %d on", s.first)
	}
	if err != nil {
		in.damage(name, 0, true, err)
		return
	}
	info.StateBytes = len(s.state)
}

// indexChecker compares a segment's stored index with its frames.
type indexChecker struct {
	in    *inspection
	name  string
	index []indexEntry
	next  int
	off   bool
	bad   error
	info  *SegmentInfo
	bytes []byte
}

func (in *inspection) indexChecker(g *segment, info *SegmentInfo, newest bool) *indexChecker {
	c := &indexChecker{in: in, name: filepath.Base(g.path) + indexSuffix, info: info, off: newest}
	if newest {
		return c
	}
	b, err := readSmall(in.fs, g.path+indexSuffix, indexMagic, in.owner)
	if err == nil && b == nil {
		err = errors.New("index is missing")
	}
	if err == nil {
		// Which segment it belongs to can be compared only when the frames are read.
		c.index, err = indexEntries(b)
	}
	c.bytes, c.bad = b, err
	return c
}

func (c *indexChecker) frame(f *frame, maxTime int64) {
	if c.off || c.bad != nil || c.next == len(c.index) || c.index[c.next].pos > f.pos {
		return
	}
	if want := (indexEntry{f.index, f.base, maxTime, f.pos}); c.index[c.next] != want {
		c.bad = fmt.Errorf("index entry %d is %+v, the frame is %+v", c.next, c.index[c.next], want)
	}
	c.next++
}

func (c *indexChecker) done(g *segment) {
	if c.off {
		return
	}
	if c.bad == nil && c.next < len(c.index) {
		c.bad = fmt.Errorf("index has %d entries that point behind the frames", len(c.index)-c.next)
	}
	if c.bad == nil {
		_, c.bad = decodeIndex(c.bytes, g)
	}
	if c.bad != nil {
		c.in.damage(c.name, 0, true, c.bad)
	}
	c.info.IndexEntries = len(c.index)
}
