package raftgroup_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// A term cannot be stored: Raft would panic at the error and is told that all is well. It then answers in a
// term that a restart does not know, and that answer must not leave.
func TestWhatAFencedGroupAnswersStaysHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := sim.New()
		must(t, disk.MkdirAll("/data", 0o700))
		f := newAlone(t, disk, raft.NewInmemStore())
		defer f.stop()
		must(t, f.start())
		f.conflicting(t)
		disk.SetHook(func(op sim.Op) sim.Fault {
			if op.Kind == sim.OpSync && strings.Contains(op.Name, "stable") {
				return sim.Fault{Err: errors.New("input/output error")}
			}
			return sim.Fault{}
		})
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b/0"), Addr: []byte("b/0")}
		ask := func(request any) (any, error) { // past what the link does about a silent group
			answer := make(chan raft.RPCResponse, 1)
			f.link.Inject(raft.RPC{Command: request, RespChan: answer})
			a := <-answer
			return a.Response, a.Error
		}
		if resp, err := ask(&raft.AppendEntriesRequest{RPCHeader: header, Term: 9, PrevLogEntry: 3, PrevLogTerm: 2}); err == nil {
			t.Errorf("the term is not on disk, and the answer is %+v", resp)
		}
		if f.Group().Err() == nil || f.Group().Raft().CurrentTerm() != 9 {
			t.Errorf("term %d, fenced with %v: this tests nothing", f.Group().Raft().CurrentTerm(), f.Group().Err())
		}
		if resp, err := ask(&raft.RequestVoteRequest{RPCHeader: header, Term: 10, LastLogIndex: 1 << 20, LastLogTerm: 9}); err == nil {
			t.Errorf("a fenced group answers %+v", resp)
		}
	})
}
