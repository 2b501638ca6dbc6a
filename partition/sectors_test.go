package partition

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
	"github.com/tidemarkhq/tidemark/log"
)

// A checkpoint of which a sector is lost, stale or another partition's, or that is an older one as a
// whole, is not believed, or its log completes it: producers, high watermark and log start are
// what they were.
func TestStrayAndStaleSectorsOfTheCheckpoint(t *testing.T) {
	const producers = 30
	name := filepath.Join("/data/p", checkpointName)
	fill := func(disk *sim.FS, topic log.UUID, text string) (r *rig, earlier []byte) {
		r = newRig(t, disk, "/data", withTopic(func(c *TopicConfig) { c.SegmentBytes = 64 << 10 }), func(r *rig) { r.cfg.Topic = topic })
		for round := range 2 {
			if err := r.tryStart(); err != nil {
				t.Fatal(err)
			}
			if err := r.awaitLeader(); err != nil {
				t.Fatal(err)
			}
			r.cfg.Voters = nil
			for pid := range int64(producers) {
				r.mustAppend(numbered(pid, 0, int32(round), strings.Repeat(text, 3000)))
			}
			r.stop()
			if round == 0 {
				earlier = contentOf(t, disk, name)
			}
		}
		return r, earlier
	}
	disk, twin := sim.New(), sim.New()
	r, earlier := fill(disk, log.UUID{7}, "x")
	fill(twin, log.UUID{8}, "x")
	own := contentOf(t, disk, name)
	cases := map[string][]byte{"stale as a whole": earlier, "another partition's as a whole": contentOf(t, twin, name)}
	for at := 0; at < len(own); at += sim.SectorBytes {
		end := min(at+sim.SectorBytes, len(own))
		for what, src := range map[string][]byte{"zeros": make([]byte, len(own)), "stale": earlier, "twin": cases["another partition's as a whole"]} {
			if len(src) >= end && !bytes.Equal(src[at:end], own[at:end]) {
				b := bytes.Clone(own)
				copy(b[at:end], src[at:end])
				cases[fmt.Sprintf("sector %d: %s", at/sim.SectorBytes, what)] = b
			}
		}
	}
	for what, b := range cases {
		v := newRig(t, disk.Clone(), "/data")
		v.cfg = r.cfg
		if err := v.fs.(*sim.FS).Corrupt(name, func([]byte) []byte { return b }); err != nil {
			t.Fatal(err)
		}
		if err := v.tryStart(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := v.awaitLeader(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if high := v.View().HighWatermark; high != 2*producers {
			t.Errorf("%s: high watermark %d", what, high)
		}
		for _, pid := range []int64{0, producers / 2, producers - 1} {
			if a := v.mustAppend(numbered(pid, 0, 1, strings.Repeat("x", 3000))); !a.Duplicate {
				t.Errorf("%s: producer %d was forgotten: %+v", what, pid, a)
			}
		}
		v.stop()
	}
	t.Logf("%d cases", len(cases))
}

func contentOf(t testing.TB, disk fsx.FS, name string) []byte {
	t.Helper()
	b, err := fsx.ReadFile(disk, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
