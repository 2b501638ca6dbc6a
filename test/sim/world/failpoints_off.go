//go:build !failpoint

package world

// failpoints are not in this build: the world runs without them.
type failpoints struct{}

func (f *failpoints) install(*World) (remove func()) { return func() {} }

func (f *failpoints) arm(func(n int) int) string { return "" }
