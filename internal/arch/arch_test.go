// Package arch checks the rules of the code base that need no outside tool: the
// import ladder, package comments, who may start goroutines and read the time,
// and what must compile for the simulator.
// Run with -count=1: the test cache does not see what "go list" reads.
package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/tidemarkhq/tidemark"

// ladder maps a folder to what it may import besides itself and what lies
// below it. The longest matching key wins.
var ladder = map[string][]string{
	"proto":              {},
	"log":                {"proto/record", "proto/errs", "internal/run", "internal/clock", "internal/fsx", "internal/failpoint", "internal/bug"},
	"partition":          {"log", "proto/record", "proto/errs", "internal/run", "internal/clock", "internal/fsx", "internal/failpoint", "internal/bug"},
	"broker":             {"partition", "log", "proto", "internal/run", "internal/clock", "internal/fsx", "internal/failpoint", "internal/bug"},
	"producer":           {"proto", "internal/client", "internal/run", "internal/clock"},
	"consumer":           {"proto", "internal/client", "internal/run", "internal/clock"},
	"admin":              {"proto", "internal/client", "internal/clock"},
	"cmd":                {"broker", "producer", "consumer", "admin", "proto", "internal"},
	"test":               {"log", "partition", "broker", "producer", "consumer", "admin", "cmd", "proto", "internal"},
	"internal/arch":      {},
	"internal/bug":       {},
	"internal/check":     {},
	"internal/child":     {"internal/run", "internal/failpoint", "internal/bug"},
	"internal/client":    {"proto", "internal/run", "internal/clock"},
	"internal/clock":     {},
	"internal/config":    {"internal/failpoint", "internal/bug"},
	"internal/failpoint": {},
	"internal/fsx":       {"internal/failpoint"},
	"internal/run":       {},
	"internal/simnet":    {"partition", "internal/run", "internal/clock", "internal/bug"},
	"internal/testkit":   {"broker", "proto", "internal"},
}

type pkg struct {
	ImportPath, Dir, Doc string
	Imports, GoFiles     []string
}

func TestLadder(t *testing.T) {
	for _, p := range packages(t) {
		from := rel(p.ImportPath)
		rung, ok := rungOf(from)
		if !ok {
			t.Errorf("%s stands on no rung; add one here", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if ours && !underAny(to, append([]string{rung}, ladder[rung]...)) {
				t.Errorf("%s imports %s; %s may import only %v", from, to, rung, ladder[rung])
			}
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", rel(p.ImportPath))
		}
	}
}

func TestOnlyRunStartsGoroutines(t *testing.T) {
	for _, p := range packages(t) {
		if rel(p.ImportPath) == "internal/run" {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.GoStmt); ok {
					t.Errorf("%s: naked go statement; use run.Group", fset.Position(s.Pos()))
				}
				return true
			})
		}
	}
}

// The wall clock is read in one place, so that tests can make it jump.
func TestOnlyClockReadsTheTime(t *testing.T) {
	for _, p := range packages(t) {
		if rel(p.ImportPath) == "internal/clock" {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && (s.Sel.Name == "Now" || s.Sel.Name == "Since" || s.Sel.Name == "Until") {
					t.Errorf("%s: time.%s; use internal/clock", fset.Position(s.Pos()), s.Sel.Name)
				}
				return true
			})
		}
	}
}

// The simulator runs these packages as a wasip1 module.
func TestCompilesForTheSimulator(t *testing.T) {
	args := []string{"build", "./log/...", "./partition/...", "./broker/controller", "./broker/group", "./broker/replicas", "./internal/check", "./internal/simnet"}
	cmd := exec.Command("go", args...)
	cmd.Dir = "../.."
	cmd.Env = append(cmd.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("GOOS=wasip1 go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,GoFiles", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p pkg
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func rel(path string) string { return strings.TrimPrefix(path, module+"/") }

func rungOf(path string) (rung string, ok bool) {
	for dir := range ladder {
		if under(path, dir) && len(dir) > len(rung) {
			rung, ok = dir, true
		}
	}
	return rung, ok
}

func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func underAny(path string, dirs []string) bool {
	for _, dir := range dirs {
		if under(path, dir) {
			return true
		}
	}
	return false
}
