package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Check is one fact. Run returns nil when it holds, else why not, for an operator to read.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// checkTimeout bounds all checks of one request together.
const checkTimeout = 5 * time.Second

// checks answers 200 when all hold, 503 otherwise. ?verbose lists them all, ?exclude=name
// leaves one out and may be repeated. What failed is always listed.
func checks(name string, all []Check) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		q := r.URL.Query()
		lines, failed := runChecks(ctx, all, q["exclude"])

		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		verdict := "ok"
		if failed {
			w.WriteHeader(http.StatusServiceUnavailable)
			verdict = name + " check failed"
		}
		if failed || q.Has("verbose") {
			fmt.Fprint(w, strings.Join(lines, ""))
		}
		fmt.Fprintln(w, verdict)
	}
}

func runChecks(ctx context.Context, all []Check, exclude []string) (lines []string, failed bool) {
	for _, c := range all {
		if slices.Contains(exclude, c.Name) {
			lines = append(lines, fmt.Sprintf("[+]%s excluded\n", c.Name))
			continue
		}
		if err := c.Run(ctx); err != nil {
			failed = true
			lines = append(lines, fmt.Sprintf("[-]%s failed: %s\n", c.Name, oneLine(err)))
			continue
		}
		lines = append(lines, fmt.Sprintf("[+]%s ok\n", c.Name))
	}
	return lines, failed
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
