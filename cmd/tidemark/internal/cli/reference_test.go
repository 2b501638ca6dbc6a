package cli

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/cli.md")

func TestReferenceIsFresh(t *testing.T) {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	var got bytes.Buffer
	if err := WriteReference(&got, a.root()); err != nil {
		t.Fatal(err)
	}
	const page = "../../../../docs/cli.md"
	if *update {
		if err := os.WriteFile(page, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(page)
	if err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("docs/cli.md is stale (%v); run: go test ./cmd/tidemark/internal/cli -run Reference -update", err)
	}
}
