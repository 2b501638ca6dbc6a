package log

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// An inspection beside an appender that writes, rolls, and gives up segments
// reports no damage: what is under way is not damage.
func TestInspectBesideTheAppender(t *testing.T) {
	cfg := testConfig(t.TempDir())
	l := mustOpen(t, cfg)
	l.SetRetention(Retention{Age: -1, Bytes: 3 * MinSegmentBytes})
	var done atomic.Bool
	finished := make(chan error, 1)
	a := &appender{t: t, next: 1, term: 1}
	must(t, l.Write([]Entry{a.accepted(1, 10, 1)}, 0))
	go func() {
		var err error
		for k := 0; !done.Load() && err == nil; k++ {
			if l.NeedsRoll(9000) {
				if err = l.Roll(nil); err == nil {
					_, err = l.Retain(l.Durable())
				}
			}
			if err == nil {
				err = l.Write([]Entry{a.accepted(1, 6000, 1), a.accepted(1, 10, 1)}, 0)
			}
			if err == nil && k%3 == 0 {
				err = l.Sync()
			}
		}
		finished <- err
	}()
	for l.LastIndex() < 500 && len(finished) == 0 {
		r, err := Inspect(fsx.OS(), cfg.Dir, nil)
		must(t, err)
		if len(r.Damage) > 0 {
			t.Errorf("%v", r.Damage)
			break
		}
	}
	done.Store(true)
	must(t, <-finished)
	must(t, l.Close())
}

func TestInspectShowsEveryFrameAndStopsWhenTold(t *testing.T) {
	w := filled(t, 2)
	next := w.first
	r, err := Inspect(w.fs, worldDir, func(f FrameInfo) error {
		if err := sameEntry(f.Entry, w.entries[next-w.first]); err != nil {
			return err
		}
		next++
		return nil
	})
	must(t, err)
	if next != w.last()+1 || r.LastIndex != w.last() || r.EndOffset != w.end() || len(r.Segments) != 3 || r.Acked != w.last() {
		t.Fatalf("saw entries up to %d; %+v", next-1, r)
	}
	stop := errors.New("stop")
	if _, err := Inspect(w.fs, worldDir, func(FrameInfo) error { return stop }); !errors.Is(err, stop) {
		t.Fatal(err)
	}
}

// A flipped bit anywhere in the padding behind the last frame of a sealed segment is one damage, at its place, and
// nothing that is whole is called damaged because of it.
func TestInspectNamesAFlipInPaddingOnce(t *testing.T) {
	w := filled(t, 2)
	r, err := Inspect(w.fs, worldDir, nil)
	must(t, err)
	begin, end := r.Segments[0].Bytes, alignBlock(r.Segments[0].Bytes)
	if begin == end {
		t.Fatal("the segment has no padding")
	}
	name := w.names(t, logSuffix)[0]
	for at := begin; at < end; at += 1 + (at-begin)/16 {
		v := *w
		v.fs = w.fs.Clone()
		must(t, v.fs.Corrupt(name, flip(at, uint(at%8))))
		got, err := Inspect(v.fs, worldDir, nil)
		must(t, err)
		if len(got.Damage) != 1 || !got.Damage[0].Padding || got.Damage[0].Pos != at || got.Records != r.Records {
			t.Fatalf("byte %d: %d of %d records, damage %v", at, got.Records, r.Records, got.Damage)
		}
	}
}

func TestInspectNamesTheDamage(t *testing.T) {
	for _, c := range []struct {
		name, suffix string
		file         int
		change       func([]byte) []byte
		want         string
		derived      bool
	}{
		{"a frame", logSuffix, 1, flip(blockBytes+100, 0), "checksum", false},
		{"an index entry", indexSuffix, 0, func(b []byte) []byte {
			payload := append([]byte(nil), b[envelopeBytes:]...)
			payload[indexHeadBytes]++ // and the checksum is right
			return seal(indexMagic, owner{testTopic, 0}, payload)
		}, "index entry 0", true},
		{"a start sidecar", startSuffix, 1, flip(30, 0), "checksum", true},
		{"the acknowledged tail", logSuffix, 2, func(b []byte) []byte { return b[:blockBytes] }, "acknowledged", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := filled(t, 2)
			must(t, w.fs.Corrupt(w.names(t, c.suffix)[c.file], c.change))
			r, err := Inspect(w.fs, worldDir, nil)
			must(t, err)
			for _, d := range r.Damage {
				if strings.Contains(d.String(), c.want) && d.Derived == c.derived {
					return
				}
			}
			t.Fatalf("%v", r.Damage)
		})
	}
}
