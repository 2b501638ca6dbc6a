//go:build !race

package record_test

const poolsForget = false
