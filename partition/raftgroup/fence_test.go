package raftgroup

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"
)

// A disk error between Stop and the end of Raft: the stand-in for the entry must not leave the group.
func TestAnErrorDuringStopFencesTheGroup(t *testing.T) {
	f := newFence(func(error) { t.Error("the owner was told although it stops the group") }, newStall("", nil, nil))
	if err := f.arm(); err != nil {
		t.Fatal(err)
	}
	f.stop()
	boom := errors.New("EIO")
	f.trip(boom)
	f.trip(errors.New("later"))
	if !f.tripped() || !errors.Is(f.cause(), boom) {
		t.Errorf("tripped %v, cause %v", f.tripped(), f.cause())
	}
	transport := fencedTransport{Transport: NewLoopback("b/1"), fence: f}
	if err := transport.AppendEntries("b/2", "b/2", &raft.AppendEntriesRequest{}, nil); !errors.Is(err, errFenced) {
		t.Errorf("append entries: %v", err)
	}
}
