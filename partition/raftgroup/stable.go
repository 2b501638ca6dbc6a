package raftgroup

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// ErrCorrupt says that stored state is damaged in a way that no crash
// explains. Nothing is repaired: a vote that is forgotten may be given twice.
var ErrCorrupt = errs.New(errs.KafkaStorageError, "corrupt")

// ErrStableClosed is what a closed store answers.
var ErrStableClosed = errors.New("the stable store is closed")

// The keys that hashicorp/raft keeps in a stable store. There are no others.
const (
	keyCurrentTerm = "CurrentTerm"
	keyVoteTerm    = "LastVoteTerm"
	keyCandidate   = "LastVoteCand"
)

// StableStore keeps term and vote of all groups of a broker in one file. Sets
// of several groups that come together share one sync. It is safe for
// concurrent use. The first failed write or sync poisons it: every later
// write fails, and no second sync is tried.
type StableStore struct {
	file   fsx.File
	path   string
	salt   uint64
	logger *slog.Logger
	turn   chan struct{} // capacity 1: held by the goroutine that writes

	mu     sync.Mutex
	slots  []*slot            // guarded by mu
	groups map[[16]byte]*slot // guarded by mu
	free   []*slot            // guarded by mu
	next   *stableBatch       // guarded by mu; what the next sync will make durable
	synced uint32             // guarded by mu; slots known to be durable
	err    error              // guarded by mu; the poison
}

// slot is one group's place in the file.
type slot struct {
	n    int
	want record // guarded by StableStore.mu; newest, perhaps not durable yet
	has  record // guarded by StableStore.mu; durable
}

// stableBatch is what one sync makes durable.
type stableBatch struct {
	slots map[*slot]bool
	done  chan struct{}
	err   error // readable when done is closed
}

func newStableBatch() *stableBatch {
	return &stableBatch{slots: map[*slot]bool{}, done: make(chan struct{})}
}

// OpenStable opens the store in the file path, creating it when it is missing.
func OpenStable(fsys fsx.FS, path string, logger *slog.Logger) (*StableStore, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	_, err := fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createStable(fsys, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open stable store %s: %w", path, err)
	}
	file, err := fsys.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open stable store %s: %w", path, err)
	}
	// A process that died while it made the file leaves a name that a power cut may take back,
	// and with it every vote.
	if err := fsys.SyncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(fmt.Errorf("open stable store %s: %w", path, err), file.Close())
	}
	s := &StableStore{
		file: file, path: path, logger: logger, turn: make(chan struct{}, 1),
		groups: map[[16]byte]*slot{}, next: newStableBatch(),
	}
	err = s.load()
	if err == nil {
		err = s.renew()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open stable store %s: %w", path, err), file.Close())
	}
	return s, nil
}

func createStable(fsys fsx.FS, path string) error {
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return err
	}
	return fsx.WriteFile(fsys, path, encodeStableHeader(binary.LittleEndian.Uint64(salt[:])), 0o600)
}

// load reads the whole file, one slot at a time.
func (s *StableStore) load() error {
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	header, err := s.block(0, stableBlock)
	if err != nil {
		return err
	}
	salt, version, err := decodeStableHeader(header)
	if err != nil {
		return fmt.Errorf("header: %w; votes may be lost, so restore the file or replace the broker's replicas", ErrCorrupt)
	}
	if version != stableVersion {
		return fmt.Errorf("format version %d, this program knows %d: %w", version, stableVersion, errs.New(errs.UnsupportedVersion, ""))
	}
	s.salt = salt
	count := (size - stableBlock + 2*stableBlock - 1) / (2 * stableBlock)
	if count > maxSlots {
		return fmt.Errorf("%d slots, at most %d are possible: %w", count, maxSlots, ErrCorrupt)
	}
	var claimed uint32
	for n := range int(count) {
		sl, err := s.loadSlot(n)
		if err != nil {
			return err
		}
		claimed = max(claimed, sl.has.slots)
	}
	if int64(claimed) > count {
		return fmt.Errorf("the file is cut: %d slots of %d are left: %w", count, claimed, ErrCorrupt)
	}
	s.synced = uint32(count)
	return nil
}

func (s *StableStore) loadSlot(n int) (*slot, error) {
	b, err := s.block(copyOffset(n, 0), 2*stableBlock)
	if err != nil {
		return nil, err
	}
	r, err := pickCopy(b, s.salt, n)
	if err != nil {
		return nil, fmt.Errorf("slot %d: %w: %w; a vote may be lost, so restore the file or replace the broker's replicas", n, err, ErrCorrupt)
	}
	sl := &slot{n: n, want: r, has: r}
	s.slots = append(s.slots, sl)
	if r.free {
		s.free = append(s.free, sl)
		return sl, nil
	}
	if other := s.groups[r.group]; other != nil {
		return nil, fmt.Errorf("slots %d and %d belong to one group: %w", other.n, n, ErrCorrupt)
	}
	s.groups[r.group] = sl
	return sl, nil
}

// renew writes what was read once more and makes it durable. A process that died before its sync, or
// whose sync failed, leaves votes in the page cache that a power cut may take back. A mere
// sync would not do: after a failed one the kernel holds such pages as clean, and must forget them
// before they are written again (see fsx.Evict).
func (s *StableStore) renew() error {
	var writes []stableWrite
	for _, sl := range s.slots {
		if sl.has.generation > 0 {
			writes = append(writes, stableWrite{sl, sl.has, sl.has.encode(s.salt, sl.n)})
		}
	}
	if len(writes) == 0 || bug.On(bug.TrustThePageCache) {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		return err // only clean pages can be forgotten
	}
	if err := fsx.Evict(s.file, 0, 0); err != nil {
		return err
	}
	return s.write(writes)
}

// block reads n bytes; what lies behind the end of the file is blank.
func (s *StableStore) block(offset int64, n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := s.file.ReadAt(b, offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// Known tells whether the group has a slot: a group that was formed and has none has
// lost its vote, and must come back under a new identity.
func (s *StableStore) Known(id [16]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups[id] != nil
}

// Slot returns the store of one group, allocating it, durably, when it is new.
func (s *StableStore) Slot(id [16]byte) (raft.StableStore, error) {
	b, sl, err := s.allocate(id)
	if err != nil {
		return nil, err
	}
	if b != nil {
		if err := s.commit(b); err != nil {
			return nil, err
		}
	}
	return stableSlot{s, sl, id}, nil
}

// allocate returns the group's slot, and the batch to wait for when that is not durable yet.
func (s *StableStore) allocate(id [16]byte) (*stableBatch, *slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, nil, s.err
	}
	if sl := s.groups[id]; sl != nil {
		if sl.has.holds(id) {
			return nil, sl, nil
		}
		return s.changeLocked(sl, func(*record) {}), sl, nil
	}
	sl, err := s.takeFreeLocked()
	if err != nil {
		return nil, nil, err
	}
	s.groups[id] = sl
	return s.changeLocked(sl, func(r *record) { *r = record{group: id, generation: r.generation} }), sl, nil
}

func (s *StableStore) takeFreeLocked() (*slot, error) {
	if n := len(s.free); n > 0 {
		sl := s.free[n-1]
		s.free = s.free[:n-1]
		return sl, nil
	}
	if len(s.slots) >= maxSlots {
		return nil, errs.Errorf(errs.PolicyViolation, "the stable store holds %d groups, the most that are possible; delete topics or add brokers", maxSlots)
	}
	sl := &slot{n: len(s.slots), want: record{free: true}, has: record{free: true}}
	s.slots = append(s.slots, sl)
	return sl, nil
}

// Forget gives up a group's slot, durably. The group must be stopped, and its
// identity must never be used again.
func (s *StableStore) Forget(id [16]byte) error {
	s.mu.Lock()
	sl := s.groups[id]
	if sl == nil {
		s.mu.Unlock()
		return nil
	}
	delete(s.groups, id)
	b := s.changeLocked(sl, func(r *record) { *r = record{free: true, generation: r.generation} })
	s.mu.Unlock()
	if err := s.commit(b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, sl)
	return nil
}

// Close closes the file. Everything that was answered is durable already.
func (s *StableStore) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	if s.err == nil {
		s.err = ErrStableClosed
	}
	return err
}

// changeLocked changes what the slot shall say and queues it for the next sync.
func (s *StableStore) changeLocked(sl *slot, change func(*record)) *stableBatch {
	change(&sl.want)
	s.next.slots[sl] = true
	return s.next
}

// commit waits until the batch is durable. The first of those who wait writes
// for all; the others wait for it, or for their turn.
func (s *StableStore) commit(b *stableBatch) error {
	select {
	case <-b.done:
		return b.err
	case s.turn <- struct{}{}:
	}
	defer func() { <-s.turn }()
	select {
	case <-b.done: // somebody else wrote it just before our turn
		return b.err
	default:
	}
	s.mu.Lock()
	s.next = newStableBatch()
	writes, err := s.encodeLocked(b), s.err
	s.mu.Unlock()
	if err == nil {
		err = s.write(writes)
	}
	s.settle(b, writes, err)
	return b.err
}

type stableWrite struct {
	slot   *slot
	record record
	block  []byte
}

// encodeLocked fixes what the batch writes. A slot whose value went forth and back within the batch is
// written all the same: that is rare and harmless.
func (s *StableStore) encodeLocked(b *stableBatch) []stableWrite {
	writes := make([]stableWrite, 0, len(b.slots))
	for sl := range b.slots {
		sl.want.generation = sl.has.generation + 1
		sl.want.slots = s.synced
		writes = append(writes, stableWrite{sl, sl.want, sl.want.encode(s.salt, sl.n)})
	}
	return writes
}

func (s *StableStore) write(writes []stableWrite) error {
	for _, w := range writes {
		if _, err := s.file.WriteAt(w.block, copyOffset(w.slot.n, w.record.generation)); err != nil {
			return fmt.Errorf("write stable store %s: %w", s.path, err)
		}
	}
	failpoint.Hit("raftgroup/stable/written")
	if bug.On(bug.ForgetVote) {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync stable store %s: %w", s.path, err)
	}
	failpoint.Hit("raftgroup/stable/synced")
	return nil
}

func (s *StableStore) settle(b *stableBatch, writes []stableWrite, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.err == nil {
		s.err = err
		s.logger.Error("stable store failed; it takes no more votes", "path", s.path, "err", err)
	}
	if err == nil {
		for _, w := range writes {
			w.slot.has = w.record
			s.synced = max(s.synced, uint32(w.slot.n+1))
		}
	}
	b.err = err
	close(b.done)
}
