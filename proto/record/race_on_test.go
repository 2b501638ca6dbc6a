//go:build race

package record_test

// The race detector makes sync.Pool forget at random, so pooled codecs are
// allocated anew now and then.
const poolsForget = true
