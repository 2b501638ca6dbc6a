// Package tidemarkv1 is the native gRPC API, generated from tidemark.proto by
// "make generate". Published fields never change meaning.
package tidemarkv1
