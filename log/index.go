package log

import (
	"encoding/binary"
	"errors"
	"os"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const indexHeadBytes = 32

// encodeIndex is the sidecar of a sealed segment. It names the segment's salt,
// last index and last checksum, so an index that belongs to another use of the
// file, or to the time before a truncation, is not taken for this one's.
func encodeIndex(g *segment, index []indexEntry) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, indexHeadBytes+len(index)*indexEntryBytes)
	b = le.AppendUint64(b, g.header.salt)
	b = le.AppendUint64(b, uint64(g.last))
	b = le.AppendUint64(b, uint64(g.lastCRC))
	b = le.AppendUint64(b, uint64(len(index)))
	for _, e := range index {
		b = le.AppendUint64(b, uint64(e.index))
		b = le.AppendUint64(b, uint64(e.offset))
		b = le.AppendUint64(b, uint64(e.maxTime))
		b = le.AppendUint64(b, uint64(e.pos))
	}
	return seal(indexMagic, owner{g.header.topic, g.header.partition}, b)
}

func decodeIndex(b []byte, g *segment) ([]indexEntry, error) {
	le := binary.LittleEndian
	if len(b) < indexHeadBytes || le.Uint64(b) != g.header.salt || Index(le.Uint64(b[8:])) != g.last || le.Uint64(b[16:]) != uint64(g.lastCRC) {
		return nil, errors.New("index of another segment")
	}
	return indexEntries(b)
}

// indexEntries reads the entries of a sidecar, whichever segment it is of.
func indexEntries(b []byte) ([]indexEntry, error) {
	le := binary.LittleEndian
	if len(b) < indexHeadBytes {
		return nil, errors.New("index is too short")
	}
	n := le.Uint64(b[24:])
	if b = b[indexHeadBytes:]; n > uint64(len(b)) || n*indexEntryBytes != uint64(len(b)) {
		return nil, errors.New("index has a wrong length")
	}
	index := make([]indexEntry, n)
	for k := range index {
		index[k] = indexEntry{Index(le.Uint64(b)), record.Offset(le.Uint64(b[8:])), int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:]))}
		b = b[indexEntryBytes:]
	}
	return index, nil
}

// saveIndex writes a sidecar. It is derived and has a checksum: nothing waits
// for it, and a torn one is rebuilt, so it is not synced.
func (l *Log) saveIndex(g *segment, index []indexEntry) error {
	f, err := l.fs.OpenFile(g.path+indexSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(encodeIndex(g, index), 0)
	return errors.Join(err, f.Close())
}

// indexOf is the segment's index: in memory while it is active, else loaded, else rebuilt.
func (l *Log) indexOf(v view) ([]indexEntry, error) {
	if v.index != nil {
		return v.index, nil
	}
	if index := v.g.ref.loaded(); index != nil {
		return index, nil
	}
	b, err := readSmall(l.fs, v.g.path+indexSuffix, indexMagic, l.cfg.owner())
	if err == nil && b == nil {
		err = os.ErrNotExist
	}
	var index []indexEntry
	if err == nil {
		index, err = decodeIndex(b, v.g)
	}
	if err != nil {
		if index, err = l.rebuildIndex(v.g, err); err != nil {
			return nil, err
		}
	}
	v.g.ref.setIndex(index)
	return index, nil
}

// rebuildIndex reads a sealed segment from end to end, checks all of it, and writes the
// sidecar anew.
func (l *Log) rebuildIndex(g *segment, why error) ([]indexEntry, error) {
	f, err := g.ref.acquire()
	if err != nil {
		return nil, errs.Errorf(errs.KafkaStorageError, "open segment %s: %w", g.path, err)
	}
	defer g.ref.release()
	fresh := newSegment(l.dir, g.header)
	end, err := scan(f, fresh, l.cfg.IndexIntervalBytes, nil)
	if err != nil {
		return nil, err
	}
	if fresh.last != g.last || fresh.lastCRC != g.lastCRC {
		return nil, corruptf("segment %s at %d: it ends with index %d instead of %d: %v", g.path, end.pos, fresh.last, g.last, end.why)
	}
	l.metrics.indexRebuilt()
	l.logger.Warn("segment index was rebuilt", "segment", g.path, "why", why)
	if err := l.saveIndex(g, fresh.index); err != nil {
		l.logger.Warn("segment index was not written", "segment", g.path, "err", err)
	}
	return fresh.index, nil
}
