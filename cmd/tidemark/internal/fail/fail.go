// Package fail is how a command says that it did not work: what, why, what to
// do next, and the exit code.
//
// The exit codes are part of the interface and never change their meaning.
package fail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Exit codes.
const (
	OK          = 0
	Other       = 1
	Usage       = 2 // usage, or invalid configuration
	NotFound    = 3
	Conflict    = 4 // it exists, it is not empty, it is not where it was expected
	Denied      = 5
	Unavailable = 6 // unavailable or timed out; safe to try again
	Partial     = 7 // some records or partitions failed
	Found       = 8 // a check ran and found problems
	Interrupted = 130
)

// Error is a failure with an exit code.
type Error struct {
	Exit int
	Err  error
	Hint string // the next step; may be empty
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// With returns err with an exit code and a hint.
func With(exit int, hint string, err error) error { return &Error{exit, err, hint} }

// Usagef is a wrong use of a command.
func Usagef(format string, args ...any) error {
	return &Error{Exit: Usage, Err: fmt.Errorf(format, args...)}
}

// ErrSilent is a failure that has said all there is to say already.
var ErrSilent = errors.New("")

// Silent ends a command with an exit code and no further words.
func Silent(exit int) error { return &Error{Exit: exit, Err: ErrSilent} }

// exits maps the codes that are neither retriable nor a plain refusal.
var exits = map[errs.Code]int{
	errs.UnknownTopicOrPartition: NotFound, errs.UnknownTopicID: NotFound, errs.GroupIDNotFound: NotFound,
	errs.ResourceNotFound: NotFound, errs.TransactionalIDNotFound: NotFound, errs.OffsetOutOfRange: NotFound,
	errs.TopicAlreadyExists: Conflict, errs.NonEmptyGroup: Conflict, errs.ExpectationFailed: Conflict,
	errs.DuplicateResource: Conflict, errs.GroupSubscribedToTopic: Conflict, errs.UnknownMemberID: Conflict,
	errs.FencedMemberEpoch: Conflict, errs.StaleMemberEpoch: Conflict, errs.UnreleasedInstanceID: Conflict,
	errs.TopicAuthorizationFailed: Denied, errs.GroupAuthorizationFailed: Denied, errs.ClusterAuthorizationFailed: Denied,
	errs.SaslAuthenticationFailed: Denied, errs.TransactionalIDAuthorizationFailed: Denied,
	errs.BrokerNotAvailable: Unavailable, errs.CorruptMessage: Other,
	errs.InvalidTopicException: Usage, errs.InvalidConfig: Usage, errs.InvalidPartitions: Usage,
	errs.InvalidReplicationFactor: Usage, errs.InvalidGroupID: Usage,
}

// Exit is the exit code for err.
func Exit(err error) int {
	var f *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &f):
		return f.Exit
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	code := errs.CodeOf(err)
	if exit, ok := exits[code]; ok {
		return exit
	}
	if code.Retriable() || errors.Is(err, context.DeadlineExceeded) {
		return Unavailable
	}
	return Other
}

var hints = map[errs.Code]string{
	errs.UnknownTopicOrPartition: "tidemark topic list shows the topics, tidemark topic create makes one",
	errs.GroupIDNotFound:         "tidemark group list shows the groups",
	errs.TopicAlreadyExists:      "--if-not-exists makes this a success; tidemark topic describe shows the topic",
	errs.NonEmptyGroup:           "stop the group's members first; tidemark group describe names them",
	errs.MessageTooLarge:         "raise max.message.bytes of the topic (tidemark topic alter), or send smaller records",
	errs.RecordListTooLarge:      "send smaller batches, or raise segment.bytes of the topic (tidemark topic alter)",
	errs.InvalidTopicException:   "a topic's name has 1 to 249 of the characters a-z A-Z 0-9 . _ -",
	errs.NetworkException:        "is a broker running there? tidemark serve starts one; -b names another",
	errs.BrokerNotAvailable:      "is a broker running there? tidemark serve starts one; -b names another",
	errs.LeaderNotAvailable:      "tidemark topic describe tells the state of each partition; tidemark verify DIR, at the broker, finds damage",
	errs.RequestTimedOut:         "is a broker running there? -b names another, --timeout waits longer",
	errs.OffsetOutOfRange:        "tidemark topic offsets shows what the partitions hold",
	errs.StorageLow:              "free some disk space of the broker, or lower the topics' retention",
	errs.ReplicaQuarantined:      "tidemark verify DIR shows the damage; the broker's log says which file",
}

// Hint is the next step for err; it may be empty.
func Hint(err error) string {
	var f *Error
	if errors.As(err, &f) && f.Hint != "" {
		return f.Hint
	}
	return hints[errs.CodeOf(err)]
}

// Print says on w what went wrong.
func Print(w io.Writer, err error) {
	if err == nil || errors.Is(err, ErrSilent) {
		return
	}
	text := strings.ReplaceAll(strings.TrimRight(err.Error(), "\n"), "\n", "\n  ")
	if code := errs.CodeOf(err); code != errs.UnknownServerError && code != errs.None {
		text += " (" + Stable(code) + " " + code.Name() + ")"
	}
	if errs.OutcomeUnknown(err) {
		text += "; the outcome is unknown: it may have taken effect"
	}
	fmt.Fprintf(w, "error: %s\n", text)
	if hint := Hint(err); hint != "" {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
}

// Stable is the code as tidemark errors lookup takes it, such as TM-0003.
func Stable(code errs.Code) string { return fmt.Sprintf("TM-%04d", int(code)) }
