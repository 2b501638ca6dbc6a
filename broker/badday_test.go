package broker

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// sickFS is the machine's file system with troubles that can be switched on.
type sickFS struct {
	fsx.FS
	full atomic.Bool
	// broken, when set, is the part of a path whose syncs fail.
	broken atomic.Pointer[string]
	// hung, when set, holds the syncs of data logs until it is closed.
	hung atomic.Pointer[chan struct{}]
}

func (s *sickFS) Space(dir string) (free, total uint64, err error) {
	free, total, err = s.FS.Space(dir)
	if s.full.Load() {
		free = 1 << 20
	}
	return free, total, err
}

func (s *sickFS) OpenFile(name string, flag int, perm fs.FileMode) (fsx.File, error) {
	f, err := s.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &sickFile{f, s}, nil
}

type sickFile struct {
	fsx.File
	fs *sickFS
}

func (f *sickFile) Sync() error {
	if part := f.fs.broken.Load(); part != nil && strings.Contains(f.Name(), *part) {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: syscall.EIO}
	}
	if hung := f.fs.hung.Load(); hung != nil && strings.Contains(f.Name(), "/topics/") {
		<-*hung
	}
	return f.File.Sync()
}

func startOn(t *testing.T, sick *sickFS) live {
	t.Helper()
	l := live{logged: &lines{}, fatal: make(chan error, 8)}
	b, err := New(testConfig(t.TempDir()), Deps{FS: sick, Logger: slog.New(slog.NewTextHandler(l.logged, nil)), OnFatal: func(err error) { l.fatal <- err }})
	if err != nil {
		t.Fatal(err)
	}
	l.Broker = b
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

// The disk is refused before it is full, and serves again when there is room.
func TestLowDiskRefusesAppendsAndRecovers(t *testing.T) {
	sick := &sickFS{FS: fsx.OS()}
	b := startOn(t, sick)
	defer b.stop(t)
	b.create(t, "orders", 1, nil)
	b.mustProduce(t, "orders", 0, "before")
	sick.full.Store(true)
	var err error
	eventually(t, "a refusal", func() bool {
		_, err = b.produce(t.Context(), "orders", 0, batchOf(t, "during"))
		return err != nil
	})
	if errs.CodeOf(err) != errs.StorageLow || errs.OutcomeUnknown(err) || !errs.Retriable(err) {
		t.Errorf("got %v: %v", errs.CodeOf(err), err)
	}
	if body, status := get(t, b, "/healthz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "nearly full") {
		t.Errorf("healthz says %d %s", status, body)
	}
	if got := b.read(t, "orders", 0); got[0] != "before" {
		t.Errorf("reads do not go on: %v", got)
	}
	for range 5 { // refused, and not logged each time
		if _, err := b.produce(t.Context(), "orders", 0, batchOf(t, "during")); err == nil {
			t.Error("taken while the disk is nearly full")
		}
	}
	if body, _ := get(t, b, "/metrics"); !strings.Contains(body, "\ntidemark_disk_low 1\n") {
		t.Error("the metrics do not tell")
	}
	sick.full.Store(false)
	b.mustProduce(t, "orders", 0, "after")
	logged := b.logged.String()
	if n := strings.Count(logged, "the disk is nearly full"); n != 1 || !strings.Contains(logged, "level=WARN msg=\"the disk is nearly full") {
		t.Errorf("the beginning is logged %d times\n%s", n, logged)
	}
	if n := strings.Count(logged, "level=INFO msg=\"the disk has room again"); n != 1 {
		t.Errorf("the end is logged %d times\n%s", n, logged)
	}
	select {
	case err := <-b.fatal:
		t.Errorf("a nearly full disk is no reason to end: %v", err)
	default:
	}
}

// A failed sync ends the process, whosever file it was, and what was being
// appended is not said to be done or not done.
func TestFailedSyncEndsTheProcess(t *testing.T) {
	t.Parallel() // it waits more than it works
	for _, part := range []string{"/topics/", "/state/coord-", "/state/meta/"} {
		t.Run(strings.Trim(part, "/-"), func(t *testing.T) {
			sick := &sickFS{FS: fsx.OS()}
			b := startOn(t, sick)
			b.create(t, "orders", 1, nil)
			b.mustProduce(t, "orders", 0, "before")
			sick.broken.Store(&part)
			switch part {
			case "/topics/":
				_, err := b.produce(t.Context(), "orders", 0, batchOf(t, "during"))
				if err == nil || !errs.OutcomeUnknown(err) {
					t.Errorf("an append whose sync failed was answered with %v", err)
				}
			case "/state/meta/":
				if _, _, err := b.controller.InitProducer(t.Context()); err == nil {
					t.Error("a producer id was handed out that may be forgotten")
				}
			default:
				for i := range 8 {
					g := string(rune('a' + i))
					if _, err := b.groups.CommitOffsets(t.Context(), commitOf(g)); err == nil {
						t.Errorf("group %s: an offset was committed that may be forgotten", g)
					}
				}
			}
			if err := <-b.fatal; !strings.Contains(err.Error(), "input/output error") {
				t.Errorf("the process ends with %v", err)
			}
			// The process would have ended; here only the goroutines have to.
			b.phase.Store(phaseDraining)
			_ = b.unwind(t.Context())
		})
	}
}

// A disk that hangs takes the broker out of service, refuses what comes, and keeps what
// waited; when it answers again, so does the broker.
func TestHungDiskIsSeenAndOutlived(t *testing.T) {
	t.Parallel() // it waits more than it works
	if testing.Short() {
		t.Skip("-short: a disk must hang for three real seconds before anybody may notice")
	}
	sick := &sickFS{FS: fsx.OS()}
	b := startOn(t, sick)
	defer b.stop(t)
	b.create(t, "orders", 1, nil)
	b.mustProduce(t, "orders", 0, "before")
	hung := make(chan struct{})
	sick.hung.Store(&hung)
	waiting, err := b.replicas.Produce(t.Context(), "orders", 0, partition.Append{Batch: batchOf(t, "during")})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "readyz's notice", func() bool {
		body, status := get(t, b, "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "for seconds")
	})
	if _, status := get(t, b, "/livez"); status != http.StatusOK {
		t.Error("a restart does not help a disk that hangs for seconds")
	}
	eventually(t, "a refusal", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := b.produce(ctx, "orders", 0, batchOf(t, "refused"))
		return errs.CodeOf(err) == errs.KafkaStorageError && !errs.OutcomeUnknown(err)
	})
	sick.hung.Store(nil)
	close(hung)
	if a, err := waiting.Result(t.Context()); err != nil || a.BaseOffset != 1 {
		t.Errorf("what waited got offset %d: %v", a.BaseOffset, err)
	}
	eventually(t, "service", func() bool {
		_, status := get(t, b, "/readyz")
		return status == http.StatusOK
	})
	b.mustProduce(t, "orders", 0, "after")
	select {
	case err := <-b.fatal:
		t.Errorf("the process would have ended: %v", err)
	default:
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newBounded(inner, 1, "test", prometheus.NewRegistry())
	accepted := make(chan net.Conn, 4)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := dial()
	server := <-accepted
	second := dial()
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one connection too many was not closed: %v", err)
	}
	if err := errors.Join(server.Close(), server.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	third := dial()
	(<-accepted).Close()
	for _, c := range []net.Conn{first, second, third} {
		_ = c.Close()
	}
	_ = l.Close()
	<-done
}

func commitOf(name string) group.CommitRequest {
	return group.CommitRequest{Group: name, Offsets: []group.OffsetCommit{{Topic: "orders", Offset: 1, LeaderEpoch: -1}}}
}
