package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

const (
	// manyStarts without a graceful stop between them are worth an operator's attention.
	manyStarts = 5
	// steadyAfter a start is no longer part of a crash loop.
	steadyAfter = 10 * time.Minute
)

// countStart counts the starts since the last graceful stop, this one included. The
// count is advice: what is wrong with the file counts as nothing.
func countStart(fsys fsx.FS, dir string) (int, error) {
	n := 0
	b, err := fsx.ReadFile(fsys, filepath.Join(dir, startsFile), smallFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("start counter: %w", err)
	}
	if _, err := fmt.Sscanf(string(b), "%d", &n); err != nil || n < 0 || n > 1<<30 {
		n = 0
	}
	return n + 1, writeStarts(fsys, dir, n+1)
}

// writeStarts writes without a sync: a power cut may lose a count, and loses nothing by it.
func writeStarts(fsys fsx.FS, dir string, n int) error {
	name := filepath.Join(dir, startsFile)
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("start counter: %w", err)
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", n), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("start counter: %w", err)
	}
	return nil
}
