package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// The small files share one envelope: magic, version, CRC32C of all that
// follows it, length, owner, payload. Version 1 had no owner.
const (
	smallVersion   = 2
	envelopeBytes  = 48
	envelopeBytes1 = 24
)

// owner is the partition that a file belongs to. Every file says it, so that a
// sector of another partition's file, whole and with a good checksum, is not taken for this one's.
type owner struct {
	topic     UUID
	partition int32
}

func (c *Config) owner() owner { return owner{c.Topic, c.Partition} }

var errOwner = errors.New("it belongs to another partition")

const (
	indexMagic    = "TMINDEX\x00"
	startMagic    = "TMSTART\x00"
	logStartMagic = "TMLOGBEG"
)

// maxSmallFile bounds what is read of a small file before its length was checked.
const maxSmallFile = 256 << 20

func seal(magic string, o owner, payload []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, envelopeBytes, envelopeBytes+len(payload))
	copy(b, magic)
	le.PutUint32(b[8:], smallVersion)
	le.PutUint64(b[16:], uint64(len(payload)))
	copy(b[24:], o.topic[:])
	le.PutUint32(b[40:], uint32(o.partition))
	b = append(b, payload...)
	le.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
	return b
}

// unseal returns the payload of what seal made for that owner; the zero owner takes anybody's.
func unseal(magic string, o owner, b []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(b) < envelopeBytes1 || string(b[:8]) != magic {
		return nil, errors.New("wrong magic")
	}
	version, head := le.Uint32(b[8:]), envelopeBytes
	if version == 1 {
		head = envelopeBytes1
	}
	switch {
	case le.Uint64(b[16:]) != uint64(len(b)-head):
		return nil, errors.New("wrong length")
	case crc32.Checksum(b[16:], castagnoli) != le.Uint32(b[12:]):
		return nil, errors.New("wrong checksum")
	case version == 0 || version > smallVersion:
		return nil, fmt.Errorf("%w: format %d, this program reads %d", ErrFormat, version, smallVersion)
	case version > 1 && o != owner{} && o != owner{UUID(b[24:40]), int32(le.Uint32(b[40:]))}:
		return nil, errOwner
	}
	return b[head:], nil
}

// writeDurably writes a file so that its content, whole, precedes its name. The
// caller syncs the directory.
func writeDurably(fsys fsx.FS, name string, data []byte) error {
	f, err := fsys.OpenFile(name+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	failpoint.Hit("log/small/rename")
	return fsys.Rename(name+newSuffix, name)
}

// readSmall reads a small file; it is nil, nil when there is none.
func readSmall(fsys fsx.FS, name, magic string, o owner) ([]byte, error) {
	b, err := fsx.ReadFile(fsys, name, maxSmallFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &unreadError{err}
	}
	payload, err := unseal(magic, o, b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return payload, nil
}

// startState is a segment's start sidecar: what a log that ends where the
// segment begins implies. It is on disk before the segment gets entries.
type startState struct {
	first  Index
	epochs epochTable
	state  []byte // package partition's
}

func (s *startState) encode(o owner) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, uint64(s.first))
	b = le.AppendUint32(b, uint32(len(s.epochs)))
	b = le.AppendUint32(b, uint32(len(s.state)))
	for _, e := range s.epochs {
		b = le.AppendUint64(b, uint64(e.term))
		b = le.AppendUint64(b, uint64(e.start))
	}
	return seal(startMagic, o, append(b, s.state...))
}

func decodeStart(b []byte) (startState, error) {
	le := binary.LittleEndian
	if len(b) < 16 {
		return startState{}, errors.New("start sidecar is too short")
	}
	s := startState{first: Index(le.Uint64(b))}
	epochs, state := uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:]))
	b = b[16:]
	if epochs*16+state != uint64(len(b)) {
		return startState{}, errors.New("start sidecar has a wrong length")
	}
	for range epochs {
		s.epochs = append(s.epochs, epochStart{Term(le.Uint64(b)), record.Offset(le.Uint64(b[8:]))})
		b = b[16:]
	}
	if state > 0 {
		s.state = b
	}
	return s, nil
}

// logStart is the file "logstart": below it nothing is served and nothing is
// expected on disk, even if a lost directory entry brings a segment back.
type logStart struct {
	offset record.Offset
	kept   Index // first index of the oldest segment that belongs to the log
}

const logStartName = "logstart"

func (s logStart) encode(o owner) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(s.offset))
	return seal(logStartMagic, o, binary.LittleEndian.AppendUint64(b, uint64(s.kept)))
}

func readLogStart(fsys fsx.FS, dir string, o owner) (logStart, error) {
	b, err := readSmall(fsys, filepath.Join(dir, logStartName), logStartMagic, o)
	if err != nil || b == nil {
		return logStart{}, err
	}
	if len(b) != 16 {
		return logStart{}, errors.New(logStartName + ": wrong length")
	}
	return logStart{record.Offset(binary.LittleEndian.Uint64(b)), Index(binary.LittleEndian.Uint64(b[8:]))}, nil
}

func writeLogStart(fsys fsx.FS, dir string, o owner, s logStart) error {
	if err := writeDurably(fsys, filepath.Join(dir, logStartName), s.encode(o)); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}
