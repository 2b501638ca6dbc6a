//go:build failpoint

package failpoint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
)

var call = regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)

// Names are the places that the source files of a directory name, tests apart.
func Names(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for _, m := range call.FindAllSubmatch(b, -1) {
			all = append(all, string(m[1]))
		}
	}
	return all, nil
}

// At makes the nth hit of a place call f, in this process, until SetHook(nil). reached tells
// whether it did.
func At(place string, n int, f func()) (reached func() bool) {
	var hits atomic.Int64
	SetHook(func(at string) {
		if at == place && hits.Add(1) == int64(n) {
			f()
		}
	})
	return func() bool { return hits.Load() >= int64(n) }
}
