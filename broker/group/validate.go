package group

import (
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

const (
	maxNameBytes      = 255
	maxTopicNameBytes = 249
	maxTopics         = 10_000
	// maxOwned bounds the partitions that one heartbeat or commit names.
	maxOwned          = 100_000
	maxProtocols      = 64
	maxMetadataBytes  = 1 << 20 // of one classic member
	maxAssignedBytes  = maxCommandBytes / 2
	maxLeavingMembers = 10_000
)

// withDefaults fills in what a configuration does not say.
func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.MinSessionTimeout, 6*time.Second)
	def(&c.MaxSessionTimeout, 30*time.Minute)
	def(&c.DefaultSessionTimeout, 45*time.Second)
	def(&c.DefaultRebalanceTimeout, 60*time.Second)
	def(&c.HeartbeatInterval, 3*time.Second)
	def(&c.InitialRebalanceDelay, 3*time.Second)
	def(&c.OffsetRetention, 7*24*time.Hour)
	def(&c.SweepInterval, time.Minute)
	c.InitialRebalanceDelay = max(c.InitialRebalanceDelay, 0)
	count := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	count(&c.MaxGroupSize, 1000)
	count(&c.MaxGroups, 10_000)
	count(&c.MaxGroupPartitions, 100_000)
	count(&c.MaxMetadataBytes, 4096)
	count(&c.LagMetricsPartitions, 1000)
	return c
}

func (c Config) validate() error {
	switch {
	case c.MinSessionTimeout <= 0 || c.MaxSessionTimeout < c.MinSessionTimeout:
		return errs.Errorf(errs.InvalidConfig, "session timeouts from %v to %v: the first must be above 0 and not above the second", c.MinSessionTimeout, c.MaxSessionTimeout)
	case c.DefaultSessionTimeout < c.MinSessionTimeout || c.DefaultSessionTimeout > c.MaxSessionTimeout:
		return errs.Errorf(errs.InvalidConfig, "default session timeout %v is outside [%v, %v]", c.DefaultSessionTimeout, c.MinSessionTimeout, c.MaxSessionTimeout)
	case c.HeartbeatInterval <= 0 || c.DefaultRebalanceTimeout <= 0 || c.SweepInterval <= 0:
		return errs.Errorf(errs.InvalidConfig, "heartbeat interval, rebalance timeout and sweep interval must be above 0")
	case c.MaxGroupSize < 1 || c.MaxGroups < 1 || c.MaxGroupPartitions < 1 || c.MaxMetadataBytes < 0:
		return errs.Errorf(errs.InvalidConfig, "limits of groups, members, partitions and metadata must be above 0")
	}
	return nil
}

// validName admits what a person can read back: group, member, instance and client ids.
func validName(s string) bool {
	return len(s) <= maxNameBytes && utf8.ValidString(s) && !containsControl(s)
}

func containsControl(s string) bool {
	for _, r := range s {
		if unicode.IsControl(r) {
			return true
		}
	}
	return false
}

func checkGroup(name string) error {
	if name == "" || !validName(name) {
		return errs.Errorf(errs.InvalidGroupID, "group id %.64q: 1 to %d bytes of text without control characters are allowed", name, maxNameBytes)
	}
	return nil
}

func checkIDs(ids ...string) error {
	for _, id := range ids {
		if !validName(id) {
			return errs.Errorf(errs.InvalidRequest, "id %.64q: at most %d bytes of text without control characters are allowed", id, maxNameBytes)
		}
	}
	return nil
}

func (c Config) checkSession(d time.Duration) error {
	if d < c.MinSessionTimeout || d > c.MaxSessionTimeout {
		return errs.Errorf(errs.InvalidSessionTimeout, "session timeout %v is outside [%v, %v]", d, c.MinSessionTimeout, c.MaxSessionTimeout)
	}
	return nil
}

// tidyTopics checks a list of topics and returns it sorted, each name once.
func tidyTopics(topics []string) ([]string, error) {
	if len(topics) > maxTopics {
		return nil, errs.Errorf(errs.InvalidRequest, "%d topics are more than the %d allowed", len(topics), maxTopics)
	}
	for _, t := range topics {
		if t == "" || len(t) > maxTopicNameBytes || !validName(t) {
			return nil, errs.Errorf(errs.InvalidTopicException, "topic name %.64q: 1 to %d bytes are allowed", t, maxTopicNameBytes)
		}
	}
	topics = slices.Clone(topics)
	slices.Sort(topics)
	return slices.Compact(topics), nil
}

// flatten turns assignments into a set of partitions.
func flatten(all []Assignment) (map[TopicPartition]bool, error) {
	set := map[TopicPartition]bool{}
	for _, a := range all {
		if len(set)+len(a.Partitions) > maxOwned {
			return nil, errs.Errorf(errs.InvalidRequest, "more than %d partitions", maxOwned)
		}
		for _, p := range a.Partitions {
			set[TopicPartition{a.Topic, p}] = true
		}
	}
	return set, nil
}

// gather turns sorted partitions into assignments.
func gather(all []TopicPartition) []Assignment {
	var out []Assignment
	for _, tp := range all {
		if len(out) == 0 || out[len(out)-1].Topic != tp.Topic {
			out = append(out, Assignment{Topic: tp.Topic})
		}
		last := &out[len(out)-1]
		last.Partitions = append(last.Partitions, tp.Partition)
	}
	return out
}
