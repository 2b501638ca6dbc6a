package controller

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// fakeGroup commits at once. refuse, when set, stands for a group without a leader.
type fakeGroup struct {
	mu     sync.Mutex
	state  *State
	index  uint64
	refuse error
}

func (g *fakeGroup) Propose(_ context.Context, b []byte) (any, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse != nil {
		return nil, g.refuse
	}
	g.index++
	return g.state.Apply(g.index, b), nil
}

func (g *fakeGroup) Read(context.Context) error { return g.refuse }
func (g *fakeGroup) Leading() (uint64, bool)    { return 1, g.refuse == nil }

// newCluster is a cluster of one broker that takes 20 partitions.
func newCluster(t *testing.T) (*Controller, *fakeGroup) {
	t.Helper()
	g := &fakeGroup{state: NewState()}
	c, err := New(DefaultConfig(), g.state, g)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Bootstrap(t.Context(), NewUUID(), 8); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Register(t.Context(), Self{UUID: NewUUID(), PartitionLimit: 20}); err != nil {
		t.Fatal(err)
	}
	return c, g
}

// lead reports every partition as led, as the replicas of a live broker do.
func lead(t *testing.T, c *Controller) {
	t.Helper()
	changed := make(chan struct{}, 1)
	cancel := c.Notify(changed)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var all []Leadership
			for _, topic := range c.Topics() {
				for _, p := range topic.Partitions {
					if p.Leader < 0 {
						all = append(all, Leadership{topic.ID, p.Partition, c.BrokerID(), 1, []int32{c.BrokerID()}})
					}
				}
			}
			if len(all) > 0 {
				_ = c.Report(ctx, all)
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { stop(); cancel(); <-done })
}

func TestCreateTopicReturnsWhenLeadersServe(t *testing.T) {
	c, _ := newCluster(t)
	lead(t, c)
	topic, existed, err := c.CreateTopic(t.Context(), NewTopic{Name: "orders", Partitions: 3, Configs: map[string]string{"retention.ms": "7d"}})
	if err != nil || existed {
		t.Fatal(existed, err)
	}
	for _, p := range topic.Partitions {
		if p.Leader != c.BrokerID() {
			t.Errorf("partition %d has leader %d", p.Partition, p.Leader)
		}
	}
	if got := topic.Configs["retention.ms"]; got != "604800000" {
		t.Errorf("retention.ms is kept as %q", got)
	}
	again, existed, err := c.CreateTopic(t.Context(), NewTopic{Name: "orders", IfNotExists: true})
	if err != nil || !existed || again.ID != topic.ID {
		t.Error(again, existed, err)
	}
	grown, err := c.AddPartitions(t.Context(), "orders", 5, false)
	if err != nil || len(grown.Partitions) != 5 || grown.Partitions[4].Leader != c.BrokerID() {
		t.Error(grown, err)
	}
}

func TestCreateTopicWithoutLeadersSaysThatItExists(t *testing.T) {
	c, _ := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, _, err := c.CreateTopic(ctx, NewTopic{Name: "orders"})
	if errs.CodeOf(err) != errs.RequestTimedOut || !errs.OutcomeUnknown(err) {
		t.Errorf("want a timeout with an unknown outcome, got %v", err)
	}
	if _, ok := c.Topic("orders"); !ok {
		t.Error("the topic is not there")
	}
}

func TestRefusals(t *testing.T) {
	c, _ := newCluster(t)
	lead(t, c)
	if _, _, err := c.CreateTopic(t.Context(), NewTopic{Name: "taken", Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	create := func(n NewTopic) error { _, _, err := c.CreateTopic(t.Context(), n); return err }
	add := func(name string, n int32) error { _, err := c.AddPartitions(t.Context(), name, n, false); return err }
	for _, tc := range []struct {
		name string
		err  error
		code errs.Code
		says string
	}{
		{"exists", create(NewTopic{Name: "taken"}), errs.TopicAlreadyExists, "taken"},
		{"exists, validated only", create(NewTopic{Name: "taken", ValidateOnly: true}), errs.TopicAlreadyExists, "taken"},
		{"no name", create(NewTopic{}), errs.InvalidTopicException, "empty"},
		{"dots", create(NewTopic{Name: ".."}), errs.InvalidTopicException, ".."},
		{"slash", create(NewTopic{Name: "a/b"}), errs.InvalidTopicException, "position 1"},
		{"long name", create(NewTopic{Name: strings.Repeat("x", 250)}), errs.InvalidTopicException, "250"},
		{"negative partitions", create(NewTopic{Name: "n", Partitions: -2}), errs.InvalidPartitions, "-2"},
		{"too many replicas", create(NewTopic{Name: "n", ReplicationFactor: 3}), errs.InvalidReplicationFactor, "brokers in the cluster is 1;"},
		{"budget", create(NewTopic{Name: "n", Partitions: 19}), errs.LimitExceeded, "limits.partitions"},
		{"budget, validated only", create(NewTopic{Name: "n", Partitions: 19, ValidateOnly: true}), errs.LimitExceeded, "2 of at most 20"},
		{"unknown setting", create(NewTopic{Name: "n", Configs: map[string]string{"retention.mss": "1"}}), errs.InvalidConfig, `did you mean "retention.ms"`},
		{"setting of Kafka's only", create(NewTopic{Name: "n", Configs: map[string]string{"preallocate": "true"}}), errs.InvalidConfig, "no meaning here"},
		{"compaction", create(NewTopic{Name: "n", Configs: map[string]string{"cleanup.policy": "compact"}}), errs.InvalidConfig, "compaction"},
		{"recompression", create(NewTopic{Name: "n", Configs: map[string]string{"compression.type": "zstd"}}), errs.InvalidConfig, "codec"},
		{"a segment smaller than the log makes", create(NewTopic{Name: "n", Configs: map[string]string{"segment.bytes": strconv.Itoa(log.MinSegmentBytes - 1)}}), errs.InvalidConfig, "segment.bytes"},
		{"all problems at once", create(NewTopic{Name: "n", Configs: map[string]string{"flush": "never", "segment.bytes": "1"}}), errs.InvalidConfig, "commit or interval or os; segment.bytes"},
		{"alter unknown topic", c.AlterTopic(t.Context(), "none", nil, nil, false), errs.UnknownTopicOrPartition, "none"},
		{"unset unknown setting", c.AlterTopic(t.Context(), "taken", nil, []string{"x"}, false), errs.InvalidConfig, "unknown"},
		{"fewer partitions", add("taken", 1), errs.InvalidPartitions, "only grow"},
		{"as many partitions", add("taken", 2), errs.InvalidPartitions, "only grow"},
		{"partitions beyond the budget", add("taken", 21), errs.LimitExceeded, "delete topics"},
		{"delete unknown", c.DeleteTopic(t.Context(), "none", false, false), errs.UnknownTopicOrPartition, "none"},
	} {
		if errs.CodeOf(tc.err) != tc.code || !strings.Contains(errText(tc.err), tc.says) {
			t.Errorf("%s: want %v with %q, got %v: %v", tc.name, tc.code, tc.says, errs.CodeOf(tc.err), tc.err)
		}
	}
	if err := c.DeleteTopic(t.Context(), "none", true, false); err != nil {
		t.Errorf("delete if exists: %v", err)
	}
	if n := len(c.Topics()); n != 1 {
		t.Errorf("refusals left %d topics", n)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestValidateOnlyChangesNothing(t *testing.T) {
	c, g := newCluster(t)
	lead(t, c)
	if _, _, err := c.CreateTopic(t.Context(), NewTopic{Name: "kept"}); err != nil {
		t.Fatal(err)
	}
	before := g.state.Hash()
	topic, _, err := c.CreateTopic(t.Context(), NewTopic{Name: "n", Partitions: 2, ValidateOnly: true})
	if err != nil || len(topic.Partitions) != 2 {
		t.Error(topic, err)
	}
	if err := c.AlterTopic(t.Context(), "kept", map[string]string{"flush": "os"}, nil, true); err != nil {
		t.Error(err)
	}
	if _, err := c.AddPartitions(t.Context(), "kept", 4, true); err != nil {
		t.Error(err)
	}
	if err := c.DeleteTopic(t.Context(), "kept", false, true); err != nil {
		t.Error(err)
	}
	if g.state.Hash() != before {
		t.Error("validate-only changed the state")
	}
}

func TestTopicConfigsNameTheirOrigin(t *testing.T) {
	c, g := newCluster(t)
	lead(t, c)
	g.state.Apply(50, encodeCommand(alterCluster{map[string]string{"segment.ms": "5000", "flush": "os"}, nil}))
	if _, _, err := c.CreateTopic(t.Context(), NewTopic{Name: "n", Configs: map[string]string{"flush": "interval", "flush.ms": "250ms"}}); err != nil {
		t.Fatal(err)
	}
	list, err := c.TopicConfigs("n")
	if err != nil || len(list) != len(topicSettings) {
		t.Fatal(len(list), err)
	}
	origins := map[string]string{}
	for _, e := range list {
		origins[e.Name] = e.Origin + " " + e.Value
		if e.Doc == "" {
			t.Errorf("%s has no documentation", e.Name)
		}
	}
	for name, want := range map[string]string{"flush": "topic interval", "flush.ms": "topic 250", "segment.ms": "cluster 5000", "retention.bytes": "default -1"} {
		if origins[name] != want {
			t.Errorf("%s is %q, want %q", name, origins[name], want)
		}
	}
	topic, _ := c.Topic("n")
	obeyed := c.ReplicaConfig(topic)
	if obeyed.Flush != "interval" || obeyed.FlushInterval != 250*time.Millisecond || obeyed.SegmentAge != 5*time.Second || obeyed.Retention.Age != 7*24*time.Hour {
		t.Errorf("replicas obey %+v", obeyed)
	}
}

func TestDefaultsAreValidAndCanonical(t *testing.T) {
	for _, s := range TopicSettings() {
		got, err := CheckTopicConfigs(map[string]string{s.Name: s.Default})
		if err != nil || got[s.Name] != s.Default {
			t.Errorf("%s: default %q becomes %q: %v", s.Name, s.Default, got[s.Name], err)
		}
	}
}

func TestProducerIDsAreNeverReused(t *testing.T) {
	c, g := newCluster(t)
	seen := map[int64]bool{}
	take := func(c *Controller, n int) {
		for range n {
			id, epoch, err := c.InitProducer(t.Context())
			if err != nil || epoch != 0 || seen[id] {
				t.Fatalf("producer id %d, epoch %d, seen %v: %v", id, epoch, seen[id], err)
			}
			seen[id] = true
		}
	}
	take(c, producerBlock+5)
	after, err := New(DefaultConfig(), g.state, g) // the process died, the state did not
	if err != nil {
		t.Fatal(err)
	}
	take(after, 10)
}

func TestNotTheLeaderIsNotTheController(t *testing.T) {
	c, g := newCluster(t)
	for _, tc := range []struct {
		err     error
		unknown bool
	}{
		{errs.New(errs.NotLeaderOrFollower, "no"), false},
		{errs.Unknown(errs.NotLeaderOrFollower, "lost"), true},
	} {
		g.refuse = tc.err
		_, _, err := c.InitProducer(t.Context())
		if errs.CodeOf(err) != errs.NotController || errs.OutcomeUnknown(err) != tc.unknown {
			t.Errorf("%v became %v, unknown %v", tc.err, err, errs.OutcomeUnknown(err))
		}
	}
	if c.ControllerID() != -1 {
		t.Error("a broker that does not lead the group is no controller")
	}
	g.refuse = errors.New("x")
	if err := c.Linearize(t.Context()); err == nil {
		t.Error("linearize without a group succeeded")
	}
}

func TestUUIDRoundTrip(t *testing.T) {
	u := NewUUID()
	back, err := ParseUUID(u.String())
	if err != nil || back != u {
		t.Errorf("%v came back as %v: %v", u, back, err)
	}
	for _, bad := range []string{"", "x", strings.Repeat("-", 36), u.String() + "0", strings.ToUpper("g" + u.String()[1:])} {
		if _, err := ParseUUID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestLikelyMistakesAreWarnedOf(t *testing.T) {
	g := &fakeGroup{state: NewState()}
	var logged bytes.Buffer
	cfg := DefaultConfig()
	cfg.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	c, err := New(cfg, g.state, g)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Bootstrap(t.Context(), NewUUID(), 8); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Register(t.Context(), Self{UUID: NewUUID(), PartitionLimit: 20}); err != nil {
		t.Fatal(err)
	}
	lead(t, c)
	for _, n := range []NewTopic{{Name: "a.b"}, {Name: "a_b"}, {Name: "c", Configs: map[string]string{"min.insync.replicas": "2"}}} {
		if _, _, err := c.CreateTopic(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"look alike in metrics", "min.insync.replicas is above"} {
		if strings.Count(logged.String(), want) != 1 {
			t.Errorf("%q was not said once:\n%s", want, &logged)
		}
	}
}
