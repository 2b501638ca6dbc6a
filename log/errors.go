package log

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

var (
	// ErrCorrupt says that acknowledged bytes are damaged. The log is
	// quarantined: its data stays where it is, and a new replica takes its place.
	ErrCorrupt = errs.New(errs.ReplicaQuarantined, "log is damaged")
	// ErrFormat says that the log was written by a newer program. It is whole: nothing is
	// changed, and that program opens it.
	ErrFormat = errs.New(errs.UnsupportedVersion, "log has a newer format")
	// ErrLocked says that somebody else has the directory open.
	ErrLocked = fsx.ErrLocked
	// ErrNotFound says that the log holds no entry of that index.
	ErrNotFound = errors.New("no such entry")
	// ErrOutOfRange says that an offset is below the log start or above the limit.
	ErrOutOfRange = errs.New(errs.OffsetOutOfRange, "offset out of range")
	// ErrPoisoned says that an earlier write, sync or close failed.
	ErrPoisoned = errs.New(errs.KafkaStorageError, "log is poisoned by a failed write")
	// ErrClosed says that the log was closed.
	ErrClosed = errs.New(errs.ShuttingDown, "log is closed")
	// ErrInvalid says that the caller broke the contract of Write or Roll; nothing was written.
	ErrInvalid = errors.New("invalid entry")
)

// unreadError is of a file that could not be read, which says nothing about what is in
// it: too many open files, or no permission. Nobody is quarantined for it.
type unreadError struct{ err error }

func (e *unreadError) Error() string { return e.err.Error() }
func (e *unreadError) Unwrap() error { return e.err }

func unread(err error) bool {
	var e *unreadError
	return errors.As(err, &e)
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// fail makes a failed step final. It may be called under locks: the owner is
// told by announce, after they are released.
func (l *Log) fail(step string, err error) error {
	next := "check the disk, then restart the broker"
	if errors.Is(err, syscall.ENOSPC) {
		next = "the disk is full: free some space, then restart the broker"
	}
	f := &failure{fmt.Errorf("%w: %s %s: %w; %s", ErrPoisoned, step, l.dir, err, next)}
	if !l.failed.CompareAndSwap(nil, f) {
		return l.failed.Load().err
	}
	l.metrics.poisoned()
	l.logger.Error("log is poisoned", "dir", l.dir, "step", step, "err", err, "next", next)
	return f.err
}

// announce tells the owner of the process, once, that the log is poisoned.
// Every method that may fail a step defers it before it takes a lock.
func (l *Log) announce() {
	f := l.failed.Load()
	if f == nil || l.cfg.OnPoison == nil || l.announced.Swap(true) {
		return
	}
	l.cfg.OnPoison(f.err)
}

// usable is the failure that ended the log, if any.
func (l *Log) usable() error {
	if f := l.failed.Load(); f != nil {
		return f.err
	}
	return nil
}
