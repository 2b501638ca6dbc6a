// Package inspect reads data directories from outside: every checksum, chain and
// index of every log in them.
//
// It changes nothing, takes no lock, and works beside a running broker.
package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/tidemarkhq/tidemark/broker"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/log/statelog"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/partition/raftgroup"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// Damage is one thing that is not as it was written.
type Damage struct {
	Path string
	Pos  int64
	// Rebuilt damage is of data that the broker makes again at its next start;
	// nothing is lost.
	Rebuilt bool
	// Padding damage is between record batches; all of them are whole, and served.
	Padding bool
	What    string
}

// Summary counts what was checked.
type Summary struct {
	Broker, Cluster string // of a whole data directory
	Partitions      []Partition
	StateLogs       int
	Segments        int
	Frames          int64
	Batches         int64
	Records         int64
	Bytes           int64
	TailBytes       int64 // never acknowledged; cut at the next start
	Damage          []Damage
}

// Partition is one log.
type Partition struct {
	Dir         string
	Topic       string // UUID
	Partition   int32
	Segments    int
	Records     int64
	Bytes       int64
	StartOffset record.Offset
	EndOffset   record.Offset
	Damage      int
}

// Verify checks a broker's data directory, or the directory of one partition.
func Verify(fsys fsx.FS, dir string) (Summary, error) {
	var s Summary
	if _, err := fsys.Stat(dir); err != nil {
		return s, err
	}
	if holdsLog(fsys, dir) {
		return s, s.partition(fsys, dir)
	}
	var err error
	if s.Broker, s.Cluster, err = broker.CheckIdentity(fsys, dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return s, fmt.Errorf("%s is neither a broker's data directory nor a partition's: %w", dir, err)
		}
		s.damage(filepath.Join(dir, "identity"), 0, false, err.Error())
	}
	if _, err := raftgroup.CheckStable(fsys, filepath.Join(dir, "stable")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.damage(filepath.Join(dir, "stable"), 0, false, err.Error())
	}
	if err := s.states(fsys, filepath.Join(dir, "state")); err != nil {
		return s, err
	}
	return s, Partitions(fsys, dir, func(p string) error { return s.partition(fsys, p) })
}

// Partitions calls f with the directory of each partition below a data directory,
// or with dir where it is one itself.
func Partitions(fsys fsx.FS, dir string, f func(dir string) error) error {
	if holdsLog(fsys, dir) {
		return f(dir)
	}
	topics, err := list(fsys, filepath.Join(dir, "topics"))
	if err != nil {
		return err
	}
	for _, topic := range topics {
		partitions, err := list(fsys, topic)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			if err := f(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// holdsLog tells whether dir is the directory of one partition.
func holdsLog(fsys fsx.FS, dir string) bool {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".log") || e.Name() == "CURRENT" && partition.HasGeneration(fsys, dir) {
			return true
		}
	}
	return false
}

// list returns the directories in dir; none where there is no dir.
func list(fsys fsx.FS, dir string) ([]string, error) {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []string
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all, err
}

func (s *Summary) damage(path string, pos int64, rebuilt bool, what string) {
	s.Damage = append(s.Damage, Damage{Path: path, Pos: pos, Rebuilt: rebuilt, What: what})
}

func (s *Summary) states(fsys fsx.FS, dir string) error {
	groups, err := list(fsys, dir)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := s.state(fsys, g); err != nil {
			return err
		}
	}
	return nil
}

// state checks the log of one state group, wherever it lies in the group's directory.
func (s *Summary) state(fsys fsx.FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.Name() == "CURRENT":
			s.StateLogs++
			r, err := statelog.Inspect(fsys, dir)
			if err != nil {
				s.damage(dir, 0, false, err.Error())
			}
			s.Bytes += r.Bytes
			s.TailBytes += r.TailBytes
		case e.IsDir() && !strings.HasPrefix(e.Name(), "g-"):
			if err := s.state(fsys, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Summary) partition(fsys fsx.FS, dir string) error {
	dir, r, err := inspectLog(fsys, dir, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // deleted while we looked
	case errors.Is(err, log.ErrCorrupt):
		s.damage(filepath.Join(dir, "CURRENT"), 0, false, err.Error())
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", dir, err)
	}
	p := Partition{
		Dir: dir, Topic: fmt.Sprintf("%x", r.Topic[:]), Partition: r.Partition, Segments: len(r.Segments), Records: r.Records,
		Bytes: r.Bytes, StartOffset: r.StartOffset, EndOffset: r.EndOffset, Damage: len(r.Damage),
	}
	s.Partitions = append(s.Partitions, p)
	s.Segments += len(r.Segments)
	s.Frames += r.Frames
	s.Batches += r.Batches
	s.Records += r.Records
	s.Bytes += r.Bytes
	s.TailBytes += r.TailBytes
	for _, d := range r.Damage {
		s.Damage = append(s.Damage, Damage{filepath.Join(dir, d.File), d.Pos, d.Derived, d.Padding, d.What})
	}
	if r.Quarantined != "" {
		s.damage(dir, 0, false, "quarantined: "+strings.TrimSpace(r.Quarantined))
	}
	return nil
}

// inspectLog inspects the generation in force of a partition's directory, and tells where it lies.
func inspectLog(fsys fsx.FS, dir string, visit func(log.FrameInfo) error) (string, log.Report, error) {
	for {
		current, err := partition.Generation(fsys, dir)
		if err != nil {
			return dir, log.Report{}, err
		}
		r, err := log.Inspect(fsys, current, visit)
		// The replica may have been reset beside us, and the generation been removed.
		if now, nowErr := partition.Generation(fsys, dir); nowErr == nil && now != current && visit == nil {
			continue
		}
		return current, r, err
	}
}

// Frame is one frame of a log, for people.
type Frame struct {
	Segment    string
	Pos, Bytes int64
	CRC        uint32
	Index      uint64
	Term       uint64
	Type       uint8
	Verdict    uint8
	BaseOffset int64
	Commit     uint64
	Synced     uint64
	Meta       []byte
	Batch      *Batch // of an accepted entry
}

// Batch is the header of a record batch.
type Batch struct {
	Records       int32
	Bytes         int
	Codec         string
	MaxTimestamp  int64
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32
}

// Dump shows every valid frame of one partition to f, oldest first. Frame.Meta
// is valid during the call.
func Dump(fsys fsx.FS, dir string, f func(Frame) error) error {
	_, _, err := inspectLog(fsys, dir, func(fi log.FrameInfo) error {
		e := fi.Entry
		out := Frame{
			Segment: fi.Segment, Pos: fi.Pos, Bytes: fi.Bytes, CRC: fi.CRC, Index: uint64(e.Index), Term: uint64(e.Term),
			Type: uint8(e.Type), Verdict: uint8(e.Verdict), BaseOffset: int64(e.BaseOffset), Commit: uint64(fi.Commit),
			Synced: uint64(fi.Synced), Meta: e.Body[:min(e.MetaBytes, len(e.Body))],
		}
		if e.Verdict == log.Accepted && len(e.Body) >= e.MetaBytes+record.HeaderBytes {
			b := record.Raw(e.Body[e.MetaBytes:])
			out.Batch = &Batch{
				Records: b.Count(), Bytes: b.Size(), Codec: b.Codec().String(), MaxTimestamp: b.MaxTimestamp(),
				ProducerID: b.ProducerID(), ProducerEpoch: b.ProducerEpoch(), BaseSequence: b.BaseSequence(),
			}
		}
		return f(out)
	})
	return err
}
