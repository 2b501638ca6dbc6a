package arch

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A promise in docs/guarantees.md and a fault in docs/reliability.md name the tests that try to break it, as
// package.TestName. A renamed test must not leave one of them without proof.
func TestGuaranteesNameTestsThatExist(t *testing.T) {
	have := testsByPackage(t)
	for _, name := range []string{"guarantees.md", "reliability.md"} {
		page, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`(\\w+)\\.(Test\\w+)`").FindAllSubmatch(page, -1) {
			if !have[string(m[1])+"."+string(m[2])] {
				t.Errorf("docs/%s names %s.%s; there is no such test", name, m[1], m[2])
			}
		}
	}
}

func testsByPackage(t *testing.T) map[string]bool {
	t.Helper()
	have := map[string]bool{}
	clause := regexp.MustCompile(`(?m)^package (\w+)`)
	test := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		pkg := bytes.TrimSuffix(clause.FindSubmatch(src)[1], []byte("_test"))
		for _, m := range test.FindAllSubmatch(src, -1) {
			have[string(pkg)+"."+string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}
