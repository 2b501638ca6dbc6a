package broker

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/partition"
)

// TestMetricsAreDocumented scrapes a broker that has done a bit of everything.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := names(regexp.MustCompile("(?m)^\\| `(tidemark_[a-z_]+)` \\| (?:counter|gauge|histogram) "), string(page))

	b := start(t, testConfig(t.TempDir()))
	b.create(t, "t", 1, nil)
	b.mustProduce(t, "t", 0, "v")
	if pending, err := b.replicas.Produce(t.Context(), "t", 0, partition.Append{Batch: batchOf(t, "v"), Conditional: true, Expect: 7}); err == nil {
		_, err = pending.Result(t.Context())
		if err == nil {
			t.Fatal("an append at the wrong offset was accepted")
		}
	}
	commit := group.CommitRequest{Group: "g", Offsets: []group.OffsetCommit{{Topic: "t", Offset: 1}}}
	if _, err := b.groups.CommitOffsets(t.Context(), commit); err != nil {
		t.Fatal(err)
	}
	join := group.HeartbeatRequest{Group: "h", MemberID: "m", Topics: []string{"t"}}
	if _, err := b.groups.Heartbeat(t.Context(), join); err != nil {
		t.Fatal(err)
	}
	body, _ := get(t, b, "/metrics")
	shown := names(regexp.MustCompile(`(?m)^# TYPE (tidemark_[a-z_]+) `), body)
	for _, name := range shown {
		if !slices.Contains(documented, name) {
			t.Errorf("docs/metrics.md does not tell what %s is", name)
		}
	}
	// Series of gRPC calls appear with the first call, which is not made here.
	byCall := []string{"tidemark_requests_total", "tidemark_request_duration_seconds", "tidemark_grpcapi_open_streams"}
	for _, name := range documented {
		if !slices.Contains(shown, name) && !slices.Contains(byCall, name) {
			t.Errorf("docs/metrics.md has %s, which the broker does not show", name)
		}
	}
}

func names(re *regexp.Regexp, text string) []string {
	var all []string
	for _, m := range re.FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}
