package raftgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// A snapshot is one file, written aside and renamed, so that what has its
// name is whole. docs/format/snapshot.md draws it.
const (
	snapshotVersion  = 1
	snapshotHead     = 56
	snapshotPrefix   = "snapshot-"
	keepSnapshots    = 2
	maxSnapshotBytes = 1 << 30
)

var snapshotMagic = [8]byte{'T', 'M', 'S', 'N', 'A', 'P', 'S', 'H'}

// snapshotStore keeps the newest snapshots of one state group. It implements
// raft.SnapshotStore.
type snapshotStore struct {
	fs      fsx.FS
	dir     string
	logger  *slog.Logger
	metrics *Metrics

	lost uint64 // the highest index of a damaged snapshot; set before the group starts

	mu    sync.Mutex
	metas []*raft.SnapshotMeta // guarded by mu; newest first
}

// openSnapshots checks every snapshot. A damaged one is left out and logged; whether the group can do without it is
// for the caller to find out.
func openSnapshots(fsys fsx.FS, dir string, logger *slog.Logger, metrics *Metrics) (s *snapshotStore, damaged int, err error) {
	s = &snapshotStore{fs: fsys, dir: dir, logger: logger, metrics: metrics}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, err
	}
	if err := fsys.SyncDir(filepath.Dir(dir)); err != nil {
		return nil, 0, err
	}
	// A process that died between a rename and the sync behind it leaves a snapshot that a power cut
	// may take back: the log must not be cut for it before its name is durable.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, 0, err
	}
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, d := range names {
		if !strings.HasPrefix(d.Name(), snapshotPrefix) || strings.HasSuffix(d.Name(), ".new") {
			continue
		}
		meta, _, err := s.read(d.Name())
		if errors.Is(err, ErrCorrupt) {
			logger.Error("a snapshot is damaged", "path", filepath.Join(dir, d.Name()), "err", err)
			damaged++
			var index, term uint64
			if _, err := fmt.Sscanf(d.Name(), snapshotPrefix+"%d-%d", &index, &term); err == nil {
				s.lost = max(s.lost, index)
			}
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		s.metas = append(s.metas, meta)
	}
	slices.SortFunc(s.metas, func(a, b *raft.SnapshotMeta) int { return strings.Compare(b.ID, a.ID) })
	return s, damaged, nil
}

func snapshotID(index, term uint64) string {
	return fmt.Sprintf("%s%020d-%020d", snapshotPrefix, index, term)
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("raft snapshot version %d is unknown", version)
	}
	return &snapshotSink{store: s, began: clock.Monotonic(), meta: raft.SnapshotMeta{
		Version: version, ID: snapshotID(index, term),
		Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// List implements raft.SnapshotStore: newest first.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.metas), nil
}

// newest is the newest sound snapshot, or nil.
func (s *snapshotStore) newest() *raft.SnapshotMeta {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metas) == 0 {
		return nil
	}
	return s.metas[0]
}

// Open implements raft.SnapshotStore.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, state, err := s.read(id)
	if err != nil {
		return nil, nil, err
	}
	return meta, io.NopCloser(bytes.NewReader(state)), nil
}

func (s *snapshotStore) read(id string) (*raft.SnapshotMeta, []byte, error) {
	b, err := fsx.ReadFile(s.fs, filepath.Join(s.dir, id), maxSnapshotBytes+1<<20)
	if err != nil {
		return nil, nil, fmt.Errorf("read snapshot %s: %w", id, err)
	}
	meta, state, err := decodeSnapshot(b)
	if err == nil && snapshotID(meta.Index, meta.Term) != id {
		// A small one is a single sector: an older one may have been written to the wrong place.
		err = fmt.Errorf("it holds the snapshot at entry %d: %w", meta.Index, ErrCorrupt)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read snapshot %s: %w", id, err)
	}
	meta.ID = id
	return meta, state, nil
}

// keep writes the snapshot durably, then forgets those that are too old.
func (s *snapshotStore) keep(meta *raft.SnapshotMeta, state []byte) error {
	if err := fsx.WriteFile(s.fs, filepath.Join(s.dir, meta.ID), encodeSnapshot(meta, state), 0o600); err != nil {
		return fmt.Errorf("write snapshot %s: %w", meta.ID, err)
	}
	failpoint.Hit("raftgroup/snapshot/kept")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metas = slices.DeleteFunc(s.metas, func(m *raft.SnapshotMeta) bool { return m.ID == meta.ID })
	s.metas = append(s.metas, meta)
	slices.SortFunc(s.metas, func(a, b *raft.SnapshotMeta) int { return strings.Compare(b.ID, a.ID) })
	for len(s.metas) > keepSnapshots {
		last := len(s.metas) - 1
		if err := s.fs.Remove(filepath.Join(s.dir, s.metas[last].ID)); err != nil {
			// It costs space only, and is tried again at the next snapshot.
			s.logger.Warn("an old snapshot could not be removed", "snapshot", s.metas[last].ID, "err", err)
			break
		}
		s.metas = s.metas[:last]
		failpoint.Hit("raftgroup/snapshot/removed")
	}
	return nil
}

// snapshotSink collects a snapshot in memory: its source lies in memory too.
type snapshotSink struct {
	store *snapshotStore
	meta  raft.SnapshotMeta
	state []byte
	began clock.Mono
	done  bool
}

// ID implements raft.SnapshotSink.
func (k *snapshotSink) ID() string { return k.meta.ID }

// Write implements io.Writer.
func (k *snapshotSink) Write(b []byte) (int, error) {
	if len(k.state)+len(b) > maxSnapshotBytes {
		return 0, fmt.Errorf("snapshot %s is above %d bytes", k.meta.ID, maxSnapshotBytes)
	}
	k.state = append(k.state, b...)
	return len(b), nil
}

// Close makes the snapshot durable: Raft drops the log's prefix next.
func (k *snapshotSink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	k.meta.Size = int64(len(k.state))
	err := k.store.keep(&k.meta, k.state)
	k.store.metrics.snapshot.Observe(clock.Since(k.began).Seconds())
	return err
}

// Cancel implements raft.SnapshotSink: nothing was written yet.
func (k *snapshotSink) Cancel() error {
	k.done = true
	return nil
}

func encodeSnapshot(meta *raft.SnapshotMeta, state []byte) []byte {
	configuration := raft.EncodeConfiguration(meta.Configuration)
	b := make([]byte, snapshotHead, snapshotHead+len(configuration)+len(state)+4)
	copy(b, snapshotMagic[:])
	binary.LittleEndian.PutUint32(b[8:], snapshotVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(configuration)))
	binary.LittleEndian.PutUint64(b[16:], meta.Index)
	binary.LittleEndian.PutUint64(b[24:], meta.Term)
	binary.LittleEndian.PutUint64(b[32:], meta.ConfigurationIndex)
	binary.LittleEndian.PutUint64(b[40:], uint64(len(state)))
	// 48 to 55 are reserved, zero.
	b = append(append(b, configuration...), state...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeSnapshot(b []byte) (*raft.SnapshotMeta, []byte, error) {
	if len(b) < snapshotHead+4 || !bytes.Equal(b[:8], snapshotMagic[:]) {
		return nil, nil, ErrCorrupt
	}
	sum := len(b) - 4
	if binary.LittleEndian.Uint32(b[sum:]) != crc32.Checksum(b[:sum], castagnoli) {
		return nil, nil, ErrCorrupt
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != snapshotVersion {
		return nil, nil, fmt.Errorf("snapshot format version %d, this program knows %d: %w", v, snapshotVersion, errs.New(errs.UnsupportedVersion, ""))
	}
	configuration := uint64(binary.LittleEndian.Uint32(b[12:]))
	state := binary.LittleEndian.Uint64(b[40:])
	if body := uint64(sum - snapshotHead); configuration > body || state != body-configuration {
		return nil, nil, ErrCorrupt
	}
	at := snapshotHead + int(configuration)
	return &raft.SnapshotMeta{
		Version:            1,
		Index:              binary.LittleEndian.Uint64(b[16:]),
		Term:               binary.LittleEndian.Uint64(b[24:]),
		Configuration:      raft.DecodeConfiguration(b[snapshotHead:at]),
		ConfigurationIndex: binary.LittleEndian.Uint64(b[32:]),
		Size:               int64(state),
	}, b[at:sum], nil
}
