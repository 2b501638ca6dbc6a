package client

import (
	"fmt"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// ExpectationError says that a conditional append found the partition elsewhere.
type ExpectationError struct {
	Actual record.Offset // where the partition ends; -1 where the broker did not say
	err    *errs.Error
}

// Error implements error.
func (e *ExpectationError) Error() string { return e.err.Error() }

// Unwrap gives the coded error.
func (e *ExpectationError) Unwrap() error { return e.err }

// LeaderError is an error that names who leads now.
type LeaderError struct {
	LeaderID    int32
	LeaderEpoch int32
	err         *errs.Error
}

// Error implements error.
func (e *LeaderError) Error() string { return e.err.Error() }

// Unwrap gives the coded error.
func (e *LeaderError) Unwrap() error { return e.err }

// OffsetError is an error that names an offset: for TOKEN_TRUNCATED, where the
// histories part.
type OffsetError struct {
	Offset record.Offset
	err    *errs.Error
}

// Error implements error.
func (e *OffsetError) Error() string { return e.err.Error() }

// Unwrap gives the coded error.
func (e *OffsetError) Unwrap() error { return e.err }

// maxErrorText bounds how much of a broker's words is kept.
const maxErrorText = 2048

// FromProto turns an error of the wire into one of ours; nil stays nil.
func FromProto(e *tidemarkv1.Error) error {
	if e == nil {
		return nil
	}
	code := errs.Code(e.GetCode())
	text := e.GetMessage()
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	if text == "" {
		text = fmt.Sprintf("the broker answered %s", code.Name())
	}
	coded := &errs.Error{Code: code, Text: text, OutcomeUnknown: e.GetOutcomeUnknown()}
	switch {
	case code == errs.ExpectationFailed:
		actual := record.Offset(-1)
		if e.ActualOffset != nil {
			actual = record.Offset(e.GetActualOffset())
		}
		return &ExpectationError{Actual: actual, err: coded}
	case e.ActualOffset != nil:
		return &OffsetError{Offset: record.Offset(e.GetActualOffset()), err: coded}
	case e.LeaderId != nil:
		return &LeaderError{LeaderID: e.GetLeaderId(), LeaderEpoch: e.GetLeaderEpoch(), err: coded}
	}
	return coded
}
