package terminal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNumbersForPeople(t *testing.T) {
	for got, want := range map[string]string{
		Count(156738): "156,738", Count(-1234): "-1,234", Count(999): "999", Count(1000000): "1,000,000",
		Bytes(8.5 * 1024 * 1024): "8.5 MiB", Bytes(12): "12 B", Bytes(5e13): "45.5 TiB",
		Counted(1, "record"): "1 record", Counted(0, "record"): "0 records", Counted(2000, "batch"): "2,000 batches",
		Rate(67_800): "67.8k", Rate(12): "12", Rate(2.5e6): "2.5M",
		Duration(8420 * time.Microsecond): "8.4ms", Duration(2310 * time.Millisecond): "2.31s",
		Duration(90 * time.Second): "1m30s", Duration(15 * time.Microsecond): "15µs",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestColorsFollowTheRules(t *testing.T) {
	none := func(string) string { return "" }
	set := func(name, value string) func(string) string {
		return func(n string) string {
			if n == name {
				return value
			}
			return ""
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, c := range []struct {
		mode string
		env  func(string) string
		want bool
	}{
		{"auto", none, false}, {"always", none, true}, {"never", set("CLICOLOR_FORCE", "1"), false},
		{"auto", set("CLICOLOR_FORCE", "1"), true}, {"auto", set("NO_COLOR", "1"), false}, {"auto", set("TERM", "dumb"), false},
	} {
		if got := Colors(c.mode, w, c.env); got != c.want {
			t.Errorf("%s: %v, want %v", c.mode, got, c.want)
		}
	}
}

func TestClosedPipeIsNoticed(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if Closed(w) {
		t.Error("closed while somebody reads")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a write to a closed pipe went well")
	} else if !Closed(w) && !errors.Is(err, os.ErrClosed) {
		t.Log("this system does not tell") // windows
	}
}

type locked struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

var _ io.Writer = (*locked)(nil)

func TestProgressAndClosingLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMeter()
		var out locked
		end := m.Progress(&out, true)
		for range 1000 {
			m.Sent()
			m.Done(100, 5*time.Millisecond, false)
		}
		m.Sent()
		m.Done(100, time.Millisecond, true)
		<-time.After(2 * time.Second)
		synctest.Wait()
		end()
		if lines := strings.Count(out.String(), "\r"); lines < 15 || lines > 25 {
			t.Errorf("%d lines in two seconds, want ten a second", lines)
		}
		if want := "  1,000 rec  97.7 KiB"; !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "err 1") {
			t.Errorf("no %q in %q", want, out.String())
		}
		want := "produced 1,000 records (97.7 KiB) to t in 2.00s: 500 rec/s, 48.8 KiB/s, p50 5.0ms p99 5.0ms, 1 failed"
		if got := m.Snapshot().Produced("t"); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		m.Add(1, 1)
		if got := m.Snapshot().Consumed("t"); !strings.HasPrefix(got, "consumed 1,001 records (97.7 KiB) from t in 2.00s") {
			t.Error(got)
		}
	})
}
