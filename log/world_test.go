package log

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// world is a log beside a slice that knows what it must hold.
type world struct {
	fs  *sim.FS
	cfg Config
	log *Log
	rng *rand.Rand

	first   Index // of entries[0]
	entries []Entry
	acked   Index         // what the log said is durable
	start   record.Offset // what the log must not serve below
	// Where it started before a write of the start that a disk may lose.
	startEarlier record.Offset
	commit       Index
	term         Term
	// While TruncateSuffix runs: the entries that were there before.
	ghost []Entry
	// While SetStart or Retain runs, the start may be anywhere up to here.
	mayStart record.Offset
	poisoned int
	pool     bool
	tag      byte // ends every state
}

const worldDir = "/data/topics/t/0"

func newWorld(seed uint64) *world {
	w := &world{fs: sim.New(), pool: seed%2 == 1, rng: rand.New(rand.NewPCG(seed, 1)), term: 1, first: 1}
	w.cfg = Config{
		Dir: worldDir, Topic: testTopic, SegmentBytes: MinSegmentBytes, IndexIntervalBytes: 4096,
		Clock: clock.NewManual(time.UnixMilli(5_000_000)), Logger: slog.New(slog.DiscardHandler), Budget: NewBudget(128 << 10), Files: NewFiles(2, 4096),
		OnPoison: func(error) { w.poisoned++ },
	}
	return w
}

// open opens the log on the world's file system and compares.
func (w *world) open() error {
	w.cfg.FS = w.fs
	if w.pool {
		p, err := OpenPool(w.fs, "/data/pool", 4*MinSegmentBytes)
		if err != nil {
			return err
		}
		p.min = 3 * blockBytes
		w.cfg.Pool = p
	}
	l, _, err := Open(w.cfg)
	if err != nil {
		return err
	}
	w.log = l
	if err := w.adopt(); err != nil {
		return err
	}
	return w.compare()
}

// adopt accepts what a crash may do and nothing else: an unacknowledged tail may
// be gone, a truncation that was under way may not have happened.
func (w *world) adopt() error {
	last := w.log.LastIndex()
	if w.ghost != nil && last >= w.first+Index(len(w.entries)) {
		w.entries = w.ghost
	}
	w.ghost = nil
	if last < w.acked {
		return fmt.Errorf("log ends at %d, %d was durable", last, w.acked)
	}
	if n := int(last - w.first + 1); last != 0 && n > len(w.entries) {
		return fmt.Errorf("log ends at %d, only %d entries were written", last, len(w.entries))
	} else if last != 0 {
		w.entries = w.entries[:n]
	} else {
		w.entries = nil
	}
	start := w.log.StartOffset()
	if start < w.start || start > max(w.start, w.mayStart) {
		return fmt.Errorf("log starts at %d, not in [%d,%d]", start, w.start, w.mayStart)
	}
	w.start, w.mayStart = start, start
	w.acked = last
	if w.log.Durable() != last {
		return fmt.Errorf("after Open %d of %d is durable", w.log.Durable(), last)
	}
	return nil
}

func (w *world) last() Index { return w.first + Index(len(w.entries)) - 1 }

func (w *world) end() record.Offset {
	if len(w.entries) == 0 {
		return 0
	}
	return entryEnd(w.entries[len(w.entries)-1])
}

func entryEnd(e Entry) record.Offset {
	if e.Verdict != Accepted {
		return e.BaseOffset
	}
	return e.BaseOffset + record.Offset(record.Raw(e.Body[e.MetaBytes:]).LastOffsetDelta()) + 1
}

// compare reads everything back.
func (w *world) compare() error {
	l := w.log
	if len(w.entries) == 0 {
		return nil
	}
	if l.LastIndex() != w.last() || l.EndOffset() != w.end() || l.FirstIndex() < w.first {
		return fmt.Errorf("log [%d,%d] ends at %d; want [%d,%d], %d", l.FirstIndex(), l.LastIndex(), l.EndOffset(), w.first, w.last(), w.end())
	}
	for i := l.FirstIndex(); i <= l.LastIndex(); i++ {
		got, err := l.Entry(i)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if err := sameEntry(got, w.entries[i-w.first]); err != nil {
			return err
		}
	}
	if first := l.FirstIndex(); first > w.first {
		if stub, err := l.Entry(first - 1); err != nil || stub.Term != w.entries[first-1-w.first].Term {
			return fmt.Errorf("stub at %d: %+v, %w", first-1, stub, err)
		}
	}
	if err := w.compareState(); err != nil {
		return err
	}
	return w.compareBatches()
}

func sameEntry(got, want Entry) error {
	if got.Index != want.Index || got.Term != want.Term || got.Verdict != want.Verdict || got.BaseOffset != want.BaseOffset ||
		got.Type != want.Type || got.MetaBytes != want.MetaBytes || !bytes.Equal(got.Body, want.Body) {
		return fmt.Errorf("entry %d/%d of %d bytes, want %d/%d of %d", got.Index, got.Term, len(got.Body), want.Index, want.Term, len(want.Body))
	}
	return nil
}

// compareState: the state that Roll was given names the index at which it was taken.
func (w *world) compareState() error {
	state, from := w.log.ActiveState()
	if state == nil {
		if from > w.first {
			return fmt.Errorf("no state, replay from %d", from)
		}
		return nil
	}
	if got := Index(binary.LittleEndian.Uint64(state)); got != from {
		return fmt.Errorf("state of %d, replay from %d", got, from)
	}
	return nil
}

func (w *world) compareBatches() error {
	l := w.log
	next := l.StartOffset()
	for next < w.end() {
		batches, err := l.Read(next, w.end(), 1+w.rng.IntN(30000))
		if err != nil {
			return fmt.Errorf("read at %d: %w", next, err)
		}
		for _, b := range batches {
			if b.BaseOffset() > next || b.EndOffset() <= next {
				return fmt.Errorf("batch [%d,%d) read at %d", b.BaseOffset(), b.EndOffset(), next)
			}
			if e := l.EpochAt(next); e != b.LeaderEpoch() {
				return fmt.Errorf("epoch at %d is %d, batch says %d", next, e, b.LeaderEpoch())
			}
			next = b.EndOffset()
		}
	}
	return nil
}

// step does one random thing. An error is the log's.
func (w *world) step() error {
	switch n := w.rng.IntN(20); {
	case n < 9:
		return w.write()
	case n < 14:
		return w.sync()
	case n < 16:
		return w.roll()
	case n < 17:
		return w.truncate()
	case n < 18:
		return w.retain()
	case n < 19:
		return w.setStart()
	default:
		return w.reopen()
	}
}

var sharedBatches = map[[2]int][]byte{}

func (w *world) batch() []byte {
	n, size := 1+w.rng.IntN(3), []int{10, 500, 5000}[w.rng.IntN(3)]
	key := [2]int{n, size}
	if sharedBatches[key] == nil {
		sharedBatches[key] = batchOf(n, n, size, int64(1_000_000+size))
	}
	return sharedBatches[key]
}

func (w *world) write() error {
	if w.rng.IntN(6) == 0 {
		w.term++
	}
	var batch []Entry
	next, end := w.last()+1, w.end()
	for range 1 + w.rng.IntN(4) {
		e := Entry{Index: next, Term: w.term, BaseOffset: end, AppendedAt: 1_000_000}
		if w.rng.IntN(4) == 0 {
			e.Body = bytes.Repeat([]byte{byte(next)}, w.rng.IntN(40))
		} else {
			meta := binary.LittleEndian.AppendUint64(nil, w.rng.Uint64())
			e.Verdict, e.MetaBytes, e.Body = Accepted, len(meta), append(meta, w.batch()...)
		}
		batch = append(batch, e)
		next, end = next+1, entryEnd(e)
	}
	w.entries = append(w.entries[:len(w.entries):len(w.entries)], batch...)
	if w.rng.IntN(5) == 0 && w.acked > w.commit {
		w.commit += Index(w.rng.IntN(int(w.acked-w.commit) + 1))
	}
	return w.log.Write(batch, w.commit)
}

func (w *world) sync() error {
	err := w.log.Sync()
	w.acked = max(w.acked, w.log.Durable())
	return err
}

func (w *world) roll() error {
	err := w.log.Roll(append(binary.LittleEndian.AppendUint64(nil, uint64(w.last()+1)), w.tag))
	w.acked = max(w.acked, w.log.Durable())
	return err
}

func (w *world) truncate() error {
	low := max(w.commit+1, w.log.FirstIndex())
	if len(w.entries) == 0 || low > w.last() {
		return nil
	}
	return w.truncateAt(low + Index(w.rng.IntN(int(w.last()-low)+1)))
}

func (w *world) truncateAt(i Index) error {
	w.ghost = w.entries
	w.entries = w.entries[:i-w.first]
	w.acked = min(w.acked, i-1)
	w.term++
	_, _, err := w.log.TruncateSuffix(i)
	if err == nil {
		w.ghost = nil
	}
	return err
}

func (w *world) retain() error {
	w.mayStart = w.end()
	w.log.SetRetention(Retention{Age: -1, Bytes: int64(w.rng.IntN(3 * MinSegmentBytes))})
	_, err := w.log.Retain(w.commit)
	if err == nil {
		w.start = w.log.StartOffset()
	}
	return err
}

func (w *world) setStart() error {
	o := w.log.StartOffset() + record.Offset(w.rng.IntN(4))
	if w.commit < w.first || o > entryEnd(w.entries[w.commit-w.first]) {
		return nil // only committed offsets are given up
	}
	w.mayStart = max(w.mayStart, o)
	err := w.log.SetStart(o)
	if err == nil {
		w.start = max(w.start, o)
	}
	return err
}

func (w *world) reopen() error {
	if err := w.log.Close(); err != nil {
		return err
	}
	w.acked = w.log.Durable()
	return w.open()
}

// run does n steps, comparing now and then.
func (w *world) run(n int) error {
	for range n {
		if err := w.step(); err != nil {
			return err
		}
		if w.rng.IntN(8) == 0 {
			if err := w.compare(); err != nil {
				return errors.Join(errModel, err)
			}
		}
	}
	return nil
}

// errModel says that the log and the slice differ.
var errModel = errors.New("log differs from the model")
