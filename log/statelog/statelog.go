// Package statelog stores the Raft log of a state group: tidwall/wal behind a strict adapter.
//
// tidwall/wal alone has no checksums, repairs no torn tail, syncs no directory, corrupts
// itself after a failed write and races with itself on reads. The adapter's
// invariants:
//   - Every entry is framed with CRC32C, index and term, and is checked when it is read.
//   - What Append has stored is on disk. The first error poisons the log: every later
//     call fails, and no second sync is tried.
//   - A log is one file, and files never change but by appends. Whatever removes entries writes the rest
//     into a new generation, makes that durable, and then switches CURRENT.
//   - At open, damage above what was acknowledged is torn and cut (the cut bytes are kept aside); damage at
//     or below it is ErrCorrupt, and nothing is touched.
//   - One mutex guards all.
//
// Memory: tidwall/wal keeps the whole file in memory, and growing the buffer may
// double it for a moment. A log takes at most 3 times Size, so its owner takes
// snapshots by Size. It is meant for megabytes, not for records.
package statelog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Errors of this package.
var (
	// ErrCorrupt says that acknowledged entries are damaged. The files stay as they are.
	ErrCorrupt = errs.New(errs.KafkaStorageError, "state log corrupt")
	// ErrNotFound says that an entry is not in the log.
	ErrNotFound = errors.New("state log: entry not found")
	// ErrClosed is what a closed log answers.
	ErrClosed = errors.New("state log: closed")
	// ErrOutOfOrder refuses entries that do not follow the last one. Nothing was stored.
	ErrOutOfOrder = errors.New("state log: index out of order")
)

// Config says where a log lives.
type Config struct {
	Dir string
	// FS must be the machine's file system or stand in front of it: tidwall/wal uses package os.
	FS     fsx.FS
	Logger *slog.Logger
}

// Recovery tells what Open found.
type Recovery struct {
	CutBytes int64 // of a torn tail that was cut
	Rewrote  bool  // entries that were never acknowledged were made durable
}

// Log is one state group's Raft log. It is safe for concurrent use.
type Log struct {
	cfg Config

	mu    sync.Mutex
	gen   *generation // guarded by mu
	last  uint64      // guarded by mu; gen.first-1 when empty
	first uint64      // guarded by mu; of the entries, equal to gen.first
	err   error       // guarded by mu; the poison, or ErrClosed
}

// Open recovers the log in cfg.Dir, creating it when there is none.
func Open(cfg Config) (*Log, Recovery, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{cfg: cfg}
	rec, err := l.open()
	if err != nil {
		return nil, rec, fmt.Errorf("open state log %s: %w", cfg.Dir, err)
	}
	return l, rec, nil
}

func (l *Log) open() (rec Recovery, err error) {
	if err := l.cfg.FS.MkdirAll(l.cfg.Dir, 0o700); err != nil {
		return rec, err
	}
	// A process that died between the rename of CURRENT and the sync of the directory leaves a
	// name that a power cut may take back: nothing may be acknowledged on top of it.
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return rec, err
	}
	n, err := readCurrent(l.cfg.FS, l.cfg.Dir)
	if err != nil {
		return rec, err
	}
	if n == 0 {
		if err := l.expectNoData(); err != nil {
			return rec, err
		}
		// The directory's own name may not be durable yet.
		if err := l.cfg.FS.SyncDir(filepath.Dir(l.cfg.Dir)); err != nil {
			return rec, err
		}
		return rec, l.switchTo(1, 1, nil)
	}
	if rec, err = l.recover(n); err != nil {
		return rec, err
	}
	if err := l.sweep(); err != nil {
		return rec, errors.Join(err, l.gen.close())
	}
	return rec, nil
}

// expectNoData refuses to start afresh where CURRENT was lost: it is durable before the first entry is.
func (l *Log) expectNoData() error {
	names, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, d := range names {
		if !strings.HasPrefix(d.Name(), "g-") {
			continue
		}
		dir := filepath.Join(l.cfg.Dir, d.Name())
		files, err := l.cfg.FS.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			info, err := l.cfg.FS.Stat(filepath.Join(dir, f.Name()))
			if err != nil {
				return err
			}
			if info.Size() > 0 && f.Name() != ackedName {
				return fmt.Errorf("%s is missing and %s holds entries: %w", currentName, dir, ErrCorrupt)
			}
		}
	}
	return nil
}

// recover checks generation n before tidwall/wal sees it.
func (l *Log) recover(n uint64) (rec Recovery, err error) {
	dir := generationDir(l.cfg.Dir, n)
	name, first, err := segmentOf(l.cfg.FS, dir)
	if err != nil {
		return rec, err
	}
	b, err := fsx.ReadFile(l.cfg.FS, filepath.Join(dir, name), maxFile)
	if err != nil {
		return rec, err
	}
	acked := readAcked(l.cfg.FS, dir, n)
	s := scan(b, first, n)
	if certain := max(acked, s.proof); s.last < certain {
		return rec, fmt.Errorf("entry %d of %s is damaged or missing, and entries up to %d were acknowledged: %w; "+
			"replace this replica, or restore the directory", s.last+1, filepath.Join(dir, name), certain, ErrCorrupt)
	}
	if s.good == len(b) && (s.last == acked || len(s.frames) == 0) {
		l.gen, err = attach(l.cfg.FS, l.cfg.Dir, n, first)
		l.first, l.last = first, s.last
		return rec, err
	}
	// Entries above the watermark may lie in the page cache alone: not synced before a kill, or
	// forgotten by a sync that failed, which a later sync of the same file would not
	// notice. A new file is certain.
	rec = Recovery{CutBytes: int64(len(b) - s.good), Rewrote: true}
	if err := l.keepTorn(n, s.last+1, b[s.good:]); err != nil {
		return rec, err
	}
	entries := make([]Entry, len(s.frames))
	for i, f := range s.frames {
		entries[i], _, _ = decodeFrame(f, n)
	}
	return rec, l.switchTo(n+1, first, entries)
}

// keepTorn puts cut bytes aside for people. A few are kept.
func (l *Log) keepTorn(n, index uint64, cut []byte) error {
	if len(cut) == 0 {
		return nil
	}
	l.cfg.Logger.Warn("cut the torn tail of a state log", "dir", l.cfg.Dir, "index", index, "bytes", len(cut))
	names, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	var torn []string
	for _, d := range names {
		if strings.HasPrefix(d.Name(), tornPrefix) {
			torn = append(torn, d.Name())
		}
	}
	for ; len(torn) >= keepTorn; torn = torn[1:] {
		if err := l.cfg.FS.Remove(filepath.Join(l.cfg.Dir, torn[0])); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("%s%016x-%d", tornPrefix, n, index)
	return fsx.WriteFile(l.cfg.FS, filepath.Join(l.cfg.Dir, name), cut, 0o600)
}

// switchTo writes a new generation with the given entries, makes it durable and makes it
// the current one. A crash before CURRENT is renamed leaves the old one in force.
func (l *Log) switchTo(n, first uint64, entries []Entry) error {
	g, err := create(l.cfg.FS, l.cfg.Dir, n, first)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		// All of them are durable when CURRENT names them, whatever the damage later.
		last := entries[len(entries)-1].Index
		if err := g.append(first, encode(entries, n, last)); err != nil {
			return errors.Join(err, g.abandon())
		}
	}
	failpoint.Hit("statelog/switch/before")
	if err := writeCurrent(l.cfg.FS, l.cfg.Dir, n); err != nil {
		return errors.Join(err, g.abandon())
	}
	failpoint.Hit("statelog/switch/done")
	old := l.gen
	l.gen, l.first, l.last = g, first, first+uint64(len(entries))-1
	if old != nil {
		return errors.Join(old.close(), l.sweep())
	}
	return nil
}

func encode(entries []Entry, generation, synced uint64) [][]byte {
	frames := make([][]byte, len(entries))
	for i, e := range entries {
		size := frameHead + len(e.Extensions) + len(e.Data)
		frames[i] = appendFrame(make([]byte, 0, size), e, generation, synced)
	}
	return frames
}

// sweep removes generations that are not current. Coming back after a crash, they are
// removed at the next open, so nothing is synced.
func (l *Log) sweep() error {
	names, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, d := range names {
		dir := filepath.Join(l.cfg.Dir, d.Name())
		if !strings.HasPrefix(d.Name(), "g-") || dir == l.gen.dir {
			continue
		}
		if err := l.cfg.FS.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		failpoint.Hit("statelog/sweep/removed")
	}
	return nil
}

// First is the index of the first entry, 0 when there is none.
func (l *Log) First() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last < l.first {
		return 0
	}
	return l.first
}

// Last is the index of the last entry, 0 when there is none.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last < l.first {
		return 0
	}
	return l.last
}

// Size is the length of the file in bytes.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gen.size
}

// Entry reads one entry. Its slices belong to the caller.
func (l *Log) Entry(index uint64) (Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return Entry{}, l.err
	}
	e, err := l.entryLocked(index)
	if err != nil {
		return Entry{}, err
	}
	e.Data, e.Extensions = bytes.Clone(e.Data), bytes.Clone(e.Extensions)
	return e, nil
}

func (l *Log) entryLocked(index uint64) (Entry, error) {
	if index < l.first || index > l.last {
		return Entry{}, fmt.Errorf("entry %d of [%d,%d]: %w", index, l.first, l.last, ErrNotFound)
	}
	frame, err := l.gen.wal.Read(index)
	if err != nil {
		return Entry{}, fmt.Errorf("read entry %d: %w", index, err)
	}
	e, _, ok := decodeFrame(frame, l.gen.n)
	if !ok || e.Index != index {
		return Entry{}, fmt.Errorf("read entry %d: %w", index, ErrCorrupt)
	}
	return e, nil
}

// Append stores entries durably. They must follow the last one; an empty log
// takes any first index. After an error, except ErrOutOfOrder, it is unknown how many were stored, and
// the log takes no more.
func (l *Log) Append(entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	next := entries[0].Index
	if err := l.checkLocked(entries); err != nil {
		return err
	}
	if l.last < l.first && next != l.first {
		if err := l.switchTo(l.gen.n+1, next, nil); err != nil {
			return l.poisonLocked("start at another index", err)
		}
	}
	if err := l.gen.append(next, encode(entries, l.gen.n, l.last)); err != nil {
		return l.poisonLocked("append", err)
	}
	l.last = next + uint64(len(entries)) - 1
	return nil
}

func (l *Log) checkLocked(entries []Entry) error {
	next := entries[0].Index
	if empty := l.last < l.first; next == 0 || !empty && next != l.last+1 {
		return fmt.Errorf("append entry %d after %d: %w", next, l.last, ErrOutOfOrder)
	}
	for i, e := range entries {
		if e.Index != next+uint64(i) {
			return fmt.Errorf("append entry %d after %d: %w", e.Index, next+uint64(i)-1, ErrOutOfOrder)
		}
		if n := len(e.Data) + len(e.Extensions); n > MaxEntryBytes {
			return errs.Errorf(errs.MessageTooLarge, "append entry %d of %d bytes: the limit is %d", e.Index, n, MaxEntryBytes)
		}
	}
	return nil
}

// DeleteRange removes the entries from index first through last, durably: a prefix, a suffix, or all.
// What is not there is ignored.
func (l *Log) DeleteRange(first, last uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.last < l.first || first > last || last < l.first || first > l.last {
		return nil
	}
	keepFrom, keepTo := l.first, first-1
	if first <= l.first {
		keepFrom, keepTo = min(last, l.last)+1, l.last
	} else if last < l.last {
		return fmt.Errorf("delete entries %d to %d of [%d,%d]: that would leave a hole", first, last, l.first, l.last)
	}
	var keep []Entry
	for i := keepFrom; i <= keepTo; i++ {
		e, err := l.entryLocked(i)
		if err != nil {
			return l.poisonLocked("delete", err)
		}
		keep = append(keep, e)
	}
	if err := l.switchTo(l.gen.n+1, keepFrom, keep); err != nil {
		return l.poisonLocked("delete", err)
	}
	return nil
}

// Close closes the log. All that was appended is durable already.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.err, ErrClosed) {
		return nil
	}
	poisoned := l.err != nil
	l.err = ErrClosed
	if poisoned {
		return l.gen.abandon()
	}
	return l.gen.close()
}

func (l *Log) poisonLocked(op string, err error) error {
	l.err = fmt.Errorf("state log %s: %s: %w", l.cfg.Dir, op, err)
	return l.err
}
