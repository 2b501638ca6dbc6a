package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/proto/record"
)

const originMagic = "TMORIGIN"

// originHead is the fixed part of an encoded origin.
const originHead = 3*8 + 4 + 4

// Origin is all that is left of the entries before a log's first one. A log made from it elsewhere
// takes the entries that follow as if it had held those before.
type Origin struct {
	Index  Index         // of the entry before the first
	Term   Term          // of that entry
	Offset record.Offset // at which the log ends behind that entry
	State  []byte        // package partition's, as it was given to Roll
	epochs epochTable
}

// Origin tells where the log begins. ErrNotFound while it still has its very first entry. Retention may
// take the oldest segment meanwhile: then it fails, and the next call tells the new beginning.
func (l *Log) Origin() (Origin, error) {
	l.mu.RLock()
	if len(l.segments) == 0 || l.segments[0].header.prevIndex == 0 {
		l.mu.RUnlock()
		return Origin{}, ErrNotFound
	}
	g := l.segments[0]
	l.mu.RUnlock()
	s, err := readStart(l, g)
	if err != nil {
		return Origin{}, fmt.Errorf("start sidecar of segment %s: %w", filepath.Base(g.path), err)
	}
	h := g.header
	return Origin{Index: h.prevIndex, Term: h.prevTerm, Offset: h.base, State: s.state, epochs: s.epochs}, nil
}

// Encode writes the origin of a log of that topic and partition, with a checksum; docs/format/log.md draws it.
func (o Origin) Encode(topic UUID, partition int32) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, originHead+16*len(o.epochs)+len(o.State))
	b = le.AppendUint64(b, uint64(o.Index))
	b = le.AppendUint64(b, uint64(o.Term))
	b = le.AppendUint64(b, uint64(o.Offset))
	b = le.AppendUint32(b, uint32(len(o.epochs)))
	b = le.AppendUint32(b, uint32(len(o.State)))
	for _, e := range o.epochs {
		b = le.AppendUint64(b, uint64(e.term))
		b = le.AppendUint64(b, uint64(e.start))
	}
	return seal(originMagic, owner{topic, partition}, append(b, o.State...))
}

// DecodeOrigin reads what Encode wrote for the same topic and partition. The state shares b's memory.
func DecodeOrigin(b []byte, topic UUID, partition int32) (Origin, error) {
	le := binary.LittleEndian
	if len(b) >= envelopeBytes1 && le.Uint32(b[8:]) == 1 {
		return Origin{}, fmt.Errorf("origin: %w", errOwner) // version 1 of the envelope names none
	}
	b, err := unseal(originMagic, owner{topic, partition}, b)
	if err != nil {
		return Origin{}, fmt.Errorf("origin: %w", err)
	}
	if len(b) < originHead {
		return Origin{}, errors.New("origin is too short")
	}
	o := Origin{Index: Index(le.Uint64(b)), Term: Term(le.Uint64(b[8:])), Offset: record.Offset(le.Uint64(b[16:]))}
	epochs, state := uint64(le.Uint32(b[24:])), uint64(le.Uint32(b[28:]))
	b = b[originHead:]
	if epochs*16+state != uint64(len(b)) {
		return Origin{}, errors.New("origin has a wrong length")
	}
	for range epochs {
		o.epochs = append(o.epochs, epochStart{Term(le.Uint64(b)), record.Offset(le.Uint64(b[8:]))})
		b = b[16:]
	}
	if state > 0 {
		o.State = b
	}
	return o, o.check()
}

func (o Origin) check() error {
	if o.Index == 0 || o.Index+1 == 0 || o.Offset < 0 {
		return fmt.Errorf("origin at entry %d, offset %d", o.Index, o.Offset)
	}
	var last epochStart
	for k, e := range o.epochs {
		if e.term > o.Term || e.start < 0 || e.start > o.Offset || k > 0 && (e.term <= last.term || e.start <= last.start) {
			return fmt.Errorf("origin at term %d, offset %d has epoch %d from offset %d on, after epoch %d from %d on",
				o.Term, o.Offset, e.term, e.start, last.term, last.start)
		}
		last = e
	}
	return nil
}

// Create makes a log without entries that begins at o, durably, in cfg.Dir, which exists and
// is empty; Open opens it. The caller makes the directory's own name durable. What a crash leaves is no
// log: nobody may open the directory before Create has returned.
func Create(cfg Config, o Origin) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return fmt.Errorf("create log %s: %w", cfg.Dir, err)
	}
	l := &Log{cfg: cfg, dir: cfg.Dir, fs: cfg.FS, logger: cfg.Logger, metrics: cfg.Metrics}
	l.writeOp, l.syncOp = cfg.Watchdog.Gauge(cfg.Dir+" write"), cfg.Watchdog.Gauge(cfg.Dir+" sync")
	defer l.writeOp.Close()
	defer l.syncOp.Close()
	if err := l.writeOp.step(func() error { return l.createAt(o) }); err != nil {
		return fmt.Errorf("create log %s: %w", cfg.Dir, err)
	}
	return nil
}

func (l *Log) createAt(o Origin) error {
	h := segHeader{first: o.Index + 1, base: o.Offset, prevIndex: o.Index, prevTerm: o.Term}
	g, err := l.createSegment(h, o.epochs, o.State, false)
	if err != nil {
		return err
	}
	g.ref.forget()
	if err := g.file.Close(); err != nil {
		return err
	}
	// Without the watermark a segment that vanished would look like an empty log.
	if err := writeDurably(l.fs, filepath.Join(l.dir, watermarkName), encodeWatermark(l.cfg.owner(), o.Index, false)); err != nil {
		return err
	}
	return writeLogStart(l.fs, l.dir, l.cfg.owner(), logStart{offset: o.Offset, kept: h.first})
}
