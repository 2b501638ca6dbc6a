package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

const (
	watermarkName  = "acked"
	watermarkMagic = "TMACKED\x00"
	watermarkBytes = 48
	watermarkOld   = 32 // of version 1, which named no owner
)

// watermark is the file that remembers how far the log was synced, apart from
// the log itself: it tells a torn tail (above it: cut) from a damaged
// acknowledged entry (at or below it: never cut).
//
// It is written after each fsync and not synced, so after a power cut it may be
// lower than what was acknowledged, never higher than what was durable: only a
// truncation takes entries away, and that lowers the file durably first.
type watermark struct {
	f     fsx.File
	owner owner
	old   bool // in the file stands version 1
	index Index
	// cut says that bytes were cut off the log since the watermark was last
	// raised. Open makes the cut once more: had its fsync failed, the kernel may show the
	// shorter file and the disk still hold the longer one.
	cut bool
}

func encodeWatermark(o owner, i Index, cut bool) []byte {
	b := make([]byte, watermarkBytes)
	copy(b, watermarkMagic)
	binary.LittleEndian.PutUint32(b[8:], smallVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(o.partition))
	binary.LittleEndian.PutUint64(b[16:], uint64(i))
	if cut {
		b[24] = 1
	}
	copy(b[28:], o.topic[:])
	binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
	return b
}

// decodeWatermark reads the watermark of that owner; the zero owner takes anybody's.
func decodeWatermark(o owner, b []byte) (w watermark, err error) {
	le := binary.LittleEndian
	if len(b) < watermarkOld || string(b[:8]) != watermarkMagic {
		return w, errors.New("no watermark")
	}
	sum := watermarkBytes - 4
	if w.old = le.Uint32(b[8:]) == 1; w.old {
		sum = watermarkOld - 4
	} else if len(b) != watermarkBytes || le.Uint32(b[8:]) != smallVersion {
		return w, errors.New("no watermark")
	}
	if crc32.Checksum(b[:sum], castagnoli) != le.Uint32(b[sum:]) {
		return w, errors.New("watermark checksum")
	}
	if !w.old && o != (owner{}) && o != (owner{UUID(b[28:44]), int32(le.Uint32(b[12:]))}) {
		return w, errOwner
	}
	w.index, w.cut = Index(le.Uint64(b[16:])), b[24] == 1
	return w, nil
}

// openWatermark opens the file. known is false when there is none or it is damaged: then
// nobody can tell a torn tail from a damaged one, and Open must not cut.
func openWatermark(fsys fsx.FS, dir string, o owner) (w *watermark, known bool, err error) {
	name := filepath.Join(dir, watermarkName)
	f, err := fsys.OpenFile(name, os.O_RDWR, filePerm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	b := make([]byte, watermarkBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, errors.Join(err, f.Close())
	}
	got, err := decodeWatermark(o, b[:n])
	got.f, got.owner = f, o
	return &got, err == nil, nil
}

// createWatermark makes the file at 0, durably. The log is empty, or its tail
// is known to be whole.
func createWatermark(fsys fsx.FS, dir string, o owner) (*watermark, error) {
	name := filepath.Join(dir, watermarkName)
	if err := writeDurably(fsys, name, encodeWatermark(o, 0, false)); err != nil {
		return nil, err
	}
	if err := fsys.SyncDir(dir); err != nil {
		return nil, err
	}
	f, err := fsys.OpenFile(name, os.O_RDWR, filePerm)
	if err != nil {
		return nil, err
	}
	return &watermark{f: f, owner: o}, nil
}

// raise notes that the entries up to i are durable.
func (w *watermark) raise(i Index) error {
	if i <= w.index {
		return nil
	}
	return w.write(i, false)
}

// lower takes the watermark down to i, durably, before what is above i goes.
func (w *watermark) lower(i Index) error {
	if err := w.write(min(i, w.index), true); err != nil {
		return err
	}
	failpoint.Hit("log/watermark/lower")
	return w.f.Sync()
}

func (w *watermark) write(i Index, cut bool) error {
	if n, err := w.f.WriteAt(encodeWatermark(w.owner, i, cut), 0); err != nil {
		return fmt.Errorf("%d of %d bytes: %w", n, watermarkBytes, err)
	}
	w.index, w.cut = i, cut
	return nil
}
