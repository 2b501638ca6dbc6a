package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Secret is text that is never shown: every way to print it gives a mask.
type Secret struct{ text string }

// Reveal returns the text.
func (s Secret) Reveal() string { return s.text }

// String masks the secret.
func (s Secret) String() string {
	if s.text == "" {
		return ""
	}
	return "***"
}

// GoString masks the secret for %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText masks the secret in JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseDuration reads 250ms, 1h30m, 7d or 2w.
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("got %q, want a duration such as 250ms, 30s or 7d", s)
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		n, ok := strings.CutSuffix(s, unit)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(n, 64)
		if err != nil || math.IsNaN(f) || math.Abs(f)*float64(length) > math.MaxInt64/2 {
			return 0, bad
		}
		return time.Duration(f * float64(length)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, bad
	}
	return d, nil
}

var sizeUnits = []struct {
	suffix string
	factor float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1},
}

// ParseSize reads 64MiB, 1GB or a number of bytes.
func ParseSize(s string) (int64, error) {
	for _, u := range sizeUnits {
		n, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
		if err != nil || math.IsNaN(f) || f < 0 || f*u.factor > math.MaxInt64/2 {
			break
		}
		return int64(f * u.factor), nil
	}
	return 0, fmt.Errorf("got %q, want a size such as 64MiB, 1GB or 4096", s)
}

// FormatSize writes a number of bytes in the largest unit that divides it.
func FormatSize(n int64) string {
	for _, u := range sizeUnits[:4] {
		if next := int64(u.factor); n > 0 && n%next == 0 && n/next < 1<<10 {
			return strconv.FormatInt(n/next, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

func text(p *string, name, def, doc string) Key {
	return Key{
		Name: name, Type: "text", Default: def, Doc: doc, Reload: Restart,
		parse: func(s string) error { *p = s; return nil },
		show:  func() string { return *p },
	}
}

func required(k Key) Key {
	inner := k.parse
	k.parse = func(s string) error {
		if s == "" {
			return errors.New("must not be empty")
		}
		return inner(s)
	}
	return k
}

func later1(k Key) Key { k.Later = true; return k }

func secret(p *Secret, name, doc string) Key {
	return Key{
		Name: name, Type: "secret", Doc: doc, Reload: Restart,
		parse: func(s string) error { p.text = s; return nil },
		show:  func() string { return p.String() },
	}
}

func list(p *[]string, name, def, doc string) Key {
	return Key{
		Name: name, Type: "list", Default: def, Doc: doc, Reload: Restart, list: true,
		parse: func(s string) error {
			*p = nil
			for item := range strings.SplitSeq(s, ",") {
				if item = strings.TrimSpace(item); item != "" {
					*p = append(*p, item)
				}
			}
			return nil
		},
		show: func() string { return strings.Join(*p, ",") },
	}
}

func enum(p *string, name, def, doc string, values ...string) Key {
	k := text(p, name, def, doc)
	k.Type = strings.Join(values, " | ")
	k.parse = func(s string) error {
		if !slices.Contains(values, s) {
			return fmt.Errorf("got %q, want %s", s, strings.Join(values, " or "))
		}
		*p = s
		return nil
	}
	return k
}

func boolean(p *bool, name, def, doc string) Key {
	return Key{
		Name: name, Type: "true | false", Default: def, Doc: doc, Reload: Restart,
		parse: func(s string) error {
			if s != "true" && s != "false" {
				return fmt.Errorf("got %q, want true or false", s)
			}
			*p = s == "true"
			return nil
		},
		show: func() string { return strconv.FormatBool(*p) },
	}
}

func number[T int | int16 | int32](p *T, name, def, doc string, least, most int64) Key {
	return Key{
		Name: name, Type: "number", Default: def, Doc: doc, Reload: Restart,
		parse: func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || n < least || n > most {
				return fmt.Errorf("got %q, want a number from %d to %d", s, least, most)
			}
			*p = T(n)
			return nil
		},
		show: func() string { return strconv.FormatInt(int64(*p), 10) },
	}
}

func size(p *int64, name, def, doc string, least int64) Key {
	return Key{
		Name: name, Type: "size", Default: def, Doc: doc, Reload: Restart,
		parse: func(s string) error {
			n, err := ParseSize(s)
			if err != nil {
				return err
			}
			if n < least {
				return fmt.Errorf("got %q, want at least %d bytes", s, least)
			}
			*p = n
			return nil
		},
		show: func() string { return FormatSize(*p) },
	}
}

func duration(p *time.Duration, name, def, doc string) Key {
	return Key{
		Name: name, Type: "duration", Default: def, Doc: doc, Reload: Restart,
		parse: func(s string) error {
			d, err := ParseDuration(s)
			if err != nil {
				return err
			}
			if d <= 0 {
				return fmt.Errorf("got %q, want more than nothing", s)
			}
			*p = d
			return nil
		},
		show: func() string { return p.String() },
	}
}

func hostPort(p *string, name, def, doc string) Key {
	k := text(p, name, def, doc)
	k.Type = "host:port"
	k.parse = func(s string) error {
		if s != "" {
			_, port, err := net.SplitHostPort(s)
			n, bad := strconv.ParseUint(port, 10, 16)
			if err != nil || bad != nil || n > 65535 {
				return fmt.Errorf("got %q, want host:port", s)
			}
		}
		*p = s
		return nil
	}
	return k
}
