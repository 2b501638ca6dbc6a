package simnet

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"
)

// Confirm implements raftgroup.Link. A voter's ID is its address.
func (e *Endpoint) Confirm(ctx context.Context, term uint64, voters []raft.ServerID) error {
	ctx, cancel := context.WithTimeout(ctx, e.net.cfg.Timeout)
	defer cancel()
	question := &Confirm{Nonce: e.net.nextNonce(), Term: term}
	answers := make(chan answer, len(voters))
	yes, no, need := 0, 0, len(voters)/2+1
	for _, v := range voters {
		switch addr := raft.ServerAddress(v); {
		case addr == e.key.addr:
			yes++
		case e.launch(addr, question, nil, answers) != nil:
			no++
		}
	}
	for yes < need {
		if no > len(voters)-need {
			return fmt.Errorf("confirm term %d: %d of %d voters did not", term, no, len(voters))
		}
		select {
		case a := <-answers:
			if c, ok := a.body.(*Confirm); ok && c.Nonce == question.Nonce && c.Term == term {
				yes++
			} else {
				no++
			}
		case <-ctx.Done():
			return fmt.Errorf("confirm term %d: %d of %d voters did so far: %w", term, yes, len(voters), ctx.Err())
		case <-e.runs.Context().Done():
			return errEnded
		}
	}
	return nil
}

func (n *Net) nextNonce() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nonce++
	return n.nonce
}

// confirmed answers a peer's Confirm with this group's term.
func (e *Endpoint) confirmed(m *Message, c *Confirm) {
	e.mu.Lock()
	known := e.term != nil
	e.mu.Unlock()
	if term, ok := e.answerable(); ok && known {
		e.net.reply(e.life, m, &Confirm{Nonce: c.Nonce, Term: term}, nil)
	}
}
