// Package statetest checks what every state machine of a state group owes its replicas: the same
// log gives the same state, a snapshot says all, and no bytes make it panic. It is for tests only.
package statetest

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tidemarkhq/tidemark/partition/raftgroup"
)

// Hash is a digest of a state machine's whole state.
func Hash(sm raftgroup.StateMachine) (string, error) {
	state, err := sm.Snapshot()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(state)), nil
}

// Deterministic applies commands, and garbage made of them, to two fresh state machines, the second of which is
// replaced through a snapshot now and then, and compares them on the way.
func Deterministic(t testing.TB, fresh func() raftgroup.StateMachine, commands [][]byte) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	a, b := restored(t, fresh, nil), restored(t, fresh, nil)
	for i, command := range withGarbage(rng, commands) {
		index := uint64(2 + 3*i)
		// A state machine may keep what it is given, so each gets its own.
		a.Apply(index, append([]byte(nil), command...))
		b.Apply(index, append([]byte(nil), command...))
		if rng.IntN(8) == 0 {
			state, err := b.Snapshot()
			if err != nil {
				t.Fatalf("snapshot after command %d: %v", i, err)
			}
			b = restored(t, fresh, state)
		}
		same(t, a, b, i)
	}
}

func restored(t testing.TB, fresh func() raftgroup.StateMachine, state []byte) raftgroup.StateMachine {
	t.Helper()
	sm := fresh()
	if err := sm.Restore(state); err != nil {
		t.Fatalf("restore: %v", err)
	}
	return sm
}

func same(t testing.TB, a, b raftgroup.StateMachine, i int) {
	t.Helper()
	ha, err := Hash(a)
	if err != nil {
		t.Fatal(err)
	}
	hb, err := Hash(b)
	if err != nil {
		t.Fatal(err)
	}
	if ha != hb {
		t.Fatalf("two state machines differ after command %d of the same log", i)
	}
}

// withGarbage puts damaged commands between the good ones.
func withGarbage(rng *rand.Rand, commands [][]byte) (all [][]byte) {
	for _, c := range commands {
		all = append(all, c)
		switch bad := append([]byte(nil), c...); rng.IntN(4) {
		case 0:
			all = append(all, bad[:rng.IntN(len(bad)+1)])
		case 1:
			if len(bad) > 0 {
				bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			}
			all = append(all, bad)
		}
	}
	return append(all, nil, []byte{0}, []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
}
