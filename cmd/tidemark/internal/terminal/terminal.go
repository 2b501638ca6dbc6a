// Package terminal is how commands talk to people: numbers, colours, the
// progress line and the closing line.
//
// Everything here goes to stderr; data goes to stdout and never passes through
// this package. Nothing depends on a terminal: without one there is no colour
// and no progress line, and all else is the same.
package terminal

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

// Is tells whether f is a terminal.
func Is(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Colors decides whether output to f is coloured: auto, always or never.
func Colors(mode string, f *os.File, getenv func(string) string) bool {
	switch {
	case mode == "always":
		return true
	case mode == "never":
		return false
	case getenv("NO_COLOR") != "" || getenv("TERM") == "dumb":
		return false
	case getenv("CLICOLOR_FORCE") == "1":
		return true
	}
	return Is(f)
}

// Count writes a number with commas: 156,738.
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Counted writes a number with what is counted: 1 record, 2,000 records, 3 batches.
func Counted(n int64, one string) string {
	switch {
	case n == 1:
		return "1 " + one
	case strings.HasSuffix(one, "ch"):
		return Count(n) + " " + one + "es"
	}
	return Count(n) + " " + one + "s"
}

// Bytes writes a number of bytes: 8.5 MiB.
func Bytes(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1024 {
			if unit == "B" {
				return fmt.Sprintf("%.0f B", n)
			}
			return fmt.Sprintf("%.1f %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.1f TiB", n)
}

// Rate writes a number per second: 67.8k.
func Rate(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.1fM", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1fk", n/1e3)
	}
	return fmt.Sprintf("%.0f", n)
}

// Duration writes a duration with three digits: 8.42ms.
func Duration(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + "s"
	case d >= time.Millisecond:
		return strconv.FormatFloat(float64(d)/1e6, 'f', 1, 64) + "ms"
	}
	return strconv.FormatFloat(float64(d)/1e3, 'f', 0, 64) + "µs"
}
