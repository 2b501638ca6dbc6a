//go:build !failpoint

// Package failpoint names the places between two steps that touch the disk, so
// that tests can crash exactly there.
//
// Without the build tag "failpoint" a Hit is nothing at all: release binaries
// hold no hook.
package failpoint

// Variable is the name of the variable that arms a place; there is none in this build.
const Variable = ""

// Hit does nothing in this build.
func Hit(string) {}
