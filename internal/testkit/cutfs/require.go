package cutfs

import (
	"os"
	"testing"
)

// Require skips a test where no cutfs can be mounted. With TIDEMARK_NO_SKIP=1 it fails it instead.
func Require(t testing.TB) {
	t.Helper()
	if err := Available(); err != nil {
		Skip(t, err.Error())
	}
	if err := Sweep(); err != nil {
		t.Log(err) // of somebody else's
	}
}

// Skip skips a test, or fails it where nothing may be skipped.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("TIDEMARK_NO_SKIP") == "1" {
		t.Fatalf("must not be skipped (TIDEMARK_NO_SKIP=1): %s", why)
	}
	t.Skip(why)
}
