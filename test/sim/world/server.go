package world

import (
	"context"
	"slices"
	"time"

	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

const (
	// serveTime bounds how long a node works on a request.
	serveTime = 5 * time.Second
	// enqueueTime bounds the wait for a place in Raft's queue.
	enqueueTime = time.Second
)

// handle is a node's door.
func (l *life) handle(ctx context.Context, q *request) *answer {
	ctx, cancel := context.WithTimeout(ctx, serveTime)
	defer cancel()
	if q.nonce != 0 && !l.first(q.nonce) {
		<-ctx.Done() // the network has doubled what no connection doubles
		return failure(errs.Errorf(errs.InvalidRequest, "came twice"))
	}
	if q.verb == verbGroup {
		return l.handleGroup(ctx, q.group)
	}
	r := l.replica(q.partition)
	if r == nil {
		return failure(errs.Errorf(errs.ReplicaNotAvailable, "no replica of partition %d runs here", q.partition))
	}
	switch q.verb {
	case verbProduce:
		return produce(ctx, r, q)
	case verbFetch:
		return fetch(ctx, r, q)
	case verbEnd:
		return end(ctx, r)
	case verbTrim:
		return trim(ctx, r, q)
	default:
		return failure(errs.Errorf(errs.InvalidRequest, "verb %d is unknown", q.verb))
	}
}

// first tells whether a nonce is new to this process.
func (l *life) first(nonce uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nonces[nonce] {
		return false
	}
	l.nonces[nonce] = true
	return true
}

// produce dispatches the batches in order, and finishes them together.
func produce(ctx context.Context, r *partition.Replica, q *request) *answer {
	var pending []*partition.Pending
	var refused error
	for _, b := range q.batches {
		p, err := r.Append(ctx, partition.Append{
			Batch: slices.Clone(b), Acks: q.acks, Conditional: q.conditional, Expect: q.offset, Enqueue: enqueueTime,
		})
		if refused = err; err != nil {
			break // what follows must not overtake it
		}
		pending = append(pending, p)
	}
	out := &answer{}
	for _, p := range pending {
		out.each = append(out.each, result(ctx, p))
	}
	for len(out.each) < len(q.batches) {
		out.each = append(out.each, failure(refused))
	}
	return out
}

func result(ctx context.Context, p *partition.Pending) *answer {
	a, err := p.Result(ctx)
	if err != nil {
		return failure(err)
	}
	return &answer{duplicate: a.Duplicate, epoch: a.Epoch, base: a.BaseOffset, end: a.EndOffset, start: a.LogStart}
}

func fetch(ctx context.Context, r *partition.Replica, q *request) *answer {
	if q.linear {
		if err := r.Linearize(ctx); err != nil {
			return failure(err)
		}
	}
	batches, v, err := r.Read(q.offset, q.max)
	return &answer{err: err, epoch: v.Epoch, start: v.LogStart, high: v.HighWatermark, batches: batches}
}

func end(ctx context.Context, r *partition.Replica) *answer {
	if err := r.Linearize(ctx); err != nil {
		return failure(err)
	}
	v := r.View()
	return &answer{epoch: v.Epoch, start: v.LogStart, high: v.HighWatermark, end: v.HighWatermark}
}

func trim(ctx context.Context, r *partition.Replica, q *request) *answer {
	start, err := r.Trim(ctx, q.offset)
	if err != nil {
		return failure(err)
	}
	return &answer{start: start}
}
