package raftgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// vote is what a group's slot says.
type vote struct {
	term, voteTerm uint64
	candidate      string
}

func load(t testing.TB, s raft.StableStore) (v vote) {
	t.Helper()
	var err error
	if v.term, err = s.GetUint64([]byte(keyCurrentTerm)); err != nil {
		t.Fatal(err)
	}
	if v.voteTerm, err = s.GetUint64([]byte(keyVoteTerm)); err != nil {
		t.Fatal(err)
	}
	c, err := s.Get([]byte(keyCandidate))
	if err != nil {
		t.Fatal(err)
	}
	v.candidate = string(c)
	return v
}

func setTerm(s raft.StableStore, term uint64) error {
	return s.SetUint64([]byte(keyCurrentTerm), term)
}

func giveVote(s raft.StableStore, term uint64, candidate string) error {
	if err := s.SetUint64([]byte(keyVoteTerm), term); err != nil {
		return err
	}
	return s.Set([]byte(keyCandidate), []byte(candidate))
}

func diskWithDir(t testing.TB) *sim.FS {
	t.Helper()
	disk := sim.New()
	if err := errors.Join(disk.MkdirAll("d", 0o700), disk.SyncDir(".")); err != nil {
		t.Fatal(err)
	}
	return disk
}

func openStable(t testing.TB, disk *sim.FS) *StableStore {
	t.Helper()
	s, err := OpenStable(disk, "d/stable", nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func slotOf(t testing.TB, s *StableStore, id byte) raft.StableStore {
	t.Helper()
	slot, err := s.Slot([16]byte{id})
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

func TestVotesSurviveReopen(t *testing.T) {
	disk := diskWithDir(t)
	s := openStable(t, disk)
	for id := byte(1); id <= 20; id++ {
		slot := slotOf(t, s, id)
		if got := load(t, slot); got != (vote{}) {
			t.Errorf("a new slot says %+v", got)
		}
		must(t, setTerm(slot, uint64(id)))
		must(t, giveVote(slot, uint64(id), fmt.Sprint("b/", id)))
	}
	must(t, s.Close())
	s = openStable(t, disk.Reboot(rand.New(rand.NewPCG(1, 1)), false))
	for id := byte(1); id <= 20; id++ {
		if got := load(t, slotOf(t, s, id)); got != (vote{uint64(id), uint64(id), fmt.Sprint("b/", id)}) {
			t.Errorf("slot %d says %+v", id, got)
		}
	}
	if s.Known([16]byte{99}) || !s.Known([16]byte{7}) {
		t.Error("Known is wrong")
	}
}

// Raft writes term and candidate of a vote in two calls. With the new term beside the old candidate,
// that candidate would get a second vote without a look at its log.
func TestVoteIsOneRecord(t *testing.T) {
	disk := diskWithDir(t)
	s := openStable(t, disk)
	slot := slotOf(t, s, 1)
	must(t, setTerm(slot, 4))
	must(t, giveVote(slot, 4, "old"))
	must(t, setTerm(slot, 5))
	must(t, slot.SetUint64([]byte(keyVoteTerm), 5))
	if got := load(t, slot); got != (vote{5, 4, "old"}) {
		t.Errorf("between the two calls: %+v", got)
	}
	for _, tear := range []bool{false, true} {
		after := slotOf(t, openStable(t, disk.Clone().Reboot(rand.New(rand.NewPCG(1, 1)), tear)), 1)
		if got := load(t, after); got != (vote{5, 4, "old"}) {
			t.Errorf("after a crash between the two calls: %+v", got)
		}
	}
	must(t, slot.Set([]byte(keyCandidate), []byte("old")))
	if got := load(t, slot); got != (vote{5, 5, "old"}) {
		t.Errorf("a second vote for the same candidate: %+v", got)
	}
}

// Whatever the operation at which the power fails, every group has its old or its new
// vote, whole, and what was answered is there.
func TestCrashAtEveryOperation(t *testing.T) {
	for _, tear := range []bool{false, true} {
		for n := 1; ; n++ {
			disk := diskWithDir(t)
			disk.CrashAt(n)
			certain, maybe, ended := voteScript(disk)
			if ended {
				t.Logf("%d operations", n)
				break
			}
			for seed := range uint64(8) {
				after := disk.Clone().Reboot(rand.New(rand.NewPCG(seed, uint64(n))), tear)
				s, err := OpenStable(after, "d/stable", nil)
				if err != nil {
					t.Fatalf("crash at %d, seed %d: %v", n, seed, err)
				}
				for id := byte(1); id <= 3; id++ {
					got := load(t, slotOf(t, s, id))
					if got != certain[id] && got != maybe[id] {
						t.Fatalf("crash at %d, seed %d: group %d says %+v, must be %+v or %+v", n, seed, id, got, certain[id], maybe[id])
					}
				}
			}
		}
	}
}

// voteScript runs until an error. certain is what was answered, maybe what was asked for last.
func voteScript(disk *sim.FS) (certain, maybe map[byte]vote, ended bool) {
	certain, maybe = map[byte]vote{}, map[byte]vote{}
	s, err := OpenStable(disk, "d/stable", nil)
	if err != nil {
		return certain, maybe, false
	}
	for term := uint64(1); term <= 3; term++ {
		for id := byte(1); id <= 3; id++ {
			if id == 2 && term == 2 {
				maybe[id] = vote{}
				if s.Forget([16]byte{id}) != nil {
					return certain, maybe, false
				}
				certain[id] = vote{}
			}
			slot, err := s.Slot([16]byte{id})
			if err != nil {
				return certain, maybe, false
			}
			now := certain[id]
			now.term = term
			maybe[id] = now
			if setTerm(slot, term) != nil {
				return certain, maybe, false
			}
			certain[id] = now
			now.voteTerm, now.candidate = term, fmt.Sprint("c", term)
			maybe[id] = now
			if giveVote(slot, term, now.candidate) != nil {
				return certain, maybe, false
			}
			certain[id] = now
		}
	}
	return certain, maybe, true
}

func TestUnchangedValuesAreNotWritten(t *testing.T) {
	disk := diskWithDir(t)
	slot := slotOf(t, openStable(t, disk), 1)
	must(t, setTerm(slot, 3))
	must(t, giveVote(slot, 3, "c"))
	before := disk.Ops()
	must(t, setTerm(slot, 3))
	must(t, giveVote(slot, 3, "c"))
	if n := disk.Ops() - before; n != 0 {
		t.Errorf("%d operations for nothing", n)
	}
}

func TestSetsThatComeTogetherShareOneSync(t *testing.T) {
	disk := diskWithDir(t)
	s := openStable(t, disk)
	const groups = 32
	slots := make([]raft.StableStore, groups)
	for i := range slots {
		slots[i] = slotOf(t, s, byte(i+1))
	}
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	syncs := 0
	disk.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpSync {
			syncs++
			once.Do(func() { close(entered); <-release })
		}
		return sim.Fault{}
	})
	var wg sync.WaitGroup
	set := func(i int) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := setTerm(slots[i], 7); err != nil {
				t.Error(err)
			}
		}()
	}
	set(0)
	<-entered
	for i := 1; i < groups; i++ {
		set(i)
	}
	eventually(t, "all others wait", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.next.slots) == groups-1
	})
	close(release)
	wg.Wait()
	if syncs != 2 {
		t.Errorf("%d syncs for %d groups", syncs, groups)
	}
}

func TestFailedSyncPoisonsTheStore(t *testing.T) {
	disk := diskWithDir(t)
	s := openStable(t, disk)
	slot := slotOf(t, s, 1)
	must(t, setTerm(slot, 1))
	boom := errors.New("EIO")
	syncs := 0
	disk.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpSync {
			syncs++
			return sim.Fault{Err: boom}
		}
		return sim.Fault{}
	})
	if err := setTerm(slot, 2); !errors.Is(err, boom) {
		t.Errorf("set: %v", err)
	}
	if err := setTerm(slot, 2); !errors.Is(err, boom) {
		t.Errorf("set again: %v", err)
	}
	if _, err := s.Slot([16]byte{2}); !errors.Is(err, boom) {
		t.Errorf("another slot: %v", err)
	}
	if syncs != 1 {
		t.Errorf("%d syncs after a failure", syncs)
	}
	must(t, s.Close())
}

func TestForgottenSlotsAreUsedAgain(t *testing.T) {
	disk := diskWithDir(t)
	s := openStable(t, disk)
	for i := range 300 {
		id := [16]byte{byte(i), byte(i >> 8), 1}
		slot, err := s.Slot(id)
		must(t, err)
		if got := load(t, slot); got != (vote{}) {
			t.Fatalf("a used slot says %+v to its new group", got)
		}
		must(t, giveVote(slot, uint64(i+1), "c"))
		must(t, s.Forget(id))
		if err := setTerm(slot, 9); err == nil {
			t.Fatal("a forgotten group writes")
		}
		if s.Known(id) {
			t.Fatal("a forgotten group is known")
		}
	}
	info, err := disk.Stat("d/stable")
	must(t, err)
	if info.Size() != 3*stableBlock {
		t.Errorf("the file has %d bytes after 300 groups, one at a time", info.Size())
	}
}

func TestDamageIsCorruption(t *testing.T) {
	fill := func(at int, n int) func([]byte) []byte {
		return func(b []byte) []byte {
			for i := range n {
				b[at+i] ^= 0x5a
			}
			return b
		}
	}
	block := func(slot, c int) int { return stableBlock * (1 + 2*slot + c) }
	for _, c := range []struct {
		name    string
		damage  func([]byte) []byte
		corrupt bool
	}{
		{"nothing", func(b []byte) []byte { return b }, false},
		{"the older copy", fill(block(0, 0)+20, 4), true},
		{"the newer copy", fill(block(0, 1)+20, 4), true},
		{"the newer copy is blank", func(b []byte) []byte { clear(b[block(0, 1):block(1, 0)]); return b }, true},
		{"both copies", func(b []byte) []byte { return fill(block(1, 0), 9)(fill(block(1, 1), 9)(b)) }, true},
		{"the header", fill(3, 1), true},
		{"cut behind a slot", func(b []byte) []byte { return b[:block(1, 0)] }, true},
		{"a copy of another slot", func(b []byte) []byte {
			copy(b[block(1, 0):block(2, 0)], b[block(0, 0):block(1, 0)])
			return b
		}, true},
		{"copies swapped", func(b []byte) []byte {
			x := bytes.Clone(b[block(0, 0):block(0, 1)])
			copy(b[block(0, 0):], b[block(0, 1):block(1, 0)])
			copy(b[block(0, 1):], x)
			return b
		}, true},
		{"a file of another store", func([]byte) []byte { return nil }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := diskWithDir(t)
			s := openStable(t, disk)
			for term := uint64(1); term <= 3; term++ {
				for id := byte(1); id <= 3; id++ {
					must(t, giveVote(slotOf(t, s, id), term, "c"))
				}
			}
			must(t, s.Close())
			must(t, disk.Corrupt("d/stable", c.damage))
			_, err := OpenStable(disk, "d/stable", nil)
			if corrupt := errors.Is(err, ErrCorrupt); corrupt != c.corrupt || err != nil && !corrupt {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func TestNewerVersionIsRefusedAsSuch(t *testing.T) {
	disk := diskWithDir(t)
	must(t, openStable(t, disk).Close())
	must(t, disk.Corrupt("d/stable", func(b []byte) []byte {
		b[8] = 2
		return rechecksum(b)
	}))
	if _, err := OpenStable(disk, "d/stable", nil); errs.CodeOf(err) != errs.UnsupportedVersion {
		t.Errorf("open: %v", err)
	}
}

func TestUnknownKeysAndLongNamesAreRefused(t *testing.T) {
	slot := slotOf(t, openStable(t, diskWithDir(t)), 1)
	if slot.Set([]byte("x"), nil) == nil || slot.SetUint64([]byte("x"), 1) == nil {
		t.Error("an unknown key was taken")
	}
	if giveVote(slot, 1, strings.Repeat("c", newCandidate+1)) == nil {
		t.Error("a long name was taken")
	}
	if _, err := slot.Get([]byte("x")); err == nil {
		t.Error("an unknown key was found")
	}
	if _, err := slot.GetUint64([]byte("x")); err == nil {
		t.Error("an unknown key was found")
	}
}

func TestStableModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := sim.New()
		if err := errors.Join(disk.MkdirAll("d", 0o700), disk.SyncDir(".")); err != nil {
			t.Fatal(err)
		}
		s, err := OpenStable(disk, "d/stable", nil)
		if err != nil {
			t.Fatal(err)
		}
		model := map[byte]vote{}
		id := rapid.ByteRange(1, 5)
		t.Repeat(map[string]func(*rapid.T){
			"term": func(t *rapid.T) {
				i, term := id.Draw(t, "id"), rapid.Uint64().Draw(t, "term")
				slot, err := s.Slot([16]byte{i})
				if err != nil || setTerm(slot, term) != nil {
					t.Fatal(err)
				}
				v := model[i]
				v.term = term
				model[i] = v
			},
			"vote": func(t *rapid.T) {
				i, term, c := id.Draw(t, "id"), rapid.Uint64Min(1).Draw(t, "term"), rapid.StringN(1, 9, 99).Draw(t, "c")
				slot, err := s.Slot([16]byte{i})
				if err != nil || giveVote(slot, term, c) != nil {
					t.Fatal(err)
				}
				v := model[i]
				v.voteTerm, v.candidate = term, c
				model[i] = v
			},
			"forget": func(t *rapid.T) {
				i := id.Draw(t, "id")
				if err := s.Forget([16]byte{i}); err != nil {
					t.Fatal(err)
				}
				delete(model, i)
			},
			"power cut": func(t *rapid.T) {
				disk = disk.Reboot(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)), rapid.Bool().Draw(t, "tear"))
				if s, err = OpenStable(disk, "d/stable", nil); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for i, want := range model {
					slot, err := s.Slot([16]byte{i})
					if err != nil {
						t.Fatal(err)
					}
					var got vote
					got.term, _ = slot.GetUint64([]byte(keyCurrentTerm))
					got.voteTerm, _ = slot.GetUint64([]byte(keyVoteTerm))
					c, _ := slot.Get([]byte(keyCandidate))
					if got.candidate = string(c); got != want {
						t.Fatalf("group %d says %+v, want %+v", i, got, want)
					}
				}
			},
		})
	})
}

func goldenStable() []byte {
	b := encodeStableHeader(0x1122334455667788)
	r := record{group: [16]byte{1, 2, 3}, generation: 4, term: 7, voteTerm: 7, candidate: []byte("broker/replica"), slots: 1}
	b = append(b, r.encode(0x1122334455667788, 0)...)
	r.generation, r.term = 3, 6
	return append(b, r.encode(0x1122334455667788, 0)...)
}

func TestGoldenStable(t *testing.T) {
	golden(t, "stable", bytes.TrimRight(goldenStable(), "\x00"))
	r, err := pickCopy(goldenStable()[stableBlock:], 0x1122334455667788, 0)
	if err != nil || r.generation != 4 || r.term != 7 || string(r.candidate) != "broker/replica" {
		t.Errorf("read %+v, %v", r, err)
	}
}

// golden compares with a file as hex, 32 bytes a line, zero lines left out.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	var got strings.Builder
	for at := 0; at < len(b); at += 32 {
		if line := b[at:min(at+32, len(b))]; !blank(line) {
			fmt.Fprintf(&got, "%06x %x\n", at, line)
		}
	}
	path := "testdata/" + name + ".golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte(got.String()), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if got.String() != string(want) {
		t.Errorf("the format changed: it needs a new version\n got:\n%swant:\n%s", got.String(), want)
	}
}

// FuzzStableOpen opens good files that were patched and cut: random bytes would only ever test the header.
func FuzzStableOpen(f *testing.F) {
	f.Add(uint16(3*stableBlock), []byte{})
	f.Add(uint16(stableBlock+100), []byte{0x10, 0x05, 1})
	f.Add(uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, size uint16, patches []byte) {
		b := patched(goldenStable(), size, patches)
		disk := diskWithDir(t)
		file, err := disk.OpenFile("d/stable", os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		if len(b) > 0 {
			_, err = file.WriteAt(b, 0)
			must(t, err)
		}
		must(t, file.Close())
		s, err := OpenStable(disk, "d/stable", nil)
		if err != nil {
			return
		}
		slot := slotOf(t, s, 200)
		must(t, giveVote(slot, 3, "c"))
		must(t, s.Close())
		s = openStable(t, disk)
		if got := load(t, slotOf(t, s, 200)); got.voteTerm != 3 || got.candidate != "c" {
			t.Fatalf("after reopen: %+v", got)
		}
	})
}

// patched cuts or extends b to size, and sets bytes: each patch is an offset and a value.
func patched(b []byte, size uint16, patches []byte) []byte {
	b = append(b, make([]byte, 1<<16)...)[:size]
	for ; len(patches) >= 3; patches = patches[3:] {
		if at := int(binary.LittleEndian.Uint16(patches)); at < len(b) {
			b[at] = patches[2]
		}
	}
	return b
}

// rechecksum makes a changed header valid again.
func rechecksum(h []byte) []byte {
	sum := crc32.Checksum(h[:24], castagnoli)
	binary.LittleEndian.PutUint32(h[24:], sum)
	return h
}

// What a process has read of another that died it may act upon, so it must not be lost any more.
func TestVotesOfADeadProcessAreDurableOnceRead(t *testing.T) {
	read := func(disk *sim.FS) (all [3]vote) {
		s := openStable(t, disk)
		for id := byte(1); id <= 3; id++ {
			if s.Known([16]byte{id}) {
				all[id-1] = load(t, slotOf(t, s, id))
			}
		}
		must(t, s.Close())
		return all
	}
	for n := 1; ; n++ {
		disk := diskWithDir(t)
		disk.SetHook(func(op sim.Op) sim.Fault {
			if op.N >= n && op.Kind == sim.OpSync {
				return sim.Fault{Err: errors.New("input/output error")} // the kernel forgets the pages
			}
			return sim.Fault{}
		})
		_, _, ended := voteScript(disk)
		disk = disk.Kill()
		seen := read(disk)
		if after := read(disk.Reboot(rand.New(rand.NewPCG(1, 1)), false)); after != seen {
			t.Fatalf("sync from operation %d on fails: %+v was read, %+v is left", n, seen, after)
		}
		if ended {
			return
		}
	}
}

// No sector that is lost, stale or another's makes a group forget a vote in silence, but
// for the newest record of a slot: a disk that lost it holds what it held before it was written.
func TestStrayAndStaleSectorsOfTheStableStore(t *testing.T) {
	disk, twin := diskWithDir(t), diskWithDir(t)
	var earlier []byte
	var now [4]vote
	for _, d := range []*sim.FS{twin, disk} {
		s := openStable(t, d)
		for term := uint64(1); term <= 5; term++ {
			for id := byte(1); id <= 3; id++ {
				must(t, setTerm(slotOf(t, s, id), term))
				must(t, giveVote(slotOf(t, s, id), term, fmt.Sprint("c", term)))
			}
			if term == 3 {
				earlier = fileOf(t, d, "d/stable")
			}
		}
		for id := byte(1); id <= 3; id++ {
			now[id] = load(t, slotOf(t, s, id))
		}
		must(t, s.Close())
	}
	own, other := fileOf(t, disk, "d/stable"), fileOf(t, twin, "d/stable")
	found, same := 0, 0
	for at := 0; at < len(own); at += sim.SectorBytes {
		end := at + sim.SectorBytes
		shift := (at + stableBlock) % len(own)
		for what, src := range map[string][]byte{
			"zeros": make([]byte, sim.SectorBytes), "stale": earlier[at:end], "twin": other[at:end], "shift": own[shift : shift+sim.SectorBytes],
		} {
			if bytes.Equal(src, own[at:end]) {
				continue
			}
			v := disk.Clone()
			must(t, v.Corrupt("d/stable", func(b []byte) []byte { copy(b[at:end], src); return b }))
			s, err := OpenStable(v, "d/stable", nil)
			if errors.Is(err, ErrCorrupt) {
				found++
				continue
			}
			must(t, err)
			for id := byte(1); id <= 3; id++ {
				if got := load(t, slotOf(t, s, id)); got != now[id] && what != "stale" {
					t.Errorf("%s in sector %d: group %d says %+v, not %+v", what, at/sim.SectorBytes, id, got, now[id])
				}
			}
			same++
		}
	}
	t.Logf("%d found, %d without effect", found, same)
	if found < 20 {
		t.Errorf("%d found", found)
	}
}

func fileOf(t *testing.T, disk *sim.FS, name string) []byte {
	t.Helper()
	b, err := fsx.ReadFile(disk, name, 1<<20)
	must(t, err)
	return b
}
