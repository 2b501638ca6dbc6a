//go:build failpoint

// Package failpoint names the places between two steps that touch the disk, so
// that tests can crash exactly there.
//
// This build has the tag "failpoint": TIDEMARK_FAILPOINT=name:N makes the Nth hit
// of that place kill the process, as SIGKILL would.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Variable is the name of the variable that arms a place.
const Variable = "TIDEMARK_FAILPOINT"

var (
	name  string
	left  atomic.Int64
	armed = arm()
	hook  atomic.Pointer[func(string)]
)

func arm() bool {
	spec, ok := os.LookupEnv(Variable)
	if !ok {
		return false
	}
	at, count, _ := strings.Cut(spec, ":")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		n = 1
	}
	name = at
	left.Store(n)
	return true
}

// SetHook makes every Hit call f, until SetHook(nil).
func SetHook(f func(place string)) {
	if f == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&f)
}

// Hit marks a place. The process dies here when the place is armed.
func Hit(place string) {
	if f := hook.Load(); f != nil {
		(*f)(place)
	}
	if armed && place == name && left.Add(-1) == 0 {
		fmt.Fprintln(os.Stderr, "failpoint", place)
		syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
}
