package inspect

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// wasReset is the directory of a replica that was reset once; its log is in generation 1.
func wasReset(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "topics", "07", "3")
	if err := os.CopyFS(dir, os.DirFS("../../partition/testdata/v1/reset")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestVerifyAndDumpFollowTheGenerationInForce(t *testing.T) {
	dir := wasReset(t)
	for _, what := range []string{dir, filepath.Join(dir, "g-0000000000000001")} {
		s, err := Verify(fsx.OS(), what)
		if err != nil || len(s.Damage) != 0 || len(s.Partitions) != 1 || s.Records != 3 {
			t.Fatalf("%s: %+v, %v", what, s, err)
		}
		if p := s.Partitions[0]; filepath.Base(p.Dir) != "g-0000000000000001" || p.Partition != 3 || p.StartOffset != 4 || p.EndOffset != 7 {
			t.Fatalf("%s: %+v", what, p)
		}
	}
	frames := 0
	err := Partitions(fsx.OS(), dir, func(p string) error {
		return Dump(fsx.OS(), p, func(Frame) error { frames++; return nil })
	})
	if err != nil || frames != 3 {
		t.Fatalf("%d frames, %v", frames, err)
	}
}

func TestVerifyNamesADamagedCurrent(t *testing.T) {
	dir := wasReset(t)
	name := filepath.Join(dir, "CURRENT")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Verify(fsx.OS(), dir)
	if err != nil || len(s.Damage) != 1 || s.Damage[0].Path != name || s.Damage[0].Rebuilt || !strings.Contains(s.Damage[0].What, "CURRENT") {
		t.Fatalf("%+v, %v", s, err)
	}
	if err := Dump(fsx.OS(), dir, func(Frame) error { return nil }); err == nil {
		t.Fatal("dumped")
	}
}
