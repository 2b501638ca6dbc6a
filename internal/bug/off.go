//go:build !bugs

package bug

// Variable is the name of the variable that switches a bug on; there is none in this build.
const Variable = ""

// On tells whether a bug is there: never, in this build.
func On(Bug) bool { return false }
