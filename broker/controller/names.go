package controller

import (
	"strings"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// CheckTopicName tells whether a topic may have this name.
func CheckTopicName(name string) error {
	const legal = "use 1 to 249 of a-z A-Z 0-9 . _ - and neither \".\" nor \"..\""
	switch {
	case name == "":
		return errs.Errorf(errs.InvalidTopicException, "the topic name is empty: %s", legal)
	case len(name) > maxTopicNameSize:
		return errs.Errorf(errs.InvalidTopicException, "the topic name has %d bytes: %s", len(name), legal)
	case name == "." || name == "..":
		return errs.Errorf(errs.InvalidTopicException, "no topic may be called %q: %s", name, legal)
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return !legalInName(r) }); i >= 0 {
		return errs.Errorf(errs.InvalidTopicException, "topic name %q has an illegal character at position %d: %s", name, i, legal)
	}
	return nil
}

func legalInName(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
}

// metricName is what monitoring systems make of a topic name: two topics that differ
// only in . and _ look like one there.
func metricName(name string) string { return strings.ReplaceAll(name, ".", "_") }

// nearest finds the candidate that a typing mistake most likely meant; "" where
// none is near.
func nearest(name string, candidates []string) string {
	best, bestDistance := "", len(name)/2+1
	for _, c := range candidates {
		if d := distance(name, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the number of single-character edits between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
