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

// replaced shows an entry only to the second who asks: another leader's took the place of one that was cut.
type replaced struct {
	raft.LogStore
	asked int
}

func (l *replaced) GetLog(index uint64, out *raft.Log) error {
	if l.asked++; l.asked == 1 {
		return raft.ErrLogNotFound
	}
	return l.LogStore.GetLog(index, out)
}

// Raft's replicating goroutines read beside the main loop, which may cut the log and append to it in between.
func TestAnEntryThatIsReplacedWhileItIsReadIsNoFailure(t *testing.T) {
	f := newFence(func(err error) { t.Error(err) }, newStall("", nil, nil))
	logs := raft.NewInmemStore()
	if err := logs.StoreLog(&raft.Log{Index: 1, Term: 7}); err != nil {
		t.Fatal(err)
	}
	var got raft.Log
	if err := (fencedLog{&replaced{LogStore: logs}, f}).GetLog(1, &got); err != nil || got.Term != 7 || f.tripped() {
		t.Errorf("%+v, %v", got, err)
	}
	if err := (fencedLog{&replaced{LogStore: logs}, f}).GetLog(2, &got); !errors.Is(err, raft.ErrLogNotFound) || f.tripped() {
		t.Errorf("beyond the end: %v", err)
	}
}
