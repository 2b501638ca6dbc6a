package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

func (a *app) errorsCommand() *cobra.Command {
	return noun("errors", "Explain error codes", a.errorsLookup(), a.errorsList())
}

func (a *app) errorsLookup() *cobra.Command {
	c := &cobra.Command{
		Use: "lookup CODE", Short: "Explain a code, such as TM-0003, 3 or UNKNOWN_TOPIC_OR_PARTITION", Args: exactly("CODE"),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, code := range allCodes() {
				if matches(code, args[0]) {
					return a.printDocuments([]document{explain(code)})
				}
			}
			return fail.With(fail.NotFound, "tidemark errors list shows all codes", fmt.Errorf("there is no error code %q", args[0]))
		},
	}
	return impact(c, "read")
}

func (a *app) errorsList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List all error codes", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			t := table{columns: []string{"code", "number", "name", "retriable", "exit code"}}
			for _, code := range allCodes() {
				t.add(fail.Stable(code), int(code), code.Name(), code.Retriable(), fail.Exit(errs.New(code, "")))
			}
			return a.printTable(t)
		},
	}
	return impact(c, "read")
}

// allCodes lists every code that has a name.
func allCodes() []errs.Code {
	var all []errs.Code
	for n := range 1100 {
		if c := errs.Code(n); n > 0 && !strings.HasPrefix(c.Name(), "ERROR_") {
			all = append(all, c)
		}
	}
	return all
}

func matches(code errs.Code, text string) bool {
	text = strings.ToUpper(text)
	return text == fail.Stable(code) || text == code.Name() || text == strconv.Itoa(int(code))
}

func explain(code errs.Code) document {
	origin := "Kafka's error " + strconv.Itoa(int(code))
	if code >= 1000 {
		origin = "Tidemark's own"
	}
	retry := "no: the same request fails again"
	if code.Retriable() {
		retry = "yes: the same request may succeed later"
	}
	next := fail.Hint(errs.New(code, ""))
	if next == "" {
		next = "the message of the error says more"
	}
	return document{fields: []field{
		{"code", fail.Stable(code)}, {"name", code.Name()}, {"origin", origin}, {"meaning", meaning(code)},
		{"retriable", retry}, {"exit code", fail.Exit(errs.New(code, ""))}, {"next step", next},
	}}
}

var meanings = map[errs.Code]string{
	errs.OffsetOutOfRange:            "the offset is below the log start or beyond the end of the partition",
	errs.CorruptMessage:              "the checksum of a record batch does not hold: it was damaged on its way",
	errs.UnknownTopicOrPartition:     "there is no such topic, or it has no such partition",
	errs.LeaderNotAvailable:          "the partition has no leader at the moment",
	errs.NotLeaderOrFollower:         "the broker that was asked does not lead the partition",
	errs.RequestTimedOut:             "the answer did not come in time; for a write the outcome is unknown",
	errs.MessageTooLarge:             "a record batch is larger than the topic's max.message.bytes",
	errs.RecordListTooLarge:          "a record batch is larger than a segment of the topic, segment.bytes, or than the format allows",
	errs.CoordinatorNotAvailable:     "the group's coordinator has no leader at the moment",
	errs.NotCoordinator:              "the broker that was asked does not coordinate the group",
	errs.InvalidTopicException:       "the name is no topic name",
	errs.NotEnoughReplicas:           "fewer replicas are in sync than min.insync.replicas asks for; nothing was written",
	errs.TopicAlreadyExists:          "a topic of this name exists",
	errs.InvalidPartitions:           "the number of partitions cannot be had",
	errs.InvalidReplicationFactor:    "the number of replicas cannot be had: there are fewer brokers",
	errs.InvalidConfig:               "a setting is unknown or its value cannot be had",
	errs.OutOfOrderSequenceNumber:    "a batch of an idempotent producer is missing before this one",
	errs.InvalidProducerEpoch:        "a newer producer has taken this producer's id",
	errs.KafkaStorageError:           "the broker's disk failed",
	errs.NonEmptyGroup:               "the group has members",
	errs.GroupIDNotFound:             "there is no such group",
	errs.UnknownMemberID:             "the group does not know the member: it was silent for too long",
	errs.FencedMemberEpoch:           "the member's epoch is not the group's: the group went on without it",
	errs.InvalidRecord:               "a record batch is not well formed",
	errs.UnsupportedForMessageFormat: "the batch is not of format version 2",
	errs.ExpectationFailed:           "the partition is not at the offset that the append expects",
	errs.TokenTruncated:              "what was read is not part of the log any more",
	errs.StorageLow:                  "the disk is nearly full, so appends are refused before it is",
	errs.ReplicaQuarantined:          "damage was found in acknowledged data; the replica serves nothing until it is replaced",
	errs.ShuttingDown:                "the broker is stopping",
	errs.LimitExceeded:               "a bound of the broker is reached",
}

func meaning(code errs.Code) string {
	if m, ok := meanings[code]; ok {
		return m
	}
	return strings.ToLower(strings.ReplaceAll(code.Name(), "_", " "))
}
