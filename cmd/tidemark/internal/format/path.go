package format

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
)

// path leads to one value inside a JSON value, such as .user.ids[0].
type path []step

type step struct {
	name  string
	index int // -1: by name
}

// parsePath reads a path; the empty string is no path.
func parsePath(s string) (path, error) {
	if s == "" {
		return nil, nil
	}
	bad := fmt.Errorf("path %q: want .name, .name.name or .name[0]", s)
	rest := s
	var p path
	for rest != "" {
		switch rest[0] {
		case '.':
			end := strings.IndexAny(rest[1:], ".[")
			if end < 0 {
				end = len(rest) - 1
			}
			if end == 0 {
				return nil, bad
			}
			p = append(p, step{rest[1 : end+1], -1})
			rest = rest[end+1:]
		case '[':
			inner, after, ok := strings.Cut(rest[1:], "]")
			n, err := strconv.ParseUint(inner, 10, 31)
			if !ok || err != nil {
				return nil, bad
			}
			p = append(p, step{index: int(n)})
			rest = after
		default:
			return nil, bad
		}
	}
	return p, nil
}

func (p path) find(v any) any {
	for _, s := range p {
		switch in := v.(type) {
		case map[string]any:
			if s.index >= 0 {
				return nil
			}
			v = in[s.name]
		case []any:
			if s.index < 0 || s.index >= len(in) {
				return nil
			}
			v = in[s.index]
		default:
			return nil
		}
	}
	return v
}

// text is the value at p: a string as it is, others as JSON, nothing as nil.
func (p path) text(v any) []byte {
	switch found := p.find(v).(type) {
	case nil:
		return nil
	case string:
		return []byte(found)
	default:
		b, err := json.Marshal(found)
		if err != nil {
			return nil // what was JSON a moment ago always is
		}
		return b
	}
}

func (p path) time(v any) (int64, error) {
	switch found := p.find(v).(type) {
	case string:
		return timeOf(found)
	case json.Number:
		return timeOf(found.String())
	case nil:
		return Unset, nil
	default:
		return 0, fmt.Errorf("the time is neither text nor a number")
	}
}

func timeOf(s string) (int64, error) {
	if f, err := strconv.ParseFloat(s, 64); err == nil && f > 0 && f < 1e11 {
		return int64(f * 1000), nil // seconds, with a fraction
	}
	t, err := offsets.ParseTime(s, time.Time{})
	if err != nil || t.UnixMilli() < 0 {
		return 0, fmt.Errorf("%q is no time", s)
	}
	return t.UnixMilli(), nil
}
