package powercut

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/internal/testkit/cutfs"
)

// patience bounds what takes a moment: a broker that starts, a producer that goes on.
const patience = 60 * time.Second

var binaryDir string

// program builds the broker once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tidemark-powercut-")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	name := filepath.Join(dir, "tidemark")
	build := exec.Command("go", "build", "-o", name, "./cmd/tidemark")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return name, nil
})

// world is one broker on one disk, and the history of its clients.
type world struct {
	t    *testing.T
	ctx  context.Context
	d    *disk
	conf child.Config
	b    *child.Broker // nil while none runs
	pid  atomic.Int64  // of b
	h    *check.Recorder

	begun time.Time
}

func newWorld(t *testing.T, kind, suite string, seed uint64) *world {
	t.Helper()
	d := newDisk(t, kind, seed)
	built, err := program()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, d: d, h: check.NewRecorder(suite, seed, 2_000_000), begun: time.Now()}
	w.conf = child.Config{Program: built, Files: filepath.Join(t.TempDir(), "broker")}
	t.Cleanup(w.kill) // before the disk is taken away
	return w
}

func (w *world) now() int64 { return int64(time.Since(w.begun)) }

// start starts the broker on the mounted disk.
func (w *world) start() error {
	b, err := child.Start(w.ctx, w.conf)
	if b != nil {
		w.b = b
	}
	if err != nil {
		w.kill()
		return err
	}
	w.conf.GRPC = b.GRPC
	w.pid.Store(int64(b.PID))
	return nil
}

func (w *world) mustStart() {
	w.t.Helper()
	if err := w.start(); err != nil {
		w.t.Fatal(err)
	}
}

// mount mounts the disk for the next start.
func (w *world) mount() { w.conf.Dir = filepath.Join(w.d.mount(), "data") }

// kill ends the broker with SIGKILL.
func (w *world) kill() {
	if w.b == nil {
		return
	}
	if err := w.b.Kill(); err != nil {
		w.t.Error(err)
	}
	w.b = nil
	w.pid.Store(0)
}

// killNow is kill for where nothing may be waited for.
func (w *world) killNow() {
	if pid := int(w.pid.Load()); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

// stop ends the broker in order.
func (w *world) stop() {
	w.t.Helper()
	if err := w.b.Stop(w.ctx); err != nil {
		w.t.Error(err)
	}
	w.b = nil
	w.pid.Store(0)
}

// awaitExit waits until the broker has ended by itself.
func (w *world) awaitExit(within time.Duration) {
	w.t.Helper()
	select {
	case <-w.b.Exited():
	case <-time.After(within):
		w.t.Errorf("the broker still runs after %v\n%s", within, w.b.Logs())
	}
	w.kill()
}

// powerCut waits for an armed cut and takes the dead disk away.
func (w *world) powerCut(cut <-chan cutfs.Lost) cutfs.Lost {
	w.t.Helper()
	var lost cutfs.Lost
	select {
	case lost = <-cut:
	case <-time.After(patience):
		_ = syscall.Kill(w.b.PID, syscall.SIGQUIT) // it tells where it stands
		<-w.b.Exited()
		w.t.Fatalf("the power does not go: the broker writes nothing\n%s", w.logs())
	}
	w.kill()
	w.d.unmount()
	return lost
}

// admin does something with an admin client.
func (w *world) admin(f func(*admin.Client) error) {
	w.t.Helper()
	a, err := admin.New([]string{w.conf.GRPC})
	if err != nil {
		w.t.Fatal(err)
	}
	defer a.Close()
	if err := f(a); err != nil {
		w.t.Fatal(err)
	}
}

// partitions of every topic.
const partitions = 3

func (w *world) create(topics ...string) {
	w.t.Helper()
	for _, name := range topics {
		w.admin(func(a *admin.Client) error {
			_, _, err := a.CreateTopic(w.ctx, admin.NewTopic{Name: name, Partitions: partitions, Configs: map[string]string{"segment.bytes": "262144"}})
			return err
		})
	}
}

// judge fails the test with the evidence where there is any.
func (w *world) judge(require check.Require) check.Result {
	w.t.Helper()
	r := check.Check(w.h.History())
	if err := r.Err(require); err != nil {
		w.t.Error(err)
	}
	return r.Result(require)
}
