package log

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidwall/wal"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// benchSegment is Kafka's default for tests of this size.
const benchSegment = 64 << 20

func benchConfig(dir string) Config {
	return Config{Dir: dir, Topic: testTopic, SegmentBytes: benchSegment, Budget: NewBudget(64 << 20), Files: NewFiles(0, 0)}
}

type benchShape struct{ size, batch int }

func (s benchShape) String() string { return fmt.Sprintf("size=%dKiB/batch=%d", s.size>>10, s.batch) }

func benchShapes() []benchShape {
	return []benchShape{{16 << 10, 1}, {16 << 10, 16}, {64 << 10, 1}, {64 << 10, 8}}
}

// benchEntries are count entries with bodies of size bytes.
func benchEntries(count, size int) []Entry {
	entries := make([]Entry, count)
	batch := batchOf(1, 1, size-testMeta-90, 1_000_000)
	for k := range entries {
		body := append(make([]byte, testMeta), batch...)
		entries[k] = Entry{Term: 1, Verdict: Accepted, Body: body, MetaBytes: testMeta, AppendedAt: 1_000_000}
	}
	return entries
}

func (l *Log) number(entries []Entry) {
	next, end := l.LastIndex()+1, l.EndOffset()
	for k := range entries {
		entries[k].Index, entries[k].BaseOffset = next+Index(k), end+record.Offset(k)
	}
}

// BenchmarkAppend is the log against a plain file that gets the same writes and fsyncs, and
// against tidwall/wal with the same entries. Retention keeps all three at a few segments.
func BenchmarkAppend(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, s := range benchShapes() {
			name := fmt.Sprintf("sync=%v/%v", sync, s)
			b.Run("plain/"+name, func(b *testing.B) {
				benchSteps(b, s, func() func() { p := newPlain(b, s); return func() { p.step(b, sync) } }())
			})
			b.Run("log/"+name, func(b *testing.B) { benchLog(b, s, sync, false) })
			b.Run("recycled/"+name, func(b *testing.B) { benchLog(b, s, sync, true) })
			b.Run("tidwall/"+name, func(b *testing.B) { benchSteps(b, s, stepTidwall(b, s, sync)) })
		}
	}
}

func benchLog(b *testing.B, s benchShape, sync, recycled bool) {
	cfg := benchConfig(b.TempDir())
	if recycled {
		cfg.Pool = fullPool(b, cfg)
	}
	benchSteps(b, s, stepLog(b, cfg, s, sync))
}

func benchSteps(b *testing.B, s benchShape, step func()) {
	b.SetBytes(int64(s.batch * s.size))
	b.ReportAllocs()
	for b.Loop() {
		step()
	}
}

// plainFile gets what the log writes: the same bytes per write, rolled and removed alike.
type plainFile struct {
	dir   string
	buf   []byte
	f     fsx.File
	names []string
	pos   int64
}

func newPlain(b *testing.B, s benchShape) *plainFile {
	n := alignBlock(int64(s.batch) * alignFrame(int64(frameHeaderBytes+len(benchEntries(1, s.size)[0].Body))))
	p := &plainFile{dir: b.TempDir(), buf: make([]byte, n)}
	for k := range p.buf {
		p.buf[k] = byte(k * 7)
	}
	return p
}

func (p *plainFile) step(b *testing.B, sync bool) {
	if p.f == nil || p.pos+int64(len(p.buf)) > benchSegment {
		p.roll(b)
	}
	_, err := p.f.WriteAt(p.buf, p.pos)
	must(b, err)
	p.pos += int64(len(p.buf))
	if sync {
		must(b, p.f.Sync())
	}
}

func (p *plainFile) roll(b *testing.B) {
	if p.f != nil {
		must(b, p.f.Sync())
		must(b, p.f.Close())
	}
	p.names = append(p.names, filepath.Join(p.dir, fmt.Sprint(len(p.names))))
	var err error
	p.f, err = fsx.OS().OpenFile(p.names[len(p.names)-1], os.O_CREATE|os.O_RDWR, 0o600)
	must(b, err)
	p.pos = 0
	if k := len(p.names) - 4; k >= 0 {
		must(b, os.Remove(p.names[k]))
	}
}

func stepTidwall(b *testing.B, s benchShape, sync bool) func() {
	w, err := wal.Open(filepath.Join(b.TempDir(), "wal"), &wal.Options{NoSync: !sync, SegmentSize: 20 << 20})
	must(b, err)
	b.Cleanup(func() { must(b, w.Close()) })
	body := benchEntries(1, s.size)[0].Body
	next := uint64(1)
	keep := uint64(2*benchSegment) / uint64(len(body))
	var batch wal.Batch
	return func() {
		batch.Clear()
		for range s.batch {
			batch.Write(next, body)
			next++
		}
		must(b, w.WriteBatch(&batch))
		if next%keep < uint64(s.batch) && next > 2*keep {
			must(b, w.TruncateFront(next-keep))
		}
	}
}

// fullPool is a pool that holds the segments of a log that was filled before.
func fullPool(b *testing.B, cfg Config) *Pool {
	b.Helper()
	pool, err := OpenPool(fsx.OS(), filepath.Join(b.TempDir(), "pool"), 0)
	must(b, err)
	cfg.Dir, cfg.Pool = filepath.Join(b.TempDir(), "earlier"), pool
	l := mustOpen(b, cfg)
	entries := benchEntries(16, 64<<10)
	for range 4 {
		for !l.NeedsRoll(16 * 64 << 10) {
			l.number(entries)
			must(b, l.Write(entries, 0))
		}
		must(b, l.Roll(nil))
	}
	l.SetRetention(Retention{Age: -1, Bytes: 0})
	_, err = l.Retain(l.LastIndex())
	must(b, err)
	must(b, l.Close())
	if pool.Bytes() == 0 {
		b.Fatal("the pool is empty")
	}
	return pool
}

// BenchmarkRead reads a log of 256 MiB: from the tail, and from the files (in the page
// cache) by one and by four readers in turn.
func BenchmarkRead(b *testing.B) {
	for _, s := range []benchShape{{16 << 10, 16}, {64 << 10, 8}} {
		for _, c := range []struct {
			name    string
			readers int
			budget  int64
			back    record.Offset // how far before the end reading begins; 0: at the start
		}{{"tail", 1, 64 << 20, 256}, {"cold", 1, 1, 0}, {"cold-interleaved", 4, 1, 0}} {
			b.Run(fmt.Sprintf("%s/size=%dKiB", c.name, s.size>>10), func(b *testing.B) {
				cfg := benchConfig(b.TempDir())
				cfg.Budget = NewBudget(c.budget)
				l := mustOpen(b, cfg)
				defer l.Close()
				entries := benchEntries(s.batch, s.size)
				for l.Stats().SizeBytes < 256<<20 {
					if l.NeedsRoll(s.batch * s.size) {
						must(b, l.Roll(nil))
					}
					l.number(entries)
					must(b, l.Write(entries, 0))
				}
				benchReaders(b, l, c.readers, c.back)
			})
		}
	}
}

// benchReaders lets n readers, spread over the log, read 1 MiB each in turn.
func benchReaders(b *testing.B, l *Log, n int, back record.Offset) {
	end := l.EndOffset()
	first := record.Offset(0)
	if back > 0 {
		first = end - back
	}
	at := make([]record.Offset, n)
	for k := range at {
		at[k] = first + (end-first)*record.Offset(k)/record.Offset(n)
	}
	total, k := int64(0), 0
	b.ReportAllocs()
	for b.Loop() {
		batches, err := l.Read(at[k], end, 1<<20)
		must(b, err)
		for _, batch := range batches {
			total += int64(len(batch))
			at[k] = batch.EndOffset()
		}
		if at[k] >= end {
			at[k] = first
		}
		k = (k + 1) % n
	}
	b.SetBytes(total / int64(b.N))
}

// BenchmarkAppendRatio takes turns: each round does the same write, and the
// same fsync, to a plain file, to the log, to a log with recycled segments and to tidwall/wal. So
// whatever else the machine does hits all of them alike; it reports the
// throughput of each as a part of the plain file's.
func BenchmarkAppendRatio(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, s := range benchShapes() {
			b.Run(fmt.Sprintf("sync=%v/%v", sync, s), func(b *testing.B) { benchRatio(b, s, sync) })
		}
	}
}

func benchRatio(b *testing.B, s benchShape, sync bool) {
	fresh, recycled := benchConfig(b.TempDir()), benchConfig(b.TempDir())
	recycled.Pool = fullPool(b, recycled)
	plain := newPlain(b, s)
	contenders := []struct {
		name string
		step func()
		took time.Duration
	}{
		{name: "plain", step: func() { plain.step(b, sync) }},
		{name: "log", step: stepLog(b, fresh, s, sync)},
		{name: "recycled", step: stepLog(b, recycled, s, sync)},
		{name: "tidwall", step: stepTidwall(b, s, sync)},
	}
	b.SetBytes(int64(s.size * s.batch))
	for n := 0; b.Loop(); n++ {
		for k := range contenders {
			c := &contenders[(n+k)%len(contenders)]
			begin := time.Now()
			c.step()
			c.took += time.Since(begin)
		}
	}
	mb := float64(s.size*s.batch) * float64(b.N) / (1 << 20)
	b.ReportMetric(mb/contenders[0].took.Seconds(), "plain-MiB/s")
	for _, c := range contenders[1:] {
		b.ReportMetric(contenders[0].took.Seconds()/c.took.Seconds(), c.name+"/plain")
	}
}

func stepLog(b *testing.B, cfg Config, s benchShape, sync bool) func() {
	l := mustOpen(b, cfg)
	b.Cleanup(func() { must(b, l.Close()) })
	l.SetRetention(Retention{Age: -1, Bytes: 2 * benchSegment})
	entries := benchEntries(s.batch, s.size)
	return func() {
		if l.NeedsRoll(s.batch * s.size) {
			must(b, l.Roll(nil))
			_, err := l.Retain(l.LastIndex())
			must(b, err)
		}
		l.number(entries)
		must(b, l.Write(entries, l.Durable()))
		if sync {
			must(b, l.Sync())
		}
	}
}
