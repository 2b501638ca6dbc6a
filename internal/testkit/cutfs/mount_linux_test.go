package cutfs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

func mounted(t *testing.T, mode Mode) (*FS, string) {
	t.Helper()
	Require(t)
	f := New(mode, 1)
	return f, remount(t, f)
}

func remount(t *testing.T, f *FS) string {
	t.Helper()
	m, err := f.Mount(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return m.Dir()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEverythingThatABrokerDoes(t *testing.T) {
	f, dir := mounted(t, Strict)
	sys := fsx.OS()
	data := filepath.Join(dir, "data", "topics")
	check(t, sys.MkdirAll(data, 0o700))
	check(t, fsx.WriteFile(sys, filepath.Join(data, "CURRENT"), []byte("one"), 0o600))
	check(t, sys.SyncDir(filepath.Join(dir, "data")))
	check(t, sys.SyncDir(dir))
	info, err := sys.Stat(data)
	check(t, err)
	if info.Mode() != os.ModeDir|0o700 {
		t.Errorf("directory %v", info.Mode())
	}
	if info, err = sys.Stat(filepath.Join(data, "CURRENT")); err != nil || info.Mode() != 0o600 || info.Size() != 3 {
		t.Errorf("file %v, %v", info, err)
	}
	free, total, err := sys.Space(dir)
	if err != nil || free == 0 || free > total {
		t.Errorf("%d of %d bytes are free, %v", free, total, err)
	}

	l, err := sys.Lock(filepath.Join(data, "LOCK"))
	check(t, err)
	if _, err := sys.Lock(filepath.Join(data, "LOCK")); !errors.Is(err, fsx.ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	check(t, l.Close())

	w, err := sys.OpenFile(filepath.Join(data, "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	check(t, err)
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // more than one request
	_, err = w.WriteAt(big, 7)
	check(t, err)
	check(t, w.Sync())
	got := make([]byte, len(big))
	if _, err := w.ReadAt(got, 7); err != nil || !bytes.Equal(got, big) {
		t.Errorf("read back: %v", err)
	}
	check(t, sys.Rename(filepath.Join(data, "f"), filepath.Join(data, "g")))
	check(t, sys.Remove(filepath.Join(data, "g")))
	if _, err := w.ReadAt(got, 7); err != nil || !bytes.Equal(got, big) {
		t.Errorf("read of an unlinked file: %v", err)
	}
	check(t, w.Close())

	f.Cut(false)
	if _, err := sys.Stat(data); err == nil {
		t.Error("the mount outlived the power cut")
	}
	dir = remount(t, f)
	if text, err := os.ReadFile(filepath.Join(dir, "data", "topics", "CURRENT")); err != nil || string(text) != "one" {
		t.Errorf("after the cut: %q, %v", text, err)
	}
	check(t, os.RemoveAll(filepath.Join(dir, "data")))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestManyNames(t *testing.T) {
	_, dir := mounted(t, Journaled)
	for i := range 500 {
		name := filepath.Join(dir, string(bytes.Repeat([]byte{'n'}, 100))+string(rune('0'+i%10))+string(rune('A'+i/10)))
		check(t, os.WriteFile(name, nil, 0o600))
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 500 {
		t.Errorf("%d names, %v", len(entries), err)
	}
}

func TestInjectedErrors(t *testing.T) {
	f, dir := mounted(t, Journaled)
	w, err := os.Create(filepath.Join(dir, "victim"))
	check(t, err)
	defer w.Close()
	_, err = w.WriteAt([]byte("old"), 0)
	check(t, err)
	check(t, w.Sync())

	second := f.Inject(Fault{Op: OpSync, Path: "victim", Skip: 1, Err: syscall.EIO})
	check(t, w.Sync())
	_, err = w.WriteAt([]byte("new"), 0)
	check(t, err)
	if err := w.Sync(); !errors.Is(err, syscall.EIO) || second.Hits() != 1 {
		t.Errorf("%v after %d hits", err, second.Hits())
	}
	check(t, w.Sync()) // fsyncgate

	f.Inject(Fault{Op: OpWrite, Err: syscall.EIO, Short: 2})
	if _, err := w.WriteAt([]byte("xyz"), 100); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	f.Inject(Fault{Op: OpWrite, Shift: 50})
	_, err = w.WriteAt([]byte("lost"), 0)
	check(t, err)
	buf := make([]byte, 4)
	if _, err := w.ReadAt(buf, 50); err != nil || string(buf) != "lost" {
		t.Errorf("misdirected: %q, %v", buf, err)
	}
	f.Inject(Fault{Op: OpRead, Flip: true})
	if _, err := w.ReadAt(buf, 50); err != nil || string(buf) == "lost" {
		t.Errorf("flipped: %q, %v", buf, err)
	}
	if _, err := w.ReadAt(buf, 50); err != nil || string(buf) != "lost" {
		t.Errorf("read again: %q, %v", buf, err)
	}
	f.Inject(Fault{Op: OpRead, Err: syscall.EIO})
	if _, err := w.ReadAt(buf, 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	f.Inject(Fault{Op: OpSync, Delay: 30 * time.Millisecond})
	began := time.Now()
	check(t, w.Sync())
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("a slow sync took %v", took)
	}
	if err := syscall.Fallocate(int(w.Fd()), 0, 0, 4096); !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("fallocate says %v", err)
	}
	f.SetQuota(1)
	if _, err := w.WriteAt([]byte("x"), 1<<20); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}

// A process that hangs in a sync can be killed, and one that is left alone goes on when the fault heals.
func TestHungSync(t *testing.T) {
	f, dir := mounted(t, Journaled)
	a := f.Inject(Fault{Op: OpSync, Hang: true, Times: -1})
	script := `exec 3>` + filepath.Join(dir, "$0") + `; echo x >&3; exec sync ` + filepath.Join(dir, "$0")
	killed, healed := exec.Command("sh", "-c", script, "killed"), exec.Command("sh", "-c", script, "healed")
	check(t, killed.Start())
	check(t, healed.Start())
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(10 * time.Second); a.Hits() < 2; {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%d syncs hang", a.Hits())
		}
	}
	check(t, killed.Process.Kill())
	if err := killed.Wait(); err == nil {
		t.Error("the killed process ended well")
	}
	f.Heal()
	check(t, healed.Wait())
	f.Cut(false)
	if text, err := f.ReadFile("healed"); err != nil || string(text) != "x\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestCutAfterSoManyChanges(t *testing.T) {
	f, dir := mounted(t, Journaled)
	cut := f.CutAfter(4, false, nil)
	w, err := os.Create(filepath.Join(dir, "a")) // 1
	check(t, err)
	defer w.Close()
	_, err = w.WriteAt([]byte("one"), 0) // 2
	check(t, err)
	check(t, w.Sync()) // 3
	if _, err := w.WriteAt([]byte("two"), 3); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	<-cut
	if text, err := f.ReadFile("a"); err != nil || string(text) != "one" {
		t.Errorf("%q, %v", text, err)
	}
}
