// Package bugs holds the negative controls: faults that are built into the product on purpose
// (package internal/bug), each of which the cheapest layer of tests that should find it must find.
//
// The tests need a build of their own: go test -tags bugs ./test/bugs
package bugs
