package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/child"
)

// What the README shows works as it stands there, with the address of this test's broker.
func TestReadmeBlocks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the README's shell is a POSIX shell")
	}
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	b, err := child.Start(ctx, child.Config{Dir: filepath.Join(dir, "data")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Kill() }() // the test is over
	commands, programs := readmeBlocks(string(page))
	if len(commands) < 8 || len(programs) != 2 {
		t.Fatalf("the README has %d commands and %d programs; did its form change?", len(commands), len(programs))
	}
	t.Run("commands", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "app.log"), []byte("one\ntwo\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, command := range commands {
			out, err := shell(ctx, dir, b.GRPC, finite(command))
			if err != nil {
				t.Fatalf("%s\n%v\n%s", command, err, out)
			}
		}
	})
	t.Run("programs", func(t *testing.T) {
		if out, err := shell(ctx, dir, b.GRPC, "tidemark topic create orders"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		out := runPrograms(ctx, t, dir, b.GRPC, programs)
		for _, want := range []string{"partition 0, offset 0, acks all", "orders 0 0 paid"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	})
}

var fence = regexp.MustCompile("(?s)```(\\w+)\n(.*?)```")

// readmeBlocks returns the commands for "another terminal", and the Go programs.
func readmeBlocks(page string) (commands, programs []string) {
	for _, m := range fence.FindAllStringSubmatch(page, -1) {
		switch {
		case m[1] == "go":
			programs = append(programs, m[2])
		case m[1] == "sh" && strings.Contains(m[2], "tidemark topic create"):
			for line := range strings.Lines(m[2]) {
				if line = strings.TrimSpace(line); line != "" {
					commands = append(commands, line)
				}
			}
		}
	}
	return commands, programs
}

// finite makes a command end that runs until Ctrl-C, and needs no jq.
func finite(command string) string {
	command = strings.Replace(command, "tail -F", "cat", 1)
	if strings.Contains(command, "consume greetings -g readers") {
		command = strings.Replace(command, "-g readers", "-g readers -n 1", 1)
	}
	if _, err := exec.LookPath("jq"); err != nil {
		command = strings.Replace(command, "jq -r .value", "cat", 1)
	}
	return command
}

func shell(ctx context.Context, dir, brokers, command string) (string, error) {
	c := exec.CommandContext(ctx, "sh", "-c", command)
	c.Dir = dir
	c.Env = append(os.Environ(), "TIDEMARK_BROKERS="+brokers)
	out, err := c.CombinedOutput()
	return string(out), err
}

// runPrograms compiles the Go blocks, each as the body of a function, inside
// this module without touching it, and runs one after the other.
func runPrograms(ctx context.Context, t *testing.T, dir, brokers string, programs []string) string {
	t.Helper()
	var src bytes.Buffer
	src.WriteString(`package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/producer"
)

func main() {
	if err := first(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = second(ctx)
}
`)
	for i, name := range []string{"first", "second"} {
		body := strings.ReplaceAll(programs[i], "127.0.0.1:9093", brokers)
		if i == 1 { // one round is enough
			body = strings.Replace(body, "if err := c.Commit(ctx); err != nil {", "if err := c.Commit(ctx); err != nil || len(records) > 0 {", 1)
		} else {
			body += "return nil\n"
		}
		src.WriteString("\nfunc " + name + "(ctx context.Context) error {\n" + body + "}\n")
	}
	file, binary, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "readme"), filepath.Join(dir, "overlay.json")
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, "internal", "readmeblocks", "main.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{file: src.Bytes(), overlay: replace} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", binary, "./internal/readmeblocks")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the README's Go does not compile: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(ctx, binary).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}
