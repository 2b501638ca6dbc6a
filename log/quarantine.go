package log

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// quarantineName is the marker of a log that lost acknowledged bytes. Open
// refuses such a log until an operator (or a reseed) takes the whole directory away.
const quarantineName = "QUARANTINED"

// maxMarker bounds the marker's text.
const maxMarker = 4096

// quarantined is the reason in the marker, "" without one.
func quarantined(fsys fsx.FS, dir string) (string, error) {
	b, err := fsx.ReadFile(fsys, filepath.Join(dir, quarantineName), maxMarker)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if len(b) == 0 {
		return "no reason given", nil
	}
	return string(b), nil
}

// quarantine persists the marker. It stays beside the data, which is not
// touched. A failure to write it changes nothing: the damage is found again.
func quarantine(cfg *Config, reason error) {
	text := fmt.Sprintf("%s: %v\n", cfg.Clock.Now().UTC().Format(time.RFC3339), reason)
	text = text[:min(len(text), maxMarker)]
	cfg.Metrics.corrupted()
	cfg.Logger.Error("log is quarantined; its data stays, replace this replica or restore it from a backup",
		"dir", cfg.Dir, "err", reason)
	if err := fsx.WriteFile(cfg.FS, filepath.Join(cfg.Dir, quarantineName), []byte(text), filePerm); err != nil {
		cfg.Logger.Error("quarantine marker was not written", "dir", cfg.Dir, "err", err)
	}
}

// damaged records that a read found damage, and returns the error for the
// reader. The first one leaves the marker.
func (l *Log) damaged(err error) error {
	l.corruptMu.Lock()
	first := l.corrupt.Load() == nil
	if first {
		l.corrupt.Store(&failure{err})
		quarantine(&l.cfg, err)
	}
	l.corruptMu.Unlock()
	if first && l.cfg.OnCorrupt != nil {
		l.cfg.OnCorrupt(err)
	}
	return err
}
