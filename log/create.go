package log

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// randomSalt makes the frames of each use of a file its own.
func randomSalt() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails; see crypto/rand
	return binary.LittleEndian.Uint64(b[:])
}

// createFirst makes the first segment of an empty log, which begins wherever
// its first entry does.
func (l *Log) createFirst(e Entry) error {
	h := segHeader{first: e.Index, base: e.BaseOffset}
	g, err := l.createSegment(h, nil, nil, false)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = []*segment{g}
	l.start = max(l.start, h.base)
	l.state, l.replayFrom = nil, h.first
	l.last.Store(uint64(g.last))
	l.end.Store(int64(g.end))
	return nil
}

// createSegment makes an empty segment, durably. Callers hold appendMu.
//
// Each step makes the next one safe:
//
//  1. The start sidecar, synced under a temporary name and renamed. A segment
//     must not get entries before it: they could not be replayed from here.
//  2. The file with its header, synced under a temporary name. A .log file thus
//     always has a whole header, and a damaged one is damage, never a crash.
//  3. The rename. Either name may survive a crash without the other: a segment
//     without entries and without sidecar is removed by Open, a sidecar without
//     segment too.
//  4. The directory. Only then may entries be written: an fsync of the file
//     would otherwise acknowledge bytes whose name can vanish.
func (l *Log) createSegment(h segHeader, epochs epochTable, state []byte, busy bool) (*segment, error) {
	h.topic, h.partition, h.salt = l.cfg.Topic, l.cfg.Partition, l.cfg.salt()
	if bug.On(bug.ReuseSalt) {
		h.salt = 1
	}
	g := newSegment(l.dir, h)
	sidecar := startState{first: h.first, epochs: epochs, state: state}
	if err := writeDurably(l.fs, g.path+startSuffix, sidecar.encode(l.cfg.owner())); err != nil {
		return nil, err
	}
	failpoint.Hit("log/create/sidecar")
	f, err := l.createFile(g, busy)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("log/create/renamed")
	if bug.On(bug.NoDirSync) {
		l.adopt(g, f)
		return g, nil
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	failpoint.Hit("log/create/done")
	l.adopt(g, f)
	return g, nil
}

// createFile makes the segment's file, from the pool when the log is busy.
func (l *Log) createFile(g *segment, busy bool) (fsx.File, error) {
	if busy {
		if f, err := l.cfg.Pool.take(l, g); f != nil || err != nil {
			return f, err
		}
	}
	name := g.path + logSuffix
	f, err := l.fs.OpenFile(name+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return nil, err
	}
	if err := l.stampFile(f, g); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := l.fs.Rename(name+newSuffix, name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// stampFile writes the header, durably.
func (l *Log) stampFile(f fsx.File, g *segment) error {
	if _, err := f.WriteAt(g.header.encode(), 0); err != nil {
		return err
	}
	failpoint.Hit("log/create/header")
	return l.fsync(f)
}

// adopt makes f the file that the segment is appended to and read from.
func (l *Log) adopt(g *segment, f fsx.File) {
	g.file = f
	g.ref = l.cfg.Files.newRef(l.fs, g.path+logSuffix)
	g.ref.pin(f)
}

// parentLevels is how many directories above a log belong to it: topic, "topics", data directory.
const parentLevels = 3

// syncParents makes the names that lead to dir durable. A process that died between
// making a directory and syncing the one above leaves a log that looks
// complete and vanishes as a whole; the watermark file is made after this, so a log
// that has one need not do it again.
func syncParents(fsys fsx.FS, dir string) error {
	for range parentLevels {
		parent := filepath.Dir(dir)
		if parent == dir {
			return nil
		}
		if err := fsys.SyncDir(parent); err != nil {
			return err
		}
		dir = parent
	}
	return nil
}

// ensureDir makes dir and what lies above it, durably: the names of new
// directories are synced from the top down.
func ensureDir(fsys fsx.FS, dir string) error {
	if _, err := fsys.Stat(dir); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := ensureDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, dirPerm); err != nil {
		return err
	}
	return fsys.SyncDir(parent)
}
