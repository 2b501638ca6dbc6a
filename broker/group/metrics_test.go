package group

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	topics := &fakeTopics{all: map[string]Topic{}}
	topics.set("t", 2)
	registry := prometheus.NewPedanticRegistry()
	sg := &memoryGroup{term: 1, leading: true}
	c, err := New(Config{LagMetrics: true}, 1, Deps{Metadata: topics, Partitions: fakePartitions{}, Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	sg.sm = c.StateMachine(0)
	c.Attach(0, sg)
	r, err := c.Heartbeat(t.Context(), HeartbeatRequest{Group: "g", MemberID: "m", Topics: []string{"t"}})
	if err != nil {
		t.Fatal(err)
	}
	offsets := []OffsetCommit{{Topic: "t", Partition: 1, Offset: 90}}
	if bad, err := c.CommitOffsets(t.Context(), CommitRequest{Group: "g", MemberID: "m", MemberEpoch: r.MemberEpoch, Offsets: offsets}); err != nil || bad != nil {
		t.Fatal(bad, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += "," + l.GetName() + "=" + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"tidemark_group_lag,group=g,partition=1,topic=t": 10,
		"tidemark_group_members,group=g":                 1,
		"tidemark_group_rebalances_total,reason=join":    1,
		"tidemark_group_state,group=g,state=stable":      1,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v; all: %v", name, v, want, got)
		}
	}
	if age := got["tidemark_group_lag_seconds,group=g,partition=1,topic=t"]; age < 1e8 {
		t.Errorf("the first unread record is from 1999, and its age is %v s", age)
	}
}
