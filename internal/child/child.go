// Package child runs a broker as a process of its own, so that it can be killed
// as a power cut would.
//
// A child ends with its parent, however that ends: it stops when its
// stdin closes.
package child

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/run"
)

// Config says which broker to run.
type Config struct {
	Program string   // the tidemark binary; empty: this program
	Dir     string   // its data directory
	Files   string   // what logs and addresses are named after; empty: they go beside Dir
	GRPC    string   // where to listen; empty: any free port
	Set     []string // more settings
}

// Broker is a broker in a process of its own.
type Broker struct {
	GRPC, Admin string
	PID         int

	cmd    *exec.Cmd
	stdin  io.Closer
	logs   string
	group  *run.Group
	exited chan struct{}
	err    error // set before exited is closed
}

// Start runs a broker and returns when it serves.
func Start(ctx context.Context, c Config) (*Broker, error) {
	if c.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		c.Program = self
	}
	if c.Files == "" {
		c.Files = filepath.Clean(c.Dir)
	}
	if c.GRPC == "" {
		c.GRPC = "127.0.0.1:0"
	}
	file := c.Files + ".addresses"
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	args := []string{
		"serve", "--quiet", "--until-stdin-closes", "--address-file", file, "--set", "node.data_dir=" + c.Dir,
		"--set", "listeners.grpc.address=" + c.GRPC, "--set", "listeners.admin.address=127.0.0.1:0",
	}
	for _, s := range c.Set {
		args = append(args, "--set", s)
	}
	b := &Broker{logs: c.Files + ".log", group: run.Owned("child"), exited: make(chan struct{})}
	b.cmd = &exec.Cmd{Path: c.Program, Args: append([]string{"tidemark"}, args...), Env: environment()}
	if err := b.start(); err != nil {
		return nil, err
	}
	return b, b.await(ctx, file)
}

// environment is ours without the settings that are meant for us.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "TIDEMARK_") || name == failpoint.Variable || name == bug.Variable {
			env = append(env, kv)
		}
	}
	return env
}

func (b *Broker) start() error {
	logs, err := os.OpenFile(b.logs, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logs.Close()
	b.cmd.Stderr = logs
	if b.stdin, err = b.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := b.cmd.Start(); err != nil {
		return fmt.Errorf("start a broker: %w", err)
	}
	b.group.Go("wait", func(context.Context) {
		b.err = b.cmd.Wait()
		close(b.exited)
	})
	return nil
}

// await waits for the address file, or for the end of the process.
func (b *Broker) await(ctx context.Context, file string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(file)
		if err == nil {
			var at struct {
				PID         int
				GRPC, Admin string
			}
			err := json.Unmarshal(text, &at)
			b.PID, b.GRPC, b.Admin = at.PID, at.GRPC, at.Admin
			return err
		}
		select {
		case <-tick.C:
		case <-b.exited:
			return fmt.Errorf("the broker ended at its start: %w\n%s", b.err, b.Logs())
		case <-ctx.Done():
			_ = b.Kill() // ctx's error tells more
			return fmt.Errorf("wait for the broker: %w\n%s", ctx.Err(), b.Logs())
		}
	}
}

// Logs is the end of what the broker logged.
func (b *Broker) Logs() string {
	text, err := os.ReadFile(b.logs)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4096):])
}

// Kill ends the process with SIGKILL: it gets no chance to write anything.
func (b *Broker) Kill() error {
	err := b.cmd.Process.Kill()
	<-b.exited
	b.group.Stop()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return err
}

// Exited is closed when the process has ended.
func (b *Broker) Exited() <-chan struct{} { return b.exited }

// Stop ends the process in order, or kills it when ctx ends first.
func (b *Broker) Stop(ctx context.Context) error {
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-b.exited:
		b.group.Stop()
		if b.err != nil {
			return fmt.Errorf("stop the broker: %w\n%s", b.err, b.Logs())
		}
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop the broker: %w", ctx.Err()), b.Kill())
	}
}
