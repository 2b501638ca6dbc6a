package sim

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

func rng() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func create(t *testing.T, s *FS, name string, data []byte, sync, dir bool) fsx.File {
	t.Helper()
	f, err := s.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if sync {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if dir {
		if err := s.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func read(t *testing.T, s *FS, name string) []byte {
	t.Helper()
	b, err := fsx.ReadFile(s, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUnsyncedWritesAreLost(t *testing.T) {
	s := New()
	f := create(t, s, "/a", []byte("old"), true, true)
	f.WriteAt([]byte("new"), 0)
	if got := read(t, s, "/a"); string(got) != "new" {
		t.Fatalf("before the cut: %q", got)
	}
	if got := read(t, s.Reboot(rng(), false), "/a"); string(got) != "old" {
		t.Fatalf("after the cut: %q", got)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, ErrCrashed) {
		t.Fatalf("write after the cut: %v", err)
	}
}

func TestNamesNeedTheDirectorySynced(t *testing.T) {
	s := New()
	create(t, s, "/a", []byte("data"), true, false)
	if _, err := s.Reboot(rng(), false).Stat("/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("stat: %v", err)
	}
}

func TestRenameIsOldOrNew(t *testing.T) {
	s := New()
	create(t, s, "/a", []byte("old"), true, true)
	if err := fsx.WriteFile(s, "/a", []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s.Reboot(rng(), false), "/a"); string(got) != "new" {
		t.Fatalf("synced rename: %q", got)
	}
}

func TestWriteFileIsAtomicAtEveryStep(t *testing.T) {
	for n := 1; n < 10; n++ {
		for seed := range uint64(20) {
			s := New()
			create(t, s, "/a", []byte("old"), true, true)
			s.CrashAt(n)
			err := fsx.WriteFile(s, "/a", bytes.Repeat([]byte("n"), 2000), 0o600)
			got := read(t, s.Reboot(rand.New(rand.NewPCG(seed, 0)), true), "/a")
			old, whole := string(got) == "old", len(got) == 2000 && !bytes.ContainsRune(got, 0)
			if !old && !whole {
				t.Fatalf("crash at %d, seed %d: %d bytes", n, seed, len(got))
			}
			if err == nil && !whole {
				t.Fatalf("crash at %d, seed %d: acknowledged, then old", n, seed)
			}
		}
	}
}

func TestTearingIsBySector(t *testing.T) {
	s := New()
	f := create(t, s, "/a", make([]byte, 4*SectorBytes), true, true)
	f.WriteAt(bytes.Repeat([]byte{1}, 4*SectorBytes), 0)
	got := read(t, s.Reboot(rng(), true), "/a")
	for i := 0; i < len(got); i += SectorBytes {
		if c := bytes.Count(got[i:i+SectorBytes], []byte{1}); c != 0 && c != SectorBytes {
			t.Fatalf("sector at %d is half written", i)
		}
	}
}

func TestFailedSyncForgetsDirtyPages(t *testing.T) {
	s := New()
	f := create(t, s, "/a", []byte("old"), true, true)
	s.SetHook(func(op Op) Fault {
		if op.Kind == OpSync {
			return Fault{Err: syscall.EIO}
		}
		return Fault{}
	})
	f.WriteAt([]byte("new"), 0)
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	s.SetHook(nil)
	if err := f.Sync(); err != nil {
		t.Fatalf("the second sync lies: %v", err)
	}
	if got := read(t, s.Reboot(rng(), false), "/a"); string(got) != "old" {
		t.Fatalf("after fsyncgate: %q", got)
	}
}

func TestQuotaGivesAShortWrite(t *testing.T) {
	s := New()
	s.SetQuota(10)
	f := create(t, s, "/a", nil, false, false)
	n, err := f.WriteAt(make([]byte, 16), 0)
	if n != 10 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%d, %v", n, err)
	}
}
