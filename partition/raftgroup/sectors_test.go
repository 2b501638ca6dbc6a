package raftgroup

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// A sector of a snapshot that is lost, stale, another snapshot's or another group's makes it damaged; what
// is offered as a snapshot is the one that it is called.
func TestStrayAndStaleSectorsOfSnapshots(t *testing.T) {
	state := func(i int, size int) string { return strings.Repeat(fmt.Sprintf("state %d;", i), size) }
	for _, size := range []int{1, 500} { // one sector, and several
		disk, twin := diskWithDir(t), diskWithDir(t)
		for k, d := range []*sim.FS{disk, twin} {
			s, _, err := openSnapshots(d, "d/snapshots", quiet, NewMetrics(nil))
			must(t, err)
			must(t, takeSnapshot(s, 10, 1, state(1+10*k, size)))
			must(t, takeSnapshot(s, 20, 2, state(2+10*k, size)))
		}
		older, newer := "d/snapshots/"+snapshotID(10, 1), "d/snapshots/"+snapshotID(20, 2)
		own, other := fileOf(t, disk, newer), fileOf(t, disk, older)
		found := 0
		for at := 0; at < len(own); at += sim.SectorBytes {
			end := min(at+sim.SectorBytes, len(own))
			for what, src := range map[string][]byte{
				"zeros": make([]byte, len(own)), "another snapshot's": other, "another group's": fileOf(t, twin, newer),
			} {
				if len(src) < end || bytes.Equal(src[at:end], own[at:end]) || what == "another group's" && size == 1 {
					continue // nothing names the group: one whole small file is as good as another
				}
				v := disk.Clone()
				must(t, v.Corrupt(newer, func(b []byte) []byte { copy(b[at:end], src[at:end]); return b }))
				s, damaged, err := openSnapshots(v, "d/snapshots", quiet, NewMetrics(nil))
				must(t, err)
				metas, err := s.List()
				must(t, err)
				if damaged != 1 || s.lost != 20 || len(metas) != 1 || metas[0].Index != 10 {
					t.Fatalf("size %d, sector %d is %s: %d damaged, up to %d, %d left", size, at/sim.SectorBytes, what, damaged, s.lost, len(metas))
				}
				_, r, err := s.Open(metas[0].ID)
				must(t, err)
				if got, _ := io.ReadAll(r); string(got) != state(1, size) {
					t.Fatal("the older snapshot has another state")
				}
				found++
			}
		}
		if found < 2 {
			t.Errorf("size %d: %d found", size, found)
		}
	}
}
