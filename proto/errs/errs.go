// Package errs is the one vocabulary of errors: its codes are Kafka's numbers,
// and gRPC carries the same number in its status details.
//
// An error's code, whether the same request may succeed later, and whether it
// may have taken effect already are facts that callers can test; the text is
// for people. "Refused" means that nothing happened; an error whose outcome
// is unknown may have taken effect and must never be reported as not done.
package errs

import (
	"errors"
	"fmt"
)

// Error is an error with a code. Compare with errors.Is: two Errors match when
// their codes do and the target carries no text of its own, or when they are identical.
type Error struct {
	Code Code
	Text string
	// OutcomeUnknown says that the operation may have taken effect.
	OutcomeUnknown bool
}

// New returns an error with a code, for package-level sentinels and for errors.Is.
func New(code Code, text string) *Error { return &Error{Code: code, Text: text} }

// Unknown returns an error with a code whose outcome is unknown.
func Unknown(code Code, text string) *Error {
	return &Error{Code: code, Text: text, OutcomeUnknown: true}
}

// Errorf formats an error with a code; %w works as in fmt.Errorf.
func Errorf(code Code, format string, args ...any) error {
	return &wrapped{&Error{Code: code}, fmt.Errorf(format, args...)}
}

// Error implements error.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Code.Name()
	}
	return e.Text
}

// Is matches errors of the same code: errs.New(errs.NotLeaderOrFollower, "") is
// matched by every error with that code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Text == "" || t.Text == e.Text)
}

type wrapped struct {
	coded *Error
	err   error
}

func (w *wrapped) Error() string   { return w.err.Error() }
func (w *wrapped) Unwrap() []error { return []error{w.coded, w.err} }

// CodeOf finds the code of err: None for nil, UnknownServerError where there is no code.
func CodeOf(err error) Code {
	if err == nil {
		return None
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return UnknownServerError
}

// Retriable tells whether the same request may succeed later.
func Retriable(err error) bool { return err != nil && CodeOf(err).Retriable() }

// OutcomeUnknown tells whether the operation may have taken effect.
func OutcomeUnknown(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.OutcomeUnknown
}
