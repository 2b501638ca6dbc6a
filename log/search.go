package log

import (
	"errors"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// timedView is a segment and the largest timestamp in it.
type timedView struct {
	view
	base, last record.Offset
	maxTime    int64
}

// OffsetForTime finds the first batch below limit whose max timestamp is at or after ts,
// and the record in it.
func (l *Log) OffsetForTime(ts int64, limit record.Offset) (o record.Offset, t int64, e record.Epoch, ok bool, err error) {
	return l.search(limit, func(views []timedView, start record.Offset) (record.Raw, int64, error) {
		for _, v := range views {
			if v.maxTime < ts {
				continue
			}
			if batch, err := l.firstSince(v, ts, start, limit); err != nil || batch != nil {
				return batch, ts, err
			}
		}
		return nil, 0, nil
	})
}

// MaxTimestamp is the record with the largest timestamp below limit, the first
// of them when there are several.
func (l *Log) MaxTimestamp(limit record.Offset) (o record.Offset, t int64, e record.Epoch, ok bool, err error) {
	return l.search(limit, func(views []timedView, start record.Offset) (best record.Raw, ts int64, err error) {
		for _, v := range views {
			if best != nil && v.maxTime <= best.MaxTimestamp() {
				continue
			}
			batch, err := l.largestIn(v, start, limit)
			if err != nil {
				return nil, 0, err
			}
			if batch != nil && (best == nil || batch.MaxTimestamp() > best.MaxTimestamp()) {
				best = batch
			}
		}
		if best == nil {
			return nil, 0, nil
		}
		return best, best.MaxTimestamp(), nil
	})
}

type batchSearch func(views []timedView, start record.Offset) (batch record.Raw, ts int64, err error)

// search runs a search over the segments below limit and finds the record in the batch.
func (l *Log) search(limit record.Offset, find batchSearch) (record.Offset, int64, record.Epoch, bool, error) {
	for {
		views, start := l.timedViews(limit)
		if len(views) == 0 {
			return -1, -1, -1, false, nil
		}
		batch, ts, err := find(views, start)
		if err == nil && batch == nil {
			return -1, -1, -1, false, nil
		}
		if err == nil {
			return recordSince(batch, ts, start)
		}
		if again, err := l.readFailed(views[0].view, err); !again {
			return -1, -1, -1, false, err
		}
	}
}

func (l *Log) timedViews(limit record.Offset) ([]timedView, record.Offset) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var views []timedView
	for _, g := range l.segments {
		if g.header.base < limit && g.end > l.start && g.maxTime >= 0 {
			views = append(views, timedView{l.viewLocked(g), g.header.base, g.end, g.maxTime})
		}
	}
	return views, l.start
}

// firstSince walks from the index entry before which everything is older.
func (l *Log) firstSince(v timedView, ts int64, start, limit record.Offset) (record.Raw, error) {
	index, err := l.indexOf(v.view)
	if err != nil {
		return nil, err
	}
	c := cursor{l: l, view: v.view, pos: timeFor(index, ts), want: coldRead}
	for {
		batch, err := c.batchBelow(start, limit)
		if err != nil || batch == nil || batch.MaxTimestamp() >= ts {
			return batch, err
		}
	}
}

// largestIn finds the batch with the largest timestamp of a segment that may end above limit.
func (l *Log) largestIn(v timedView, start, limit record.Offset) (best record.Raw, err error) {
	if v.last <= limit && v.base >= start {
		return l.firstSince(v, v.maxTime, start, limit)
	}
	c := cursor{l: l, view: v.view, pos: blockBytes, want: coldAhead}
	for {
		batch, err := c.batchBelow(start, limit)
		if err != nil || batch == nil {
			return best, err
		}
		if best == nil || batch.MaxTimestamp() > best.MaxTimestamp() {
			best = batch
		}
	}
}

// batchBelow is the next batch that has records in [start, limit), nil at the end.
func (c *cursor) batchBelow(start, limit record.Offset) (record.Raw, error) {
	for {
		f, err := c.frame()
		if errors.Is(err, errEnd) || err == nil && f.end() > limit {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if f.verdict == Accepted && f.end() > start {
			return f.batch(), nil
		}
	}
}

// recordSince finds the first record of a batch that is not older than ts.
func recordSince(batch record.Raw, ts int64, start record.Offset) (o record.Offset, t int64, e record.Epoch, ok bool, err error) {
	for r, err := range batch.Records(0) {
		if err != nil {
			return -1, -1, -1, false, err
		}
		if r.Timestamp >= ts && r.Offset >= start {
			return r.Offset, r.Timestamp, batch.LeaderEpoch(), true, nil
		}
	}
	// The header says so and no record does: the batch was made by somebody who
	// sets it differently. The batch is where a reader has to begin.
	return max(batch.BaseOffset(), start), batch.MaxTimestamp(), batch.LeaderEpoch(), true, nil
}
