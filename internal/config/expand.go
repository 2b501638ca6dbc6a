package config

import (
	"fmt"
	"strings"
)

// expand replaces ${NAME} by a variable and ${file:/path} by a file's content
// without its last line end. "$$" is a dollar sign. What was put in is not
// expanded again.
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(s, "$")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		switch {
		case strings.HasPrefix(rest, "$"):
			out.WriteByte('$')
			s = rest[1:]
		case strings.HasPrefix(rest, "{"):
			name, after, closed := strings.Cut(rest[1:], "}")
			if !closed {
				return "", fmt.Errorf("%q has no closing brace", "$"+rest)
			}
			text, err := resolve(name, lookup)
			if err != nil {
				return "", err
			}
			out.WriteString(text)
			s = after
		default:
			out.WriteByte('$')
			s = rest
		}
	}
}

func resolve(name string, lookup func(string) (string, bool)) (string, error) {
	if path, ok := strings.CutPrefix(name, "file:"); ok {
		b, err := readBounded(path)
		if err != nil {
			return "", fmt.Errorf("${%s}: %s %w", name, path, err)
		}
		return strings.TrimRight(string(b), "\r\n"), nil
	}
	text, ok := lookup(name)
	if !ok {
		return "", fmt.Errorf("${%s}: there is no such variable", name)
	}
	return text, nil
}
