package controller

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The documentation of the topic settings is printed from their table.
func TestTopicSettingsDocIsFresh(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Settings of a topic\n\n")
	b.WriteString("The names are Kafka's. Set them with `tidemark topic create NAME --config key=value` and `tidemark topic alter`.\n")
	b.WriteString("Sizes may have a unit (`64MiB`, `1GB`), durations too (`250ms`, `7d`); a plain number is bytes or milliseconds.\n")
	b.WriteString("An unknown name is an error. What a topic does not set comes from the cluster's setting, then from the default.\n\n")
	b.WriteString("This page is printed from the table in `broker/controller/configs.go`: `go test ./broker/controller -run Doc -update`.\n\n")
	b.WriteString("| setting | default | meaning |\n|---|---|---|\n")
	for _, s := range TopicSettings() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", s.Name, s.Default, s.Doc)
	}
	const name = "../../docs/topic-settings.md"
	if *update {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != b.String() {
		t.Errorf("%s is stale: run go test ./broker/controller -run Doc -update: %v", name, err)
	}
}
