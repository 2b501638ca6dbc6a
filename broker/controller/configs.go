package controller

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// TopicSetting is one setting that a topic can have. The table of them is the
// one place where name, default, meaning and check stand; the documentation is
// made from it.
type TopicSetting struct {
	Name    string
	Default string
	Doc     string
	// parse checks a value, puts it into c and returns its canonical form.
	parse func(c *partition.TopicConfig, value string) (canonical string, err error)
}

// TopicSettings lists the settings, by name.
func TopicSettings() []TopicSetting { return slices.Clone(topicSettings) }

// Origins of a setting's value.
const (
	OriginDefault = "default"
	OriginCluster = "cluster"
	OriginTopic   = "topic"
)

var topicSettings = []TopicSetting{
	{"cleanup.policy", "delete",
		"What becomes of old records. delete: whole segments go when retention.ms or retention.bytes says so. compact is not in this version.",
		func(c *partition.TopicConfig, v string) (string, error) {
			if strings.Contains(v, "compact") {
				return "", fmt.Errorf("compaction is not in this version: use delete")
			}
			return oneOf(&c.CleanupPolicy, v, "delete")
		}},
	{"compression.type", "producer",
		"producer: batches are kept as the producer compressed them. The broker never compresses again, so no other value is accepted: choose the codec at the producer.",
		func(_ *partition.TopicConfig, v string) (string, error) {
			if v != "producer" {
				return "", fmt.Errorf("the broker never recompresses: use producer here, and choose the codec at the producer")
			}
			return v, nil
		}},
	{"flush", "commit",
		"When records are made durable. commit: before they are acknowledged. interval: every flush.ms. os: when the system likes. With interval and os an acknowledged record can be lost in a power cut.",
		func(c *partition.TopicConfig, v string) (string, error) {
			return oneOf(&c.Flush, v, "commit", "interval", "os")
		}},
	{"flush.ms", "1000",
		"How long a record may stay in memory only, with flush=interval.",
		millis(func(c *partition.TopicConfig) *time.Duration { return &c.FlushInterval }, 1, math.MaxInt32)},
	{"max.message.bytes", "1048588",
		"The largest record batch, compressed, that is accepted; at most 8 MiB.",
		func(c *partition.TopicConfig, v string) (string, error) {
			n, err := size(v, 1<<10, 8<<20)
			c.MaxBatchBytes = int(n)
			return canonical(n, err)
		}},
	{"message.timestamp.after.max.ms", "3600000",
		"How far a record's timestamp may lie ahead of the broker's clock.",
		millis(func(c *partition.TopicConfig) *time.Duration { return &c.TimestampAfter }, 0, math.MaxInt64)},
	{"message.timestamp.before.max.ms", "9223372036854775807",
		"How far a record's timestamp may lie behind the broker's clock.",
		millis(func(c *partition.TopicConfig) *time.Duration { return &c.TimestampBefore }, 0, math.MaxInt64)},
	{"message.timestamp.type", "CreateTime",
		"CreateTime: the producer's timestamps stand. LogAppendTime: the broker stamps the time of the append.",
		func(c *partition.TopicConfig, v string) (string, error) {
			var s string
			v, err := oneOf(&s, v, "CreateTime", "LogAppendTime")
			c.LogAppendTime = s == "LogAppendTime"
			return v, err
		}},
	{"min.insync.replicas", "1",
		"How many in-sync replicas an append with acks=all needs; with fewer it is refused.",
		func(c *partition.TopicConfig, v string) (string, error) {
			n, err := size(v, 1, maxReplicas)
			c.MinInsync = int(n)
			return canonical(n, err)
		}},
	{"retention.bytes", "-1",
		"How large one partition may grow before its oldest segments go. -1: no limit.",
		func(c *partition.TopicConfig, v string) (string, error) {
			n, err := size(v, -1, math.MaxInt64)
			c.Retention.Bytes = n
			return canonical(n, err)
		}},
	{"retention.ms", "604800000",
		"How long records are kept at least, by their timestamps, counted for whole segments. -1: for ever.",
		millis(func(c *partition.TopicConfig) *time.Duration { return &c.Retention.Age }, -1, math.MaxInt64)},
	{"segment.bytes", "67108864",
		"The size at which a segment is sealed, 64 KiB to 1 GiB. Retention gives up whole segments, and a restart reads one.",
		func(c *partition.TopicConfig, v string) (string, error) {
			n, err := size(v, log.MinSegmentBytes, 1<<30)
			c.SegmentBytes = n
			return canonical(n, err)
		}},
	{"segment.ms", "604800000",
		"The age at which a segment is sealed even when it is not full.",
		millis(func(c *partition.TopicConfig) *time.Duration { return &c.SegmentAge }, 1, math.MaxInt64)},
}

// kafkaOnly are settings of Kafka's that mean nothing here, with what to know instead.
var kafkaOnly = map[string]string{
	"delete.retention.ms":                     "compaction is not in this version",
	"file.delete.delay.ms":                    "deleted topics go to the trash and are removed slowly",
	"flush.messages":                          "records are durable before they are acknowledged; see flush",
	"follower.replication.throttled.replicas": "replication is not throttled by topic",
	"index.interval.bytes":                    "indexes are rebuilt as needed and not tuned",
	"leader.replication.throttled.replicas":   "replication is not throttled by topic",
	"max.compaction.lag.ms":                   "compaction is not in this version",
	"message.downconversion.enable":           "only record batches of version 2 exist",
	"message.format.version":                  "only record batches of version 2 exist",
	"min.cleanable.dirty.ratio":               "compaction is not in this version",
	"min.compaction.lag.ms":                   "compaction is not in this version",
	"preallocate":                             "segments are recycled",
	"remote.storage.enable":                   "tiered storage is not in this version",
	"segment.index.bytes":                     "indexes are rebuilt as needed and not tuned",
	"segment.jitter.ms":                       "retention is jittered by itself",
	"unclean.leader.election.enable":          "no unclean election exists",
}

func setting(name string) (TopicSetting, error) {
	i, found := slices.BinarySearchFunc(topicSettings, name, func(s TopicSetting, n string) int { return strings.Compare(s.Name, n) })
	if found {
		return topicSettings[i], nil
	}
	if why, known := kafkaOnly[name]; known {
		return TopicSetting{}, errs.Errorf(errs.InvalidConfig, "%s has no meaning here: %s", name, why)
	}
	names := make([]string, len(topicSettings))
	for i, s := range topicSettings {
		names[i] = s.Name
	}
	if near := nearest(name, names); near != "" {
		return TopicSetting{}, errs.Errorf(errs.InvalidConfig, "unknown topic setting %q; did you mean %q?", name, near)
	}
	return TopicSetting{}, errs.Errorf(errs.InvalidConfig, "unknown topic setting %q; there are %s", name, strings.Join(names, ", "))
}

// CheckTopicConfigs checks settings and returns them in canonical form. All that is wrong
// is named at once.
func CheckTopicConfigs(set map[string]string) (map[string]string, error) {
	var problems []string
	var scratch partition.TopicConfig
	canonical := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		s, err := setting(name)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		v, err := s.parse(&scratch, strings.TrimSpace(set[name]))
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s=%q: %v", name, set[name], err))
			continue
		}
		canonical[name] = v
	}
	if len(problems) > 0 {
		return nil, errs.New(errs.InvalidConfig, strings.Join(problems, "; "))
	}
	return canonical, nil
}

// ReplicaConfig is what replicas obey: the topic's settings over the cluster's over the
// defaults. A stored value that this version does not understand gives way to the
// next: a newer broker may have accepted it.
func ReplicaConfig(cluster, topic map[string]string) partition.TopicConfig {
	var c partition.TopicConfig
	for _, s := range topicSettings {
		for _, v := range []string{topic[s.Name], cluster[s.Name], s.Default} {
			if v == "" {
				continue
			}
			if _, err := s.parse(&c, v); err == nil {
				break
			}
		}
	}
	return c
}

// entries lists all settings with their origin.
func entries(cluster, topic map[string]string) []ConfigEntry {
	list := make([]ConfigEntry, 0, len(topicSettings))
	for _, s := range topicSettings {
		e := ConfigEntry{Name: s.Name, Value: s.Default, Default: s.Default, Origin: OriginDefault, Doc: s.Doc}
		if v, ok := cluster[s.Name]; ok {
			e.Value, e.Origin = v, OriginCluster
		}
		if v, ok := topic[s.Name]; ok {
			e.Value, e.Origin = v, OriginTopic
		}
		list = append(list, e)
	}
	return list
}

func oneOf(target *string, v string, options ...string) (string, error) {
	if !slices.Contains(options, v) {
		return "", fmt.Errorf("want %s", strings.Join(options, " or "))
	}
	*target = v
	return v, nil
}

func canonical(n int64, err error) (string, error) { return strconv.FormatInt(n, 10), err }

// millis parses a duration: a number of milliseconds, or a number with a unit.
func millis(field func(*partition.TopicConfig) *time.Duration, low, high int64) func(*partition.TopicConfig, string) (string, error) {
	return func(c *partition.TopicConfig, v string) (string, error) {
		n, err := number(v, durationUnits, low, high, "250ms, 90s, 12h, 7d")
		if err != nil {
			return "", err
		}
		*field(c) = saturate(n)
		return strconv.FormatInt(n, 10), nil
	}
}

// saturate turns milliseconds into a duration that does not overflow: Kafka writes
// "for ever" as the largest number of milliseconds.
func saturate(ms int64) time.Duration {
	if ms > math.MaxInt64/int64(time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(ms) * time.Millisecond
}

func size(v string, low, high int64) (int64, error) {
	return number(v, sizeUnits, low, high, "1048576, 64MiB, 1GB")
}

type unit struct {
	suffix string
	factor int64
}

// Longer suffixes stand before those they end with.
var (
	durationUnits = []unit{{"ms", 1}, {"s", 1000}, {"m", 60_000}, {"h", 3_600_000}, {"d", 86_400_000}}
	sizeUnits     = []unit{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
		{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}}
)

func number(v string, units []unit, low, high int64, examples string) (int64, error) {
	digits, factor := v, int64(1)
	for _, u := range units {
		if head, ok := strings.CutSuffix(v, u.suffix); ok {
			digits, factor = strings.TrimSpace(head), u.factor
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("want a whole number such as %s", examples)
	}
	if n > math.MaxInt64/factor || n < math.MinInt64/factor || n*factor < low || n*factor > high {
		return 0, fmt.Errorf("want %d to %d", low, high)
	}
	return n * factor, nil
}
