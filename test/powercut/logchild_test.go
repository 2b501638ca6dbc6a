package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// writer is a child at work on a data log.
type writer struct {
	profile
	log    *log.Log
	term   log.Term
	commit log.Index
	acked  log.Index
	said   lines

	metrics *prometheus.Registry
	taken   float64 // segments that were recycled
}

func runLog(p profile) error {
	reg := prometheus.NewRegistry()
	cfg := log.Config{
		Dir: filepath.Join(p.dir, "data"), Topic: log.UUID{1}, SegmentBytes: log.MinSegmentBytes,
		FS: fsx.OS(), Logger: slog.New(slog.DiscardHandler), Metrics: log.NewMetrics(reg),
	}
	if p.pool {
		pool, err := log.OpenPool(cfg.FS, filepath.Join(p.dir, "pool"), 8<<20)
		if err != nil {
			return err
		}
		cfg.Pool, cfg.SegmentBytes = pool, 1<<20+1<<19
	}
	l, found, err := log.Open(cfg)
	if err != nil {
		return err
	}
	w := &writer{profile: p, log: l, term: 1, commit: found.Commit, metrics: reg}
	if err := w.tellAll(found.Repaired); err != nil {
		return err
	}
	for {
		if err := w.step(); err != nil {
			return errors.Join(err, w.poisoned())
		}
	}
}

// poisoned is an error when the log goes on after a failure.
func (w *writer) poisoned() error {
	if err := w.log.Sync(); !errors.Is(err, log.ErrPoisoned) {
		say("n sync after a failure: %v", err)
	}
	return nil
}

// tellAll reports what the log holds.
func (w *writer) tellAll(repaired bool) error {
	l := w.log
	w.acked = l.LastIndex()
	w.said.add("have %d %d %d", l.FirstIndex(), l.LastIndex(), l.StartOffset())
	for i := max(1, l.FirstIndex()); i <= l.LastIndex(); i++ {
		e, err := l.Entry(i)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		w.term = e.Term
		w.said.add("e %d %d %d", i, e.Term, sumOf(e))
	}
	if l.Durable() != l.LastIndex() {
		return fmt.Errorf("after Open %d of %d is durable", l.Durable(), l.LastIndex())
	}
	if w.commit > l.LastIndex() {
		return fmt.Errorf("the commit index %d is above the last index %d", w.commit, l.LastIndex())
	}
	if l.FirstIndex() == l.LastIndex()+1 && l.FirstIndex() > 1 { // all was given up
		stub, err := l.Entry(l.LastIndex())
		if err != nil {
			return fmt.Errorf("stub at %d: %w", l.LastIndex(), err)
		}
		w.term = stub.Term
	}
	w.said.add("ready %v", repaired)
	w.said.say()
	w.term++
	return nil
}

// sumOf leaves out what Write stamps, and takes in the offset instead.
func sumOf(e log.Entry) uint32 {
	head := binary.LittleEndian.AppendUint64([]byte{byte(e.Type), byte(e.Verdict)}, uint64(e.BaseOffset))
	if e.Verdict != log.Accepted {
		return sum(head, e.Body)
	}
	return sum(head, e.Body[:e.MetaBytes], e.Body[e.MetaBytes+16:])
}

func (w *writer) step() error {
	switch n := w.rng.IntN(100); {
	case n < 50:
		return w.write()
	case n < 88:
		return w.sync()
	case n < 90:
		return w.roll()
	case n < 94:
		return w.truncate()
	default:
		return w.retain()
	}
}

func (w *writer) write() error {
	if w.rng.IntN(20) == 0 {
		w.term++
	}
	w.commit += log.Index(w.rng.IntN(int(w.acked-w.commit) + 1))
	next, end := w.log.LastIndex()+1, w.log.EndOffset()
	var batch []log.Entry
	bytes := 0
	for range 1 + w.rng.IntN(4) {
		e := w.entry(next, end)
		batch = append(batch, e)
		bytes += len(e.Body)
		w.said.add("w %d %d %d", e.Index, e.Term, sumOf(e))
		next++
		if e.Verdict == log.Accepted {
			end += record.Offset(record.Raw(e.Body[e.MetaBytes:]).LastOffsetDelta()) + 1
		}
	}
	if w.log.NeedsRoll(bytes) {
		w.said.Reset()
		return w.roll()
	}
	w.said.say()
	err := w.log.Write(batch, w.commit)
	if w.nosync && err == nil {
		say("a %d", w.log.LastIndex())
	}
	return err
}

func (w *writer) entry(i log.Index, end record.Offset) log.Entry {
	e := log.Entry{Index: i, Term: w.term, BaseOffset: end, AppendedAt: int64(i)}
	if w.rng.IntN(6) == 0 {
		e.Type, e.Body = 1, w.noise(w.rng.IntN(100))
		return e
	}
	size := 10 + w.rng.IntN(500)
	if w.pool {
		size = 20_000 + w.rng.IntN(80_000)
	} else if w.rng.IntN(4) == 0 {
		size = 10_000
	}
	b := record.NewBuilder(record.BuilderConfig{})
	for k := range 1 + w.rng.IntN(3) {
		b.Append(record.Record{Timestamp: int64(i) + int64(k), Value: w.noise(size)})
	}
	raw, err := b.Build()
	if err != nil {
		panic(err) // the arguments are wrong
	}
	e.MetaBytes = 8
	e.Verdict, e.Body = log.Accepted, append(w.noise(e.MetaBytes), raw...)
	return e
}

// noise is bytes that differ from those of any other write.
func (w *writer) noise(n int) []byte {
	b := make([]byte, 0, n+8)
	for x := w.rng.Uint64(); len(b) < n; x += 0x9e3779b97f4a7c15 {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b[:n]
}

func (w *writer) sync() error {
	if w.nosync {
		return nil
	}
	if err := w.log.Sync(); err != nil {
		return err
	}
	w.ack()
	return nil
}

func (w *writer) ack() {
	if w.log.Durable() > w.acked {
		w.acked = w.log.Durable()
		say("a %d", w.acked)
	}
}

func (w *writer) roll() error {
	if err := w.log.Roll(binary.LittleEndian.AppendUint64(nil, uint64(w.log.LastIndex()+1))); err != nil {
		return err
	}
	say("n roll")
	if n := w.recycled(); n > w.taken {
		w.taken = n
		say("n recycle")
	}
	w.ack()
	return nil
}

func (w *writer) truncate() error {
	low, last := max(w.commit+1, w.log.FirstIndex()), w.log.LastIndex()
	if low > last || low == 0 || w.nosync {
		return nil
	}
	i := low + log.Index(w.rng.IntN(int(last-low)+1))
	w.term++
	say("t %d", i)
	if _, _, err := w.log.TruncateSuffix(i); err != nil {
		return err
	}
	w.acked = min(w.acked, i-1)
	say("td\nn truncate")
	return nil
}

func (w *writer) retain() error {
	if w.nosync {
		return nil
	}
	w.log.SetRetention(log.Retention{Age: -1, Bytes: w.rng.Int64N(4 << 20)})
	say("r %d", w.commit)
	n, err := w.log.Retain(w.commit)
	if err != nil {
		return err
	}
	say("rd %d", w.log.FirstIndex())
	if n > 0 {
		say("n retain")
	}
	return nil
}

// recycled is how many segments were made of the files of old ones.
func (w *writer) recycled() float64 {
	families, err := w.metrics.Gather()
	if err != nil {
		panic(err) // our own metrics do not fit together
	}
	for _, f := range families {
		if f.GetName() == "tidemark_log_recycled_segments_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return 0
}
