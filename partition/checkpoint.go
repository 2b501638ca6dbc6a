package partition

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log"
)

// A checkpoint is the state at a committed index C. Raft sees it as a snapshot at C that needs no
// restoring: NewRaft reads the entries behind it only. It is written after the
// log is durable through C, and the entries at and below C may go by
// retention only after it is durable itself: otherwise a start would miss them.
const (
	checkpointName     = "checkpoint"
	checkpointMagic    = "TMCP"
	checkpointVersion  = 1
	checkpointHead     = 4 + 4 + 16 + 4 + 4
	maxCheckpointBytes = 64 << 20

	// One is due after so many bytes or entries: both bound what a start rereads.
	checkpointBytes   = 16 << 20
	checkpointEntries = 8192
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkpointDue decides when a checkpoint is due. The store fills it while it
// appends, because only then is the state at exactly that index at hand; the
// state machine's side takes it when that index has been applied.
type checkpointDue struct {
	entries, bytes int // since the last one; the store's
	next           atomic.Pointer[state]
}

func (d *checkpointDue) add(entries, bytes int) {
	d.entries, d.bytes = d.entries+entries, d.bytes+bytes
}

// consider keeps a copy of the state when a checkpoint is due and none is waiting.
func (d *checkpointDue) consider(s *state) {
	if (d.bytes < checkpointBytes && d.entries < checkpointEntries) || d.next.Load() != nil {
		return
	}
	d.entries, d.bytes = 0, 0
	d.next.Store(s.frozen())
}

// truncated drops a copy that describes entries that are gone.
func (d *checkpointDue) truncated(from log.Index) {
	if c := d.next.Load(); c != nil && c.index >= from {
		d.next.CompareAndSwap(c, nil)
	}
}

// frozen is a copy that shares nothing that changes: its producers are encoded.
func (s *state) frozen() *state {
	c := *s
	c.encoded, c.producers = s.encode(), producers{}
	return &c
}

// encodeCheckpoint frames an encoded state for the file.
func encodeCheckpoint(topic log.UUID, partition int32, state []byte) []byte {
	b := make([]byte, 0, checkpointHead+len(state)+4)
	b = append(b, checkpointMagic...)
	b = append(b, checkpointVersion, 0, 0, 0)
	b = append(b, topic[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(partition))
	b = binary.BigEndian.AppendUint32(b, uint32(len(state)))
	b = append(b, state...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeCheckpoint reads what encodeCheckpoint wrote for the same partition.
func decodeCheckpoint(b []byte, topic log.UUID, partition int32, l limits) (*state, error) {
	if len(b) < checkpointHead+4 || string(b[:4]) != checkpointMagic {
		return nil, errors.New("not a checkpoint")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, fmt.Errorf("checkpoint has CRC %08x, its bytes give %08x", sum, got)
	}
	if b[4] != checkpointVersion || b[5]|b[6]|b[7] != 0 {
		return nil, fmt.Errorf("checkpoint version % x is not known; this build knows %d", b[4:8], checkpointVersion)
	}
	if log.UUID(b[8:24]) != topic || int32(binary.BigEndian.Uint32(b[24:])) != partition {
		return nil, errors.New("checkpoint belongs to another partition")
	}
	if n := binary.BigEndian.Uint32(b[28:]); int(n) != len(body)-checkpointHead {
		return nil, fmt.Errorf("checkpoint has %d bytes of state, its header says %d", len(body)-checkpointHead, n)
	}
	return decodeState(body[checkpointHead:], l)
}

func writeCheckpoint(fsys fsx.FS, dir string, cfg Config, state []byte) error {
	return fsx.WriteFile(fsys, filepath.Join(dir, checkpointName), encodeCheckpoint(cfg.Topic, cfg.Partition, state), 0o600)
}

// readCheckpoint reads the file; a missing one gives nil.
func readCheckpoint(fsys fsx.FS, dir string, cfg Config, l limits) (*state, error) {
	b, err := fsx.ReadFile(fsys, filepath.Join(dir, checkpointName), maxCheckpointBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	return decodeCheckpoint(b, cfg.Topic, cfg.Partition, l)
}

// checkpointIfDue starts writing a checkpoint when one is due and its index has been applied. It is
// called by the state machine's goroutine, which does not wait for the disk.
func (r *Replica) checkpointIfDue() {
	c := r.store.due.next.Load()
	if c == nil || !r.settled(c) || !r.checkpointing.CompareAndSwap(false, true) {
		return
	}
	if !r.runs.Go("checkpoint", func(context.Context) {
		defer r.checkpointing.Store(false)
		if err := r.checkpoint(c); err != nil {
			r.fatal(err)
			return
		}
		r.store.due.next.CompareAndSwap(c, nil)
	}) {
		r.checkpointing.Store(false)
	}
}

// settled tells whether all that a state describes is committed and applied here. What has committed at its index may
// by now be another leader's entry, which is looked at last.
func (r *Replica) settled(c *state) bool {
	if c.index > r.commitIndex() || c.end > r.highWatermark() || c.start > max(r.log.StartOffset(), r.trimmedTo()) {
		return false
	}
	e, err := r.log.Entry(c.index)
	return err == nil && e.Term == c.term
}

// checkpoint writes one and lets retention know. Callers hold checkpointing; one that was
// decided on before a newer one was written comes too late: retention may rest on that already.
func (r *Replica) checkpoint(c *state) error {
	if c.index <= r.snapshots.index() {
		return nil
	}
	if r.log.Durable() < c.index { // flush=interval and flush=os
		if err := r.store.flush(); err != nil {
			return err
		}
	}
	failpoint.Hit("partition/checkpoint-before-write")
	if err := writeCheckpoint(r.deps.FS, r.gen.dir, r.cfg, c.encoded); err != nil {
		return fmt.Errorf("write checkpoint at entry %d: %w", c.index, err)
	}
	failpoint.Hit("partition/checkpoint-after-write")
	r.snapshots.advance(c)
	r.snapshots.durable.Store(uint64(c.index))
	r.deps.Metrics.checkpoint()
	return nil
}

// snapshots is the raft.SnapshotStore of a data group. Until the group runs it shows the
// checkpoint, from which Raft starts; from then on the log's origin, which is all that a follower may be
// given in place of entries: a follower that took the checkpoint would miss what is retained
// before it. Raft must neither take a snapshot nor install one.
type snapshots struct {
	base atomic.Pointer[state] // frozen; nil: none
	// durable is the index of the checkpoint's file, 0 without one. A base that a start took from the
	// active segment is not in it, and the start after that one may not find it again.
	durable atomic.Uint64
	// offer opens the origin; nil until the group runs.
	offer atomic.Pointer[func() (*raft.SnapshotMeta, io.ReadCloser, error)]
}

func (s *snapshots) advance(c *state) {
	for {
		old := s.base.Load()
		if (old != nil && old.index >= c.index) || s.base.CompareAndSwap(old, c) {
			return
		}
	}
}

// index is how far retention may go: what the file on disk says; 0 while there is none.
func (s *snapshots) index() log.Index { return log.Index(s.durable.Load()) }

// List implements raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	if s.offer.Load() != nil {
		return []*raft.SnapshotMeta{{Version: raft.SnapshotVersionMax, ID: originName}}, nil // Open tells the rest
	}
	c := s.base.Load()
	if c == nil {
		return nil, nil
	}
	return []*raft.SnapshotMeta{c.snapshot()}, nil
}

func (s *state) snapshot() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version:            raft.SnapshotVersionMax,
		ID:                 checkpointName,
		Index:              uint64(s.index),
		Term:               uint64(s.term),
		Configuration:      raft.DecodeConfiguration(s.config),
		ConfigurationIndex: uint64(s.configIndex),
	}
}

// errNoSnapshots says that a data group's log is its data: a snapshot would drop records.
var errNoSnapshots = errors.New("a partition takes and installs no snapshots")

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(raft.SnapshotVersion, uint64, uint64, raft.Configuration, uint64, raft.Transport) (raft.SnapshotSink, error) {
	return nil, errNoSnapshots
}

// Open implements raft.SnapshotStore. The checkpoint is never opened.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if offer := s.offer.Load(); offer != nil && id == originName {
		return (*offer)()
	}
	return nil, nil, errNoSnapshots
}
