package partition

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
)

// wasReset is a follower that was reset to the leader's origin, stopped.
func wasReset(t testing.TB) (*follower, *rig) {
	t.Helper()
	leader, _ := retained(t)
	f := joining(t, sim.New())
	f.start()
	term := leader.group.Load().Term()
	f.heartbeat(term)
	if resp, err := offering(t, leader.Replica, term).to(f.Replica); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	<-f.reset
	f.stop()
	return f, leader
}

func TestADamagedCurrentIsCorruptionAndTouchesNothing(t *testing.T) {
	f, _ := wasReset(t)
	fs := f.fs.(*sim.FS)
	good, err := fsx.ReadFile(fs, "/follower/p/CURRENT", 100)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func([]byte) []byte{
		"empty":              func([]byte) []byte { return nil },
		"cut":                func(b []byte) []byte { return b[:len(b)-1] },
		"longer":             func(b []byte) []byte { return append(b, '\n') },
		"of generation 0":    func([]byte) []byte { return encodeCurrent(0) },
		"of a missing one":   func([]byte) []byte { return encodeCurrent(2) },
		"upper case":         func(b []byte) []byte { return []byte(strings.ToUpper(string(b))) },
		"of another program": func([]byte) []byte { return make([]byte, currentBytes) },
	}
	for i := range good {
		damages[fmt.Sprint("byte ", i)] = func(b []byte) []byte { b[i] ^= 1; return b }
	}
	for name, damage := range damages {
		f.fs = fs.Clone()
		f.deps.FS = f.fs
		if err := f.fs.(*sim.FS).Corrupt("/follower/p/CURRENT", damage); err != nil {
			t.Fatal(err)
		}
		before := listing(t, f.fs, "/follower/p")
		if err := f.open(); !errors.Is(err, log.ErrCorrupt) {
			t.Fatalf("%s: opened with %v", name, err)
		}
		if after := listing(t, f.fs, "/follower/p"); after != before {
			t.Fatalf("%s: the directory held %s, now %s", name, before, after)
		}
	}
}

// listing names all files below dir.
func listing(t testing.TB, fsys fsx.FS, dir string) string {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, e.Name()+"/("+listing(t, fsys, dir+"/"+e.Name())+")")
		} else {
			all = append(all, e.Name())
		}
	}
	return strings.Join(all, " ")
}

func TestLeftoversOfOtherGenerationsAreRemovedAtOpen(t *testing.T) {
	f, leader := wasReset(t)
	for _, name := range []string{"g-0000000000000002/x.log", "g-0000000000000002/acked", "g-0000000000000009/x/y", "CURRENT.new"} {
		put(t, f.fs, "/follower/p/"+name)
	}
	f.start()
	if got := listing(t, f.fs, "/follower/p"); got != "CURRENT LOCK g-0000000000000001/("+listing(t, f.fs, "/follower/p/g-0000000000000001")+")" {
		t.Fatalf("the directory holds %s", got)
	}
	if f.gen.next != 10 {
		t.Fatalf("the next generation would be %d, of which something may be left", f.gen.next)
	}
	put(t, leader.fs, "/data/p/g-0000000000000001/x.log")
	put(t, leader.fs, "/data/p/CURRENT.new")
	put(t, leader.fs, "/data/p/g-nonsense")
	values := len(leader.values())
	leader.restart()
	<-leader.swept
	if got := listing(t, leader.fs, "/data/p"); strings.Contains(got, "g-0") || strings.Contains(got, "CURRENT") {
		t.Fatalf("the directory holds %s", got)
	}
	if len(leader.values()) != values {
		t.Fatal("generation 0 is not what it was")
	}
}

func put(t testing.TB, fsys fsx.FS, name string) {
	t.Helper()
	if err := fsys.MkdirAll(name[:strings.LastIndexByte(name, '/')], 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAResetReplicaIsOpenOnlyOnce(t *testing.T) {
	f, _ := wasReset(t)
	f.start()
	if r, err := open(f.cfg, f.deps, f.limits); !errors.Is(err, log.ErrLocked) {
		t.Fatalf("opened twice: %v, %v", r, err)
	}
}

// A process may die between the rename of CURRENT and the sync behind it. The next one takes the
// new generation for what it is, and acknowledges entries in it: no power cut may take it back then.
func TestASwitchThatWasNotSyncedIsMadeDurableBeforeItCounts(t *testing.T) {
	leader, _ := retained(t)
	f := joining(t, sim.New())
	f.start()
	term := leader.group.Load().Term()
	f.heartbeat(term)
	offer := offering(t, leader.Replica, term)
	renamed := false
	fs := f.fs.(*sim.FS)
	fs.SetHook(func(op sim.Op) sim.Fault {
		if renamed {
			return sim.Fault{Crash: true}
		}
		renamed = op.Kind == sim.OpRename && strings.HasSuffix(op.Name, "/CURRENT")
		return sim.Fault{}
	})
	if _, err := offer.to(f.Replica); err == nil || !renamed {
		t.Fatalf("%t, %v", renamed, err)
	}
	<-f.died
	_ = f.tryStop()
	f.fs = fs.Kill() // the machine stays on
	f.deps.FS = f.fs
	f.start()
	if f.gen.n != 1 {
		t.Fatalf("generation %d", f.gen.n)
	}
	f.heartbeat(term)
	last := leader.log.LastIndex()
	f.mustFeed(leader.log, term, last, last) // acknowledged
	after := f.fs.(*sim.FS).Reboot(rand.New(rand.NewPCG(1, 1)), false)
	_ = f.tryStop()
	f.fs, f.deps.FS = after, after
	f.start()
	if f.log.LastIndex() != last {
		t.Fatalf("the log ends at %d, %d was acknowledged", f.log.LastIndex(), last)
	}
}

// What other generations left goes slowly, and the replica may be reset again meanwhile.
func TestAResetWhileLitterIsRemoved(t *testing.T) {
	leader, whole := retained(t)
	term := leader.group.Load().Term()
	early := earlierOrigin(t, whole, leader.log.FirstIndex()-1)
	early.req.Term = term
	f := joining(t, sim.New())
	fs := f.fs.(*sim.FS)
	f.start()
	f.heartbeat(term)
	if resp, err := early.to(f.Replica); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	<-f.reset
	f.stop()
	put(t, fs, "/follower/p/g-0000000000000002/half-built")
	hold := make(chan struct{})
	fs.SetHook(func(op sim.Op) sim.Fault {
		if op.Kind == sim.OpRemove && !strings.Contains(op.Name, "g-") {
			return sim.Fault{Until: hold}
		}
		return sim.Fault{}
	})
	if err := f.rig.tryStart(); err != nil {
		t.Fatal(err)
	}
	f.heartbeat(term)
	if resp, err := offering(t, leader.Replica, term).to(f.Replica); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	close(hold)
	<-f.swept
	f.reopen()
	if f.gen.n != 3 {
		t.Fatalf("generation %d", f.gen.n)
	}
	f.heartbeat(term)
	last := leader.log.LastIndex()
	f.mustFeed(leader.log, term, last, last)
	leader.same(t, f.rig)
	if got := listing(t, fs, "/follower/p"); strings.Count(got, "g-") != 1 {
		t.Fatalf("the directory holds %s", got)
	}
}

var update = flag.Bool("update", false, "write the golden files of the current format version")

const goldenDir = "testdata/v1"

// Whatever format is written next: a replica that was reset by this version opens for ever, and its
// origin is read. These files are never rewritten; a new version gets a directory of its own.
func TestGoldenGeneration(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	b, err := os.ReadFile(goldenDir + "/origin")
	if err != nil {
		t.Fatal(err)
	}
	o, err := log.DecodeOrigin(b, log.UUID{7}, 3)
	if err != nil || o.Index != 7 {
		t.Fatalf("%+v, %v", o, err)
	}
	if _, err := stateAt(o, releaseLimits); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(o.Encode(log.UUID{7}, 3), b) {
		t.Fatal("this build writes the same origin otherwise")
	}
	f := joining(t, fsx.OS())
	f.cfg.Dir = filepath.Join(t.TempDir(), "p")
	if err := os.CopyFS(f.cfg.Dir, os.DirFS(goldenDir+"/reset")); err != nil {
		t.Fatal(err)
	}
	f.start()
	if f.gen.n != 1 || f.log.FirstIndex() != 8 || f.log.LastIndex() != 10 || !bytes.Equal(f.store.now().config, decoded(t, o).config) {
		t.Fatalf("generation %d holds [%d,%d]", f.gen.n, f.log.FirstIndex(), f.log.LastIndex())
	}
	if v := f.View(); v.LogStart != o.Offset || v.LogEnd != o.Offset+3 {
		t.Fatalf("%+v", v)
	}
	current, err := os.ReadFile(goldenDir + "/reset/CURRENT")
	if err != nil || !bytes.Equal(current, encodeCurrent(1)) {
		t.Fatalf("%q, %v", current, err)
	}
}

func decoded(t testing.TB, o log.Origin) *state {
	t.Helper()
	s, err := stateAt(o, releaseLimits)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func writeGolden(t *testing.T) {
	leader, whole := retained(t)
	o := earlierOrigin(t, whole, leader.log.FirstIndex()-1)
	term := leader.group.Load().Term()
	o.req.Term = term
	f := joining(t, fsx.OS())
	f.cfg.Dir = filepath.Join(t.TempDir(), "p")
	f.start()
	f.heartbeat(term)
	if _, err := o.to(f.Replica); err != nil {
		t.Fatal(err)
	}
	f.reopen()
	f.mustFeed(whole, term, 10, 10)
	f.stop()
	for _, name := range []string{"LOCK", "g-0000000000000001/LOCK"} {
		if err := os.Remove(filepath.Join(f.cfg.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(goldenDir+"/reset", os.DirFS(f.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(goldenDir+"/origin", o.state, 0o600); err != nil {
		t.Fatal(err)
	}
}
