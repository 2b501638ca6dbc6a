package cutfs

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
)

// disk drives the model without a kernel.
type disk struct {
	*FS
	t *testing.T
}

func newDisk(t *testing.T, mode Mode) disk { return disk{New(mode, 1), t} }

func (d disk) must(errno syscall.Errno) {
	d.t.Helper()
	if errno != 0 {
		d.t.Fatal(errno)
	}
}

func (d disk) dir(path string) *inode {
	d.t.Helper()
	n := d.find(path)
	if n == nil {
		d.t.Fatalf("no directory %q", path)
	}
	return n
}

func (d disk) mkdir(dir, name string) *inode {
	d.t.Helper()
	n, errno := d.create(d.dir(dir), name, syscall.S_IFDIR|0o700)
	d.must(errno)
	return n
}

func (d disk) file(dir, name, text string) *inode {
	d.t.Helper()
	n, errno := d.create(d.dir(dir), name, syscall.S_IFREG|0o600)
	d.must(errno)
	d.put(n, 0, text)
	return n
}

func (d disk) put(n *inode, off int64, text string) {
	d.t.Helper()
	if done, errno := d.write(n, off, []byte(text)); errno != 0 || done != len(text) {
		d.t.Fatalf("wrote %d of %d bytes: %v", done, len(text), errno)
	}
}

// want checks the whole tree: "path=content" separated by spaces, sorted.
func (d disk) want(tree string) {
	d.t.Helper()
	var got []string
	var paths []string
	d.Walk(func(path string, _ int64) { paths = append(paths, path) })
	for _, p := range paths {
		text, err := d.ReadFile(p)
		if err != nil {
			d.t.Fatal(err)
		}
		got = append(got, p+"="+string(text))
	}
	if s := strings.Join(got, " "); s != tree {
		d.t.Errorf("the tree is %q, want %q", s, tree)
	}
}

func TestWhatWasSyncedSurvives(t *testing.T) {
	for _, mode := range []Mode{Strict, Journaled} {
		d := newDisk(t, mode)
		a := d.file("", "a", "one")
		d.syncFile(a)
		d.syncDir(d.root)
		d.put(a, 3, "two")
		d.Cut(false)
		d.want("a=one")
	}
}

func TestNamesNeedTheirDirectory(t *testing.T) {
	strict := newDisk(t, Strict)
	strict.syncFile(strict.file("", "a", "x"))
	strict.Cut(false)
	strict.want("")

	journaled := newDisk(t, Journaled)
	journaled.file("", "before", "lost content")
	journaled.syncFile(journaled.file("", "a", "x"))
	journaled.file("", "after", "x")
	journaled.Cut(false)
	journaled.want("a=x before=")
}

// fdatasync of a file that was overwritten in place writes no journal.
func TestOverwritingTakesNoNamesAlong(t *testing.T) {
	d := newDisk(t, Journaled)
	a := d.file("", "a", "old")
	d.syncFile(a)
	d.file("", "b", "")
	d.put(a, 0, "new")
	d.syncFile(a)
	d.Cut(false)
	d.want("a=new")
}

func TestDirectoriesGoWithTheirNames(t *testing.T) {
	d := newDisk(t, Strict)
	sub := d.mkdir("", "sub")
	d.syncFile(d.file("sub", "a", "x"))
	d.syncDir(sub)
	d.Cut(false)
	d.want("")

	sub = d.mkdir("", "sub")
	d.syncDir(d.root)
	d.syncFile(d.file("sub", "a", "x"))
	d.syncDir(sub)
	d.Cut(false)
	d.want("sub/a=x")
}

func TestUnlinkAndRenameAreUndone(t *testing.T) {
	d := newDisk(t, Strict)
	sub := d.mkdir("", "sub")
	d.syncFile(d.file("", "a", "A"))
	d.syncFile(d.file("", "b", "B"))
	d.syncDir(d.root)
	d.must(d.rename(d.root, "a", sub, "a", false))
	d.must(d.remove(d.root, "b", false))
	d.want("sub/a=A")
	d.Cut(false)
	d.want("a=A b=B")

	sub = d.dir("sub")
	d.must(d.rename(d.root, "a", sub, "a", false))
	d.syncDir(sub) // two names of one file, as on a file system without atomic renames
	d.Cut(false)
	d.want("a=A b=B sub/a=A")
	d.must(d.remove(d.root, "a", false))
	d.put(d.dir("sub/a"), 1, "A")
	d.want("b=B sub/a=AA")
}

func TestReplacingKeepsOldOrNew(t *testing.T) {
	for seed := range uint64(50) {
		for _, mode := range []Mode{Strict, Journaled} {
			d := disk{New(mode, seed), t}
			d.syncFile(d.file("", "CURRENT", "old"))
			d.syncDir(d.root)
			d.syncFile(d.file("", "CURRENT.new", "new"))
			d.must(d.rename(d.root, "CURRENT.new", d.root, "CURRENT", false))
			d.Cut(true)
			if got, err := d.ReadFile("CURRENT"); err != nil || string(got) != "old" && string(got) != "new" {
				t.Fatalf("%s, seed %d: %q, %v", mode, seed, got, err)
			}
		}
	}
}

// A torn write is kept and lost by whole sectors, and both happens.
func TestTornWritesKeepSectors(t *testing.T) {
	var total Lost
	for seed := range uint64(20) {
		d := disk{New(Strict, seed), t}
		a := d.file("", "a", strings.Repeat("o", 8*SectorBytes))
		d.syncFile(a)
		d.syncDir(d.root)
		d.put(a, 100, strings.Repeat("n", 6*SectorBytes))
		lost := d.Cut(true)
		total.SectorsKept += lost.SectorsKept
		total.SectorsLost += lost.SectorsLost
		text, err := d.ReadFile("a")
		if err != nil || len(text) != 8*SectorBytes {
			t.Fatal(len(text), err)
		}
		for i := range 8 {
			s := text[i*SectorBytes : (i+1)*SectorBytes]
			whole := bytes.Count(s, []byte("n"))
			if want := []int{412, 512, 512, 512, 512, 512, 100, 0}[i]; whole != 0 && whole != want {
				t.Errorf("seed %d: sector %d has %d new bytes", seed, i, whole)
			}
		}
	}
	if total.SectorsKept == 0 || total.SectorsLost == 0 {
		t.Errorf("%+v", total)
	}
}

// After a failed sync the file looks written, is not, and the next sync says nothing.
func TestFailedSyncForgets(t *testing.T) {
	d := newDisk(t, Strict)
	a := d.file("", "a", "old")
	d.syncFile(a)
	d.syncDir(d.root)
	d.put(a, 0, "new")
	d.failSync(a)
	d.want("a=new")
	d.syncFile(a)
	d.put(a, 5000, "more")
	d.syncFile(a)
	d.Cut(false)
	if text, err := d.ReadFile("a"); err != nil || string(text[:3]) != "old" || string(text[5000:]) != "more" {
		t.Errorf("%q…, %v", text[:3], err)
	}
}

func TestTruncateAndQuota(t *testing.T) {
	d := newDisk(t, Strict)
	d.SetQuota(4 * pageBytes)
	a := d.file("", "a", strings.Repeat("x", 3*pageBytes))
	d.syncFile(a)
	d.syncDir(d.root)
	if n, errno := d.write(a, 3*pageBytes, make([]byte, 2*pageBytes)); n != pageBytes || errno != 0 {
		t.Errorf("%d bytes were written, %v", n, errno)
	}
	if _, errno := d.write(a, 4*pageBytes, []byte("x")); errno != syscall.ENOSPC {
		t.Error(errno)
	}
	d.put(a, 0, "overwriting needs no room")
	d.must(d.truncate(a, 5))
	if d.Used() != pageBytes {
		t.Errorf("%d bytes are used", d.Used())
	}
	d.put(a, 8, "!")
	d.want("a=overw\x00\x00\x00!")
	d.Cut(false)
	if d.Used() != 3*pageBytes {
		t.Errorf("%d bytes are used after the cut", d.Used())
	}
	d.syncFile(d.dir("a"))
	d.must(d.remove(d.root, "a", false))
	if d.Used() != 0 {
		t.Errorf("%d bytes are used by nothing", d.Used())
	}
}

func TestBitsRotAtRest(t *testing.T) {
	d := newDisk(t, Strict)
	a := d.file("", "a", "abc")
	d.syncFile(a)
	d.syncDir(d.root)
	if err := d.FlipBit("a", 1, 0); err != nil {
		t.Fatal(err)
	}
	d.want("a=acc")
	d.Cut(false)
	d.want("a=acc")
}

// Whatever happened before, a synced tree survives every cut as it was, and what
// was not synced is old or new, sector by sector.
func TestModelAgainstPlainCopies(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 60 {
		mode := Mode(round % 2)
		d := disk{New(mode, rng.Uint64()), t}
		f := d.file("", "f", "")
		d.syncFile(f)
		d.syncDir(d.root)
		var seen, sure []byte
		for range 30 {
			off, text := rng.Int64N(20000), bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, rng.IntN(6000))
			switch rng.IntN(6) {
			case 0:
				d.syncFile(f)
				sure = bytes.Clone(seen)
			case 1:
				d.must(d.truncate(f, off))
				seen = resized(seen, int(off))
			default:
				d.put(f, off, string(text))
				seen = resized(seen, max(len(seen), int(off)+len(text)))
				copy(seen[off:], text)
			}
			if got, err := d.ReadFile("f"); err != nil || !bytes.Equal(got, seen) {
				t.Fatalf("the file differs from what was written: %v", err)
			}
		}
		d.Cut(false)
		if got, err := d.ReadFile("f"); err != nil || !bytes.Equal(got, sure) {
			t.Fatalf("the file differs from what was synced: %v", err)
		}
	}
}

func resized(b []byte, n int) []byte {
	if n <= len(b) {
		return bytes.Clone(b[:n])
	}
	return append(bytes.Clone(b), make([]byte, n-len(b))...)
}
