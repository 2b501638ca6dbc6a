package broker

import (
	"math"
	"runtime/debug"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// collector shows what is known of the process when it is asked.
type collector struct {
	b *Broker

	build, node, uptime, free, total, low, memory, starts, pool *prometheus.Desc
}

func registerMetrics(b *Broker) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	b.deps.Registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&collector{
			b:      b,
			build:  desc("tidemark_build_info", "Which build runs; always 1.", "version", "revision", "goversion"),
			node:   desc("tidemark_node_info", "Which broker this is; always 1.", "node_id", "rack", "cluster"),
			uptime: desc("tidemark_uptime_seconds", "Time since the process started."),
			free:   desc("tidemark_disk_free_bytes", "Free bytes of the file system that holds the data.", "dir"),
			total:  desc("tidemark_disk_total_bytes", "Size of the file system that holds the data.", "dir"),
			low:    desc("tidemark_disk_low", "1 while appends are refused because the disk is nearly full."),
			memory: desc("tidemark_memory_limit_bytes", "Soft memory limit of the process (GOMEMLIMIT); +Inf: none."),
			pool:   desc("tidemark_segment_pool_bytes", "Files of given-up segments that are kept to be written again."),
			starts: desc("tidemark_broker_starts_since_graceful_stop", "Starts since the last graceful stop, this one included."),
		})
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.node, c.uptime, c.free, c.total, c.low, c.memory, c.starts, c.pool} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	b := c.b
	gauge(c.build, 1, b.deps.Version.Version, b.deps.Version.Revision, b.deps.Version.GoVersion)
	gauge(c.uptime, clock.Since(b.began).Seconds())
	limit := float64(debug.SetMemoryLimit(-1))
	if limit == math.MaxInt64 {
		limit = math.Inf(1)
	}
	gauge(c.memory, limit)
	if free, total, err := b.deps.FS.Space(b.cfg.Node.DataDir); err == nil {
		gauge(c.free, float64(free), b.cfg.Node.DataDir)
		gauge(c.total, float64(total), b.cfg.Node.DataDir)
	}
	if b.phase.Load() == phaseStarting {
		return // who we are is not known yet
	}
	low := 0.0
	if b.space.Low() {
		low = 1
	}
	gauge(c.low, low)
	gauge(c.node, 1, strconv.Itoa(int(b.ID())), b.cfg.Node.Rack, b.ClusterID())
	gauge(c.starts, float64(b.starts))
	if b.pool != nil {
		gauge(c.pool, float64(b.pool.Bytes()))
	}
}
