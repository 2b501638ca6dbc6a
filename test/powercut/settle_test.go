package powercut

import (
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/testkit/cutfs"
	"github.com/tidemarkhq/tidemark/log"
)

// A write that fails leaves its frames in the page cache, as if they were written. The log that is opened next finds
// them there and counts them as durable: then they must be, also where they stand in blocks that were new
// in the failed write. (ext4 forgets that it has to mark such blocks as written.)
func TestWhatAFailedWriteLeftIsDurableOnceOpened(t *testing.T) {
	for _, kind := range onBlock {
		t.Run(kind, func(t *testing.T) {
			d := newDisk(t, kind, 1)
			open := func(dir string) *writer {
				reg := prometheus.NewRegistry()
				l, _, err := log.Open(log.Config{Dir: filepath.Join(dir, "data"), Topic: log.UUID{1}, FS: fsx.OS(), Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				return &writer{profile: profile{dir: dir, rng: rand.New(rand.NewPCG(1, 1))}, log: l, term: 1, metrics: reg}
			}
			dir := d.mount()
			w := open(dir)
			for range 5 {
				must(t, w.log.Write([]log.Entry{w.entry(w.log.LastIndex()+1, w.log.EndOffset())}, 0))
				must(t, w.log.Sync())
			}
			must(t, w.log.Write([]log.Entry{w.entry(w.log.LastIndex()+1, w.log.EndOffset())}, 0))
			armed := d.fs.Inject(cutfs.Fault{Op: cutfs.OpWrite, Err: syscall.EIO})
			if err := w.log.Sync(); err == nil || armed.Hits() != 1 {
				t.Fatalf("the sync said %v after %d failed writes", err, armed.Hits())
			}
			_ = w.log.Close() // says why it was poisoned
			w = open(dir)
			durable := w.log.Durable()
			must(t, w.log.Close())
			t.Logf("%d entries were written, %d are durable", 6, durable)
			d.fs.Cut(false)
			d.unmount()
			w = open(d.mount())
			if last := w.log.LastIndex(); last < durable {
				t.Errorf("the log ends at %d, %d was durable", last, durable)
			}
			must(t, w.log.Close())
			d.unmount()
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
