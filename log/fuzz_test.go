package log

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// goldenSegments are the golden segments, as seeds.
func goldenSegments(f *testing.F) [][]byte {
	names, err := filepath.Glob(filepath.Join(goldenDir, "*"+logSuffix))
	must(f, err)
	var all [][]byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		must(f, err)
		all = append(all, b)
	}
	return all
}

// FuzzFrame: any bytes are a frame that holds what its header says, or an error.
func FuzzFrame(f *testing.F) {
	for _, b := range goldenSegments(f) {
		h, err := decodeHeader(b)
		must(f, err)
		f.Add(b[blockBytes:], h.salt)
	}
	f.Fuzz(func(t *testing.T, b []byte, salt uint64) {
		if len(b) < frameHeaderBytes {
			return
		}
		// With the right checksum in place the checks behind it are reached too.
		h := getFrameHeader(b)
		if lengthSane(h.length) && int(h.length) <= len(b) {
			h.put(b, seedOf(salt))
		}
		fr, err := checkFrame(b, seedOf(salt))
		if err != nil {
			return
		}
		if len(fr.body)+frameHeaderBytes != int(fr.length) || fr.end() < fr.base {
			t.Fatalf("%+v", fr.frameHeader)
		}
		_ = fr.entry()
	})
}

// FuzzOpenSegment: a directory with any bytes as its segment opens or is
// refused; if it opens, every entry in it can be read, and written on.
func FuzzOpenSegment(f *testing.F) {
	for _, b := range goldenSegments(f) {
		f.Add(b, uint16(0), byte(0))
		f.Add(b, uint16(blockBytes+5), byte(1))
		f.Add(b[:len(b)-100], uint16(blockBytes+80), byte(0xff))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16, x byte) {
		b = bytes.Clone(b)
		if int(at) < len(b) {
			b[at] ^= x
		}
		h, err := decodeHeader(b)
		if err != nil {
			h = segHeader{first: 1, topic: testTopic, partition: 3}
		}
		fs := sim.New()
		cfg := testConfig(worldDir)
		cfg.FS, cfg.Topic, cfg.Partition = fs, h.topic, h.partition
		must(t, fs.MkdirAll(worldDir, dirPerm))
		file, err := fs.OpenFile(filepath.Join(worldDir, segmentName(h.base, h.first)+logSuffix), os.O_CREATE|os.O_RDWR, filePerm)
		must(t, err)
		_, err = file.WriteAt(b, 0)
		must(t, err)
		must(t, file.Close())
		_, _ = Inspect(fs, worldDir, nil)
		l, _, err := Open(cfg)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		defer l.Close()
		for i := l.FirstIndex(); i <= l.LastIndex() && i > 0; i++ {
			if _, err := l.Entry(i); err != nil {
				t.Fatalf("entry %d of [%d,%d]: %v", i, l.FirstIndex(), l.LastIndex(), err)
			}
		}
		if l.StartOffset() < l.EndOffset() {
			if _, err := l.Read(l.StartOffset(), l.EndOffset(), 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		e := Entry{Index: l.LastIndex() + 1, Term: 1 << 40, BaseOffset: l.EndOffset()}
		if err := l.Write([]Entry{e}, 0); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzSidecars: the small files decode or are refused.
func FuzzSidecars(f *testing.F) {
	names, err := filepath.Glob(filepath.Join("testdata", "v*", "*"))
	must(f, err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		must(f, err)
		if len(b) < 8192 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g := newSegment("", segHeader{first: 1})
		_, _ = decodeWatermark(owner{}, b)
		_, _ = decodeFooter(b)
		for _, payload := range [][]byte{b, b[min(len(b), envelopeBytes):]} {
			_, _ = decodeStart(payload)
			_, _ = decodeIndex(payload, g)
			_, _ = indexEntries(payload)
		}
		for _, magic := range []string{indexMagic, startMagic, logStartMagic} {
			_, _ = unseal(magic, owner{}, b)
		}
	})
}
