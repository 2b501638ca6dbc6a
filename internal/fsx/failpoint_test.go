//go:build failpoint

package fsx_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/failpoint"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// Wherever WriteFile is stopped, the file has its old or its new content, and what it
// has said to be done is there.
func TestCrashAtEveryFailpoint(t *testing.T) {
	defer failpoint.SetHook(nil)
	places, err := failpoint.Names(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range places {
		for hit := 1; hit <= 2; hit++ {
			for seed := range uint64(20) {
				disk := sim.New()
				reached := failpoint.At(place, hit, func() { disk.CrashAt(1) })
				done := -1
				for i := range 3 {
					if fsx.WriteFile(disk, "/a", bytes.Repeat([]byte{byte(i)}, 2000), 0o600) == nil {
						done = i
					}
				}
				if !reached() {
					t.Fatalf("%s was not hit %d times", place, hit)
				}
				if seed%3 == 0 {
					disk = disk.Kill()
				} else {
					disk = disk.Reboot(rand.New(rand.NewPCG(seed, 0)), seed%3 == 1)
				}
				got, err := fsx.ReadFile(disk, "/a", 4000)
				whole := err == nil && len(got) == 2000 && bytes.Count(got, got[:1]) == 2000
				if done < 0 && err != nil {
					continue
				}
				if !whole || int(got[0]) < done || int(got[0]) > done+1 {
					t.Fatalf("%s, hit %d, seed %d: %d was acknowledged, found %d bytes, %v", place, hit, seed, done, len(got), err)
				}
				if errors.Is(err, sim.ErrCrashed) {
					t.Fatal(err)
				}
			}
		}
	}
}
