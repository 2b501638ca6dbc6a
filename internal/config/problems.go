package config

import (
	"fmt"
	"strings"
	"sync"
)

// Problem is one thing that is wrong with the settings.
type Problem struct {
	Key   string
	What  string
	Place string // file:line:column, --set, environment; may be empty
}

func (p Problem) String() string {
	if p.Place == "" {
		return p.Key + ": " + p.What
	}
	return fmt.Sprintf("%s: %s [%s]", p.Key, p.What, p.Place)
}

// Error is every problem of the settings, at once.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

type problems []Problem

func (p *problems) add(key, what, place string) {
	*p = append(*p, Problem{key, what, place})
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &Error{p}
}

var keyTypes = sync.OnceValue(func() map[string]Key {
	m := map[string]Key{}
	for _, k := range Keys() {
		m[k.Name] = k
	}
	return m
})

func known(key string) bool { _, ok := keyTypes()[key]; return ok }

func isGroup(path string) bool {
	for key := range keyTypes() {
		if strings.HasPrefix(key, path+".") {
			return true
		}
	}
	return false
}

// suggest names the nearest key, spelled by as (nil: as it is).
func suggest(key string, as func(string) string) string {
	best, distance := "", 1<<30
	for _, k := range Keys() {
		for _, candidate := range prefixes(k.Name) {
			d := Distance(key, candidate)
			if d < distance {
				best, distance = candidate, d
			}
		}
	}
	if distance > max(2, len(key)/3) {
		best = sameLeaf(key)
	}
	if best == "" {
		return "; tidemark config doc lists all keys"
	}
	if as != nil {
		best = as(best)
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// prefixes returns a key and the groups that it is in.
func prefixes(key string) []string {
	all := []string{key}
	for i := range key {
		if key[i] == '.' {
			all = append(all, key[:i])
		}
	}
	return all
}

// sameLeaf finds the key that ends like an unknown one, such as node.data_dir for data_dir.
func sameLeaf(key string) string {
	leaf := key[strings.LastIndexByte(key, '.')+1:]
	for _, k := range Keys() {
		if strings.HasSuffix(k.Name, "."+leaf) {
			return k.Name
		}
	}
	return ""
}

// Distance is how many letters must be put in, taken out, changed or swapped
// with their neighbour to make one word of the other.
func Distance(a, b string) int {
	before, last, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(last[j]+1, next[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, last, next = last, next, before
	}
	return last[len(b)]
}
