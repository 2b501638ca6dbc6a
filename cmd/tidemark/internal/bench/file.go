package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// PlainFile is what a plain file on the same disk does in the same run: the
// yardstick for a log.
type PlainFile struct {
	WriteBytes int     `json:"write_bytes"` // of one write
	Synced     float64 `json:"synced_mib_per_second"`
	Unsynced   float64 `json:"unsynced_mib_per_second"`
	Read       float64 `json:"read_mib_per_second"`
	// Ratio is the measured rate divided by the file's: synced writes for
	// produce, reads for consume.
	Ratio float64 `json:"ratio"`
}

// fileBudget bounds each part of the measurement.
const (
	fileTime  = 2 * time.Second
	fileBytes = 256 << 20
)

// MeasureFile appends to a file in dir and reads it back, in writes of n bytes.
func MeasureFile(dir string, n int) (PlainFile, error) {
	f := PlainFile{WriteBytes: n}
	name := fmt.Sprintf("%s/tidemark-bench-%d", dir, os.Getpid())
	defer os.Remove(name)
	var err error
	if f.Unsynced, err = appendFile(name, n, false); err != nil {
		return f, err
	}
	if f.Read, err = readFile(name, n); err != nil {
		return f, err
	}
	f.Synced, err = appendFile(name, n, true)
	return f, err
}

func appendFile(name string, n int, sync bool) (rate float64, err error) {
	f, err := fsx.OS().OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := newPayload(n).value(1)
	begun := clock.Monotonic()
	var done int64
	for done < fileBytes && clock.Since(begun) < fileTime {
		if _, err := f.WriteAt(block, done); err != nil {
			return 0, err
		}
		if sync {
			if err := f.Sync(); err != nil {
				return 0, err
			}
		}
		done += int64(n)
	}
	return mibPerSecond(done, clock.Since(begun)), nil
}

func readFile(name string, n int) (float64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	block := make([]byte, n)
	begun := clock.Monotonic()
	var done int64
	for {
		m, err := io.ReadFull(f, block)
		done += int64(m)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return mibPerSecond(done, clock.Since(begun)), nil
			}
			return 0, err
		}
	}
}

func mibPerSecond(bytes int64, took time.Duration) float64 {
	return float64(bytes) / max(took.Seconds(), 1e-9) / (1 << 20)
}
