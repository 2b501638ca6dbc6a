package log

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// MinSegmentBytes is the smallest segment there is: whoever lets people choose a size refuses less.
const MinSegmentBytes = 64 << 10

const (
	lockName            = "LOCK"
	defaultSegmentBytes = 64 << 20
	maxSegmentBytes     = 1 << 30
	defaultInterval     = 16 << 10
)

func clampSegmentBytes(n int64) int64 {
	if n <= 0 {
		return defaultSegmentBytes
	}
	return min(max(n, MinSegmentBytes), maxSegmentBytes)
}

// withDefaults fills a copy of the configuration.
func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("log: no directory")
	}
	if c.FS == nil {
		c.FS = fsx.OS()
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Budget == nil {
		c.Budget = NewBudget(4 << 20)
	}
	if c.Files == nil {
		c.Files = NewFiles(8, 1<<20)
	}
	if c.IndexIntervalBytes <= 0 {
		c.IndexIntervalBytes = defaultInterval
	}
	if c.salt == nil {
		c.salt = randomSalt
	}
	c.SegmentBytes = clampSegmentBytes(c.SegmentBytes)
	return c, nil
}

// Open recovers the log in cfg.Dir, creating it when the directory is empty.
// It fails with ErrCorrupt (the log is quarantined, the data stays), ErrLocked,
// or the file system's error.
func Open(cfg Config) (*Log, Recovery, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, Recovery{}, err
	}
	if err := ensureDir(cfg.FS, cfg.Dir); err != nil {
		return nil, Recovery{}, fmt.Errorf("open log %s: %w", cfg.Dir, err)
	}
	lock, err := cfg.FS.Lock(filepath.Join(cfg.Dir, lockName))
	if err != nil {
		return nil, Recovery{}, fmt.Errorf("open log %s: %w", cfg.Dir, err)
	}
	l := &Log{
		cfg: cfg, dir: cfg.Dir, fs: cfg.FS, logger: cfg.Logger, metrics: cfg.Metrics, lock: lock,
		retention: Retention{Age: -1, Bytes: -1}, segBytes: cfg.SegmentBytes, segAge: cfg.SegmentAge, opened: clock.Monotonic(),
	}
	l.writeOp, l.syncOp = cfg.Watchdog.Gauge(cfg.Dir+" write"), cfg.Watchdog.Gauge(cfg.Dir+" sync")
	found, err := l.recover()
	if err != nil {
		if errors.Is(err, ErrCorrupt) && !errors.Is(err, errMarked) {
			quarantine(&cfg, err)
		}
		return nil, Recovery{}, errors.Join(fmt.Errorf("open log %s: %w", cfg.Dir, err), l.closeFiles())
	}
	var newest int64
	for _, g := range l.segments {
		newest = max(newest, g.appendedAt)
	}
	if newest > 0 {
		l.age.learn(time.UnixMilli(newest), 0)
	}
	return l, found, nil
}

// errMarked says that the log was quarantined before.
var errMarked = errors.New("quarantine marker")

// recover brings the log from what the disk holds to what it promises.
func (l *Log) recover() (Recovery, error) {
	var found Recovery
	reason, err := quarantined(l.fs, l.dir)
	if err != nil {
		return found, err
	}
	if reason != "" {
		return found, fmt.Errorf("%w: %w: %s", ErrCorrupt, errMarked, strings.TrimSpace(reason))
	}
	begin, err := readLogStart(l.fs, l.dir, l.cfg.owner())
	if errors.Is(err, ErrFormat) || unread(err) {
		return found, err
	}
	if err != nil {
		return found, corruptf("%w", err)
	}
	// Names that an earlier process could not make durable look like any
	// other now; what is acknowledged from here on must not stand on them.
	if err := l.fs.SyncDir(l.dir); err != nil {
		return found, err
	}
	files, err := l.tidy(begin)
	if err != nil {
		return found, err
	}
	mark, known, err := openWatermark(l.fs, l.dir, l.cfg.owner())
	if err != nil {
		return found, err
	}
	l.acked = mark
	if l.segments, err = l.loadHeaders(files); err != nil {
		return found, err
	}
	l.start = begin.offset
	if mark == nil {
		if err := syncParents(l.fs, l.dir); err != nil {
			return found, err
		}
	}
	if len(l.segments) == 0 {
		if known && mark.index > 0 {
			return found, corruptf("no segment is left, entries up to %d were acknowledged", mark.index)
		}
	} else if err := l.recoverSegments(files, begin, known, &found); err != nil {
		return found, err
	}
	if !known || mark.old {
		if err := l.renewWatermark(); err != nil {
			return found, err
		}
	}
	return found, nil
}

// tidy removes what a crash left half made: files under temporary names,
// sidecars without a segment, segments below the log start.
func (l *Log) tidy(begin logStart) (map[string]bool, error) {
	entries, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	files := make(map[string]bool, len(entries))
	for _, e := range entries {
		files[e.Name()] = true
	}
	var gone []string
	for name := range files {
		stem := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, logSuffix), indexSuffix), startSuffix)
		_, first, ok := parseSegmentName(stem)
		switch {
		case strings.HasSuffix(name, newSuffix):
			gone = append(gone, name)
		case ok && first < begin.kept, ok && !files[stem+logSuffix]:
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	for _, name := range gone {
		if err := l.fs.Remove(filepath.Join(l.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		delete(files, name)
	}
	if len(gone) > 0 {
		return files, l.fs.SyncDir(l.dir)
	}
	return files, nil
}

// loadHeaders reads every segment's header block and sorts the segments.
func (l *Log) loadHeaders(files map[string]bool) ([]*segment, error) {
	var segments []*segment
	for name := range files {
		stem, isLog := strings.CutSuffix(name, logSuffix)
		base, first, ok := parseSegmentName(stem)
		if !isLog || !ok {
			continue
		}
		h, err := readHeader(l.fs, filepath.Join(l.dir, name))
		if err != nil {
			return nil, err
		}
		if h.base != base || h.first != first || h.topic != l.cfg.Topic || h.partition != l.cfg.Partition {
			return nil, corruptf("segment %s: its header names topic %x, partition %d, base offset %d, first index %d",
				name, h.topic, h.partition, h.base, h.first)
		}
		segments = append(segments, newSegment(l.dir, h))
	}
	slices.SortFunc(segments, func(a, b *segment) int {
		if a.header.first < b.header.first {
			return -1
		}
		return 1
	})
	return segments, nil
}

func readHeader(fsys fsx.FS, name string) (segHeader, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return segHeader{}, err
	}
	defer f.Close()
	b := make([]byte, blockBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return segHeader{}, err
	}
	h, bad := decodeHeader(b[:n])
	if errors.Is(bad, ErrFormat) {
		return h, fmt.Errorf("segment %s: %w", filepath.Base(name), bad)
	}
	if bad != nil {
		return h, corruptf("segment %s: %w", filepath.Base(name), errors.Join(bad, err))
	}
	return h, nil
}

// renewWatermark replaces a watermark that is missing, unreadable or of an old format. Every entry that is left was
// found whole and is synced by now.
func (l *Log) renewWatermark() error {
	if l.acked != nil {
		_ = l.acked.f.Close() // what it says is known
	}
	w, err := createWatermark(l.fs, l.dir, l.cfg.owner())
	if err != nil {
		return err
	}
	l.acked = w
	return w.raise(l.Durable())
}

// closeFiles gives everything back that Open took.
func (l *Log) closeFiles() error {
	var all []error
	for _, g := range l.segments {
		if g.ref != nil {
			g.ref.forget()
		}
		if g.file != nil {
			all = append(all, g.file.Close())
			g.file = nil
		}
		l.cfg.Budget.drop(g.tail)
		g.tail = nil
	}
	if l.acked != nil {
		all = append(all, l.acked.f.Close())
	}
	l.writeOp.Close()
	l.syncOp.Close()
	return errors.Join(append(all, l.lock.Close())...)
}

// Close syncs what was written and closes. A poisoned log is closed without a
// sync, and says why it was poisoned.
func (l *Log) Close() error {
	defer l.announce()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if l.closed.Swap(true) {
		return nil
	}
	failed := l.syncAll()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead.drop()
	err := l.closeFiles()
	if err != nil && failed == nil {
		failed = l.fail("close", err)
	}
	return failed
}
