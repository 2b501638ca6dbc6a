package powercut

import (
	"fmt"
	"os"
	"testing"
)

// childEnv makes the test binary a child that writes a log; it holds which.
const childEnv = "TIDEMARK_POWERCUT_CHILD"

func TestMain(m *testing.M) {
	kind := os.Getenv(childEnv)
	if kind == "" {
		code := m.Run()
		if err := os.RemoveAll(binaryDir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	if err := runChild(kind, os.Args[1:]); err != nil {
		fmt.Printf("fail %q\n", err.Error())
		os.Exit(1)
	}
}
