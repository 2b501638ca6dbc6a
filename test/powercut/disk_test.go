package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/testkit/cutfs"
)

// disk is a file system whose power can be cut. It stays the same disk over its cuts.
type disk struct {
	t    testing.TB
	fs   *cutfs.FS
	kind string // "fuse", or the file system on the loop device

	cutfs *cutfs.Mount
	inner string // where the file system on the loop device is mounted
}

const image = "disk.img"

// sizes are those of the images. A broker takes nothing more while less than 64 MiB are free.
var sizes = map[string]int64{"ext4": 768 << 20, "xfs": 768 << 20, "btrfs": 768 << 20}

// newDisk makes an empty disk: "fuse", "fuse-strict", "ext4", "xfs" or "btrfs". It is taken away with the test.
func newDisk(t testing.TB, kind string, seed uint64) *disk {
	t.Helper()
	cutfs.Require(t)
	mode := cutfs.Journaled
	if kind == "fuse-strict" {
		mode = cutfs.Strict
	}
	d := &disk{t: t, fs: cutfs.New(mode, seed), kind: kind}
	t.Cleanup(d.unmount)
	if size, ok := sizes[kind]; ok {
		// When sectors of 512 bytes are torn, XFS now and then does not mount again (EBADMSG), whatever
		// runs on it: a block of its metadata is torn. Disks have sectors of 4 KiB.
		d.fs.SetSector(4096)
		d.format(size)
	}
	return d
}

// mount mounts what the last cut left and returns the directory.
func (d *disk) mount() string {
	d.t.Helper()
	d.mountImage()
	if sizes[d.kind] == 0 {
		return d.cutfs.Dir()
	}
	dir := d.tempDir("disk")
	dev := d.attach()
	err := syscall.Mount(dev, dir, d.kind, 0, "")
	d.detach(dev) // takes effect when it is unmounted, by whomever
	if err != nil {
		d.remove(dir)
		d.t.Fatalf("mount a %s after a power cut: %v", d.kind, err)
	}
	d.inner = dir
	return dir
}

func (d *disk) mountImage() {
	d.t.Helper()
	m, err := d.fs.Mount(d.tempDir("cutfs"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.cutfs = m
}

// unmount takes the disk away. Nobody uses it any more, and after a cut nobody can.
func (d *disk) unmount() {
	if d.inner != "" {
		if err := eventually(func() error { return syscall.Unmount(d.inner, 0) }); err != nil {
			d.t.Errorf("unmount %s: %v", d.inner, errors.Join(err, cutfs.Detach(d.inner)))
		}
		d.remove(d.inner)
		d.inner = ""
	}
	if d.cutfs != nil {
		if err := d.cutfs.Unmount(); err != nil {
			d.t.Error(err)
		}
		d.remove(d.cutfs.Dir())
		d.cutfs = nil
	}
}

// tempDir makes a mount point whose name Sweep knows.
func (d *disk) tempDir(what string) string {
	d.t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-%s-", cutfs.Source, os.Getpid(), what))
	if err != nil {
		d.t.Fatal(err)
	}
	return dir
}

func (d *disk) remove(dir string) {
	if err := os.Remove(dir); err != nil {
		d.t.Error(err)
	}
}

// format makes the file system.
func (d *disk) format(size int64) {
	d.t.Helper()
	mkfs, err := exec.LookPath("mkfs." + d.kind)
	if err != nil {
		cutfs.Skip(d.t, "no mkfs."+d.kind+" is installed (Debian: e2fsprogs, xfsprogs, btrfs-progs)")
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "\t"+d.kind+"\n") {
		cutfs.Skip(d.t, "this kernel has no "+d.kind)
	}
	d.mountImage()
	f, err := os.OpenFile(filepath.Join(d.cutfs.Dir(), image), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close()); err != nil {
		d.t.Fatal(err)
	}
	dev := d.attach()
	d.command(mkfs, "-q", dev)
	d.detach(dev)
	if err := eventually(func() error { return d.gone(dev) }); err != nil {
		d.t.Fatal(err)
	}
	d.unmount()
	d.fs.SyncAll()
}

// gone fails while the loop device still has our image.
func (d *disk) gone(dev string) error {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file"))
	if err == nil && strings.HasPrefix(string(text), d.cutfs.Dir()) {
		return fmt.Errorf("%s is still there", dev)
	}
	return nil
}

func (d *disk) attach() string {
	d.t.Helper()
	return d.command("losetup", "--find", "--show", filepath.Join(d.cutfs.Dir(), image))
}

func (d *disk) detach(dev string) {
	d.t.Helper()
	d.command("losetup", "--detach", dev)
}

func (d *disk) command(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// eventually tries for ten seconds.
func eventually(f func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(10 * time.Second); ; {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-late:
			return err
		}
	}
}
