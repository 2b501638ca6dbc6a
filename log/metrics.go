package log

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what the logs of one broker count together. A nil *Metrics counts nothing.
type Metrics struct {
	syncs      prometheus.Histogram
	writes     prometheus.Histogram
	bytes      prometheus.Counter
	entries    prometheus.Counter
	readBytes  prometheus.Counter
	repaired   prometheus.Counter
	cut        prometheus.Counter
	corruption prometheus.Counter
	rebuilt    prometheus.Counter
	poison     prometheus.Counter
	retained   prometheus.Counter
	recycle    prometheus.Counter
	rolls      prometheus.Counter
}

// NewMetrics registers the metrics of package log; nil means none.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	if reg == nil {
		return nil
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_log_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidemark_log_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.00005, 2, 20),
		})
		reg.MustRegister(h)
		return h
	}
	return &Metrics{
		syncs:      histogram("fsync_duration_seconds", "Time that one fsync of a segment took."),
		writes:     histogram("write_duration_seconds", "Time that one write to a segment took, without fsync."),
		bytes:      counter("written_bytes_total", "Bytes written to segments, padding included."),
		entries:    counter("written_entries_total", "Raft entries written."),
		readBytes:  counter("cold_read_bytes_total", "Bytes read from segments on disk; reads from the tail touch no disk."),
		repaired:   counter("repaired_tails_total", "Torn tails that were cut when a log was opened."),
		cut:        counter("repaired_cut_bytes_total", "Bytes of torn tails that were cut and kept aside."),
		corruption: counter("corruptions_total", "Logs that were quarantined because acknowledged bytes are damaged."),
		rebuilt:    counter("indexes_rebuilt_total", "Segment indexes that were rebuilt because they were missing or wrong."),
		poison:     counter("poisoned_total", "Logs that were given up after a failed write, sync or close."),
		retained:   counter("retired_segments_total", "Segments given up by retention."),
		recycle:    counter("recycled_segments_total", "Segments that reuse the file of a retired one."),
		rolls:      counter("rolled_segments_total", "Segments sealed."),
	}
}

func (m *Metrics) synced(d time.Duration) {
	if m != nil {
		m.syncs.Observe(d.Seconds())
	}
}

func (m *Metrics) wrote(entries, bytes int, d time.Duration) {
	if m != nil {
		m.writes.Observe(d.Seconds())
		m.entries.Add(float64(entries))
		m.bytes.Add(float64(bytes))
	}
}

func (m *Metrics) readCold(n int) {
	if m != nil {
		m.readBytes.Add(float64(n))
	}
}

func (m *Metrics) repairedTail(bytes int64) {
	if m != nil {
		m.repaired.Inc()
		m.cut.Add(float64(bytes))
	}
}

func (m *Metrics) corrupted() {
	if m != nil {
		m.corruption.Inc()
	}
}

func (m *Metrics) indexRebuilt() {
	if m != nil {
		m.rebuilt.Inc()
	}
}

func (m *Metrics) poisoned() {
	if m != nil {
		m.poison.Inc()
	}
}

func (m *Metrics) retired() {
	if m != nil {
		m.retained.Inc()
	}
}

func (m *Metrics) recycled() {
	if m != nil {
		m.recycle.Inc()
	}
}

func (m *Metrics) rolled() {
	if m != nil {
		m.rolls.Inc()
	}
}
