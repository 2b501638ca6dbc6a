package release

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// never are packages that no release contains: they break things, or judge.
var never = []string{"internal/fsx/sim", "internal/simnet", "internal/testkit", "internal/check", "test"}

// hooks are the packages that leave nothing behind in a release, not even a symbol.
var hooks = []string{"internal/failpoint", "internal/bug"}

const module = "github.com/tidemarkhq/tidemark/"

// The binary as it is released holds no name of a failpoint or a seeded bug, no variable that switches one on,
// no symbol of their packages, and no simulated disk or network. A build with the tags,
// as a control, holds the former.
func TestReleaseBinaryHasNoHooks(t *testing.T) {
	release, tagged := build(t), build(t, "-tags", "failpoint,bugs")
	words := append(names(t, `failpoint\.Hit\("([^"]+)"\)`), bugNames(t)...)
	words = append(words, "TIDEMARK_FAILPOINT", "TIDEMARK_BUG", module+"internal/failpoint.", module+"internal/bug.")
	if len(words) < 60 {
		t.Fatalf("only %d names were found in the source", len(words))
	}
	released, control := read(t, release), read(t, tagged)
	missing := 0
	for _, w := range words {
		if bytes.Contains(released, []byte(w)) {
			t.Errorf("the release contains %q", w)
		}
		if !bytes.Contains(control, []byte(w)) {
			missing++ // the linker leaves out what cmd/tidemark does not reach
			t.Logf("the build with the tags lacks %q", w)
		}
	}
	if missing > len(words)/10 {
		t.Errorf("the build with the tags lacks %d of %d names: this test would not see them", missing, len(words))
	}
	if n := len(symbols(t, release)); n > 0 {
		t.Errorf("the release has %d symbols of the hooks: %q", n, symbols(t, release))
	}
	if len(symbols(t, tagged)) == 0 {
		t.Error("the build with the tags has no symbols of the hooks: this test would not see them")
	}
}

func TestReleaseBinaryHasNoTestPackages(t *testing.T) {
	deps := strings.Fields(string(command(t, "go", "list", "-deps", "./cmd/tidemark")))
	if len(deps) < 100 {
		t.Fatalf("only %d packages", len(deps))
	}
	for _, d := range deps {
		own := strings.TrimPrefix(d, module)
		for _, n := range never {
			if own == n || own != d && strings.HasPrefix(own, n+"/") {
				t.Errorf("cmd/tidemark imports %s", d)
			}
		}
	}
	for _, h := range hooks {
		if !slices.Contains(deps, module+h) {
			t.Errorf("%s is not there at all: what does this test look for?", h)
		}
	}
}

// build builds cmd/tidemark as the Makefile does, but for -trimpath, which would compile the
// world anew and changes no name.
func build(t *testing.T, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "tidemark")
	command(t, "go", append(append([]string{"build", "-o", out}, flags...), "./cmd/tidemark")...)
	return out
}

func command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.Bytes())
	}
	return out
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// symbols are those of the hooks' packages.
func symbols(t *testing.T, binary string) (all []string) {
	t.Helper()
	for _, line := range strings.Split(string(command(t, "go", "tool", "nm", binary)), "\n") {
		for _, h := range hooks {
			if strings.Contains(line, module+h+".") {
				all = append(all, strings.TrimSpace(line))
			}
		}
	}
	return all
}

// names are what a pattern finds in the source, tests apart.
func names(t *testing.T, pattern string) (all []string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		for _, m := range re.FindAllSubmatch(read(t, name), -1) {
			all = append(all, string(m[1]))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// bugNames are the words in the table of package bug.
func bugNames(t *testing.T) (all []string) {
	t.Helper()
	table := regexp.MustCompile(`(?s)var names = \[\]string\{(.*?)\n\}`).FindSubmatch(read(t, "../../internal/bug/on.go"))
	if table == nil {
		t.Fatal("internal/bug/on.go has no table of names")
	}
	for _, m := range regexp.MustCompile(`"(\w+)"`).FindAllSubmatch(table[1], -1) {
		all = append(all, string(m[1]))
	}
	return all
}
