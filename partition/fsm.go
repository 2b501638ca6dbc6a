package partition

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// fsm is what Raft applies committed entries to. It keeps nothing: verdicts are in
// the entries, so applying one raises the high watermark or the log start and answers who waits.
// Entries come again after a restart; applying them again changes nothing.
type fsm struct{ r *Replica }

var (
	_ raft.BatchingFSM = fsm{}
	_ raft.LogStore    = (*store)(nil)
)

// Apply implements raft.FSM.
func (f fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. The high watermark rises before anybody is
// answered: who has the answer can read what was appended.
func (f fsm) ApplyBatch(logs []*raft.Log) []any {
	r := f.r
	if r.failure() != nil {
		return make([]any, len(logs))
	}
	if err := r.apply(logs); err != nil {
		r.fatal(err)
		return make([]any, len(logs))
	}
	failpoint.Hit("partition/apply/committed")
	last := logs[len(logs)-1]
	r.applied.Store(last.Index)
	for _, l := range logs {
		r.proposals.applied(log.Index(l.Index), log.Term(l.Term))
	}
	r.watch.wake()
	r.checkpointIfDue()
	if cap(r.responses) < len(logs) {
		r.responses = make([]any, len(logs))
	}
	return r.responses[:len(logs)]
}

// apply raises the high watermark, and the log start where entries ask for it.
func (r *Replica) apply(logs []*raft.Log) error {
	high := r.highWatermark()
	start := record.Offset(-1)
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		m, err := parseMeta(l.Data)
		if err != nil {
			return fmt.Errorf("apply entry %d: %w", l.Index, err)
		}
		if m.verdict == log.Void || m.offset > high && m.verdict != duplicate {
			return errs.Errorf(errs.ReplicaQuarantined, "apply entry %d: verdict %d at offset %d, but the high watermark is %d", l.Index, m.verdict, m.offset, high)
		}
		switch m.verdict {
		case log.Accepted:
			high = max(high, m.offset+record.Offset(record.Raw(l.Data[metaBytes:]).Count()))
		case trimmed:
			start = max(start, m.expect)
		}
	}
	r.high.Store(int64(high))
	if start > r.trimmedTo() {
		r.trimmed.Store(int64(start))
	}
	if start > r.log.StartOffset() {
		return r.log.SetStart(start)
	}
	return nil
}

// Snapshot implements raft.FSM; it is never called, since only checkpoints are taken.
func (f fsm) Snapshot() (raft.FSMSnapshot, error) { return nil, errNoSnapshots }

// Restore implements raft.FSM; it is never called: see snapshots.
func (f fsm) Restore(snapshot io.ReadCloser) error {
	return errors.Join(errNoSnapshots, snapshot.Close())
}
