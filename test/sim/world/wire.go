package world

import (
	"errors"

	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// What clients and nodes say to each other; it stands in for the doors, which decide nothing.
// Nobody changes a request or an answer once it was sent.

type verb byte

const (
	verbProduce verb = iota + 1
	verbFetch        // from offset
	verbEnd          // linearizable: where does the partition end?
	verbTrim         // before offset
	verbGroup        // group tells what
)

// request is what a client asks about a partition.
type request struct {
	verb        verb
	partition   int32
	offset      record.Offset
	nonce       uint64 // of a request that a connection delivers once; 0: it may come twice
	conditional bool   // produce: the partition must end at offset
	linear      bool   // fetch: after all that was acknowledged
	max         int    // fetch: bytes
	group       any
	acks        partition.Acks
	batches     []record.Raw // produce: in this order
}

// answer is what it is told.
type answer struct {
	err       error // nil: done
	duplicate bool
	epoch     record.Epoch
	base, end record.Offset // produce: the offsets; end: where the partition ends
	start     record.Offset // log start
	high      record.Offset // high watermark
	batches   []record.Raw
	group     any
	each      []*answer // produce: one per batch
}

// unknown tells whether what was asked may have happened although it was not done.
func (a *answer) unknown() bool { return a.err != nil && errs.OutcomeUnknown(a.err) }

func (a *answer) code() errs.Code { return errs.CodeOf(a.err) }

// failure is the answer that tells an error.
func failure(err error) *answer {
	a := &answer{err: err, base: -1, end: -1}
	var elsewhere *partition.ExpectationError
	if errors.As(err, &elsewhere) {
		a.end = elsewhere.Actual
	}
	return a
}
