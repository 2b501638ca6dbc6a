// Package release looks at the binary that users get: it must hold none of the hooks by
// which tests break the product.
package release
