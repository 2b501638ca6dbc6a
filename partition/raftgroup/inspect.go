package raftgroup

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// CheckStable checks every slot of a stable store's file and returns how many
// there are. It changes nothing and takes no lock.
func CheckStable(fsys fsx.FS, path string) (slots int, err error) {
	file, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	s := &StableStore{file: file, path: path, logger: slog.New(slog.DiscardHandler), groups: map[[16]byte]*slot{}}
	err = s.load()
	if err != nil {
		err = fmt.Errorf("stable store %s: %w", path, err)
	}
	return len(s.slots), errors.Join(err, file.Close())
}
