package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// line is one record of the demo's input.
type line struct{ key, value string }

// input is real data that is on the reader's machine already.
type input struct {
	what  string // for people
	pipe  string // the shell command that makes the same records
	lines []line
}

// maxLines bounds the fallback, whose size nobody has counted.
const maxLines = 200_000

// goroot finds the Go toolchain.
func goroot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if root := strings.TrimSpace(string(out)); err == nil && root != "" {
		return root, nil
	}
	if root := os.Getenv("GOROOT"); root != "" {
		return root, nil
	}
	root := filepath.Join("/usr/local", "go")
	if runtime.GOOS == "windows" {
		root = `C:\Program Files\Go`
	}
	if _, err := os.Stat(root); err != nil {
		return "", errors.New("find the Go toolchain, whose files the demo loads: no go command in the PATH, and GOROOT is not set")
	}
	return root, nil
}

// goAPI is the history of Go's public API, or else the source of its standard library.
func goAPI(ctx context.Context) (input, error) {
	root, err := goroot(ctx)
	if err != nil {
		return input{}, err
	}
	files, err := filepath.Glob(filepath.Join(root, "api", "go1*.txt"))
	if err != nil || len(files) == 0 {
		return goSource(root)
	}
	in := input{
		what: fmt.Sprintf("%d files of Go's API history (%s)", len(files), filepath.Join(root, "api", "go1*.txt")),
		pipe: `cat $(go env GOROOT)/api/go1*.txt | sed -E 's/^pkg ([^ ,]*)/\1\t&/; t; s/^/\t/'`,
	}
	for _, name := range files {
		if err := eachLine(name, func(text string) bool {
			in.lines = append(in.lines, line{apiPackage(text), text})
			return true
		}); err != nil {
			return in, err
		}
	}
	return in, nil
}

// apiPackage is the package that a line of an API file is about.
func apiPackage(text string) string {
	rest, ok := strings.CutPrefix(text, "pkg ")
	if !ok {
		return ""
	}
	if end := strings.IndexAny(rest, " ,"); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

func goSource(root string) (input, error) {
	src := filepath.Join(root, "src")
	in := input{
		what: "the standard library's source (" + src + ")",
		pipe: `find $(go env GOROOT)/src -name '*.go' -exec awk '{print FILENAME "\t" $0}' {} +`,
	}
	err := filepath.WalkDir(src, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "testdata" {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		pkg, err := filepath.Rel(src, filepath.Dir(name))
		if err != nil {
			return err
		}
		err = eachLine(name, func(text string) bool {
			in.lines = append(in.lines, line{filepath.ToSlash(pkg), text})
			return len(in.lines) < maxLines
		})
		if len(in.lines) >= maxLines {
			return fs.SkipAll
		}
		return err
	})
	if err == nil && len(in.lines) == 0 {
		err = fmt.Errorf("there is neither an API history nor source in %s", root)
	}
	return in, err
}

func eachLine(name string, f func(string) bool) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	s := bufio.NewScanner(file)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if !f(s.Text()) {
			return nil
		}
	}
	return s.Err()
}
