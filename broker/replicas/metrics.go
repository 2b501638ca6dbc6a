package replicas

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector reads everything when it is asked, so that idle partitions cost nothing.
type collector struct {
	m *Manager

	partitions, leaderless, logSize, segments, tail, queued *prometheus.Desc
}

func register(reg prometheus.Registerer, m *Manager) {
	if reg == nil {
		return
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	reg.MustRegister(&collector{
		m:          m,
		partitions: desc("tidemark_partitions", "Replicas on this broker by state.", "state"),
		leaderless: desc("tidemark_leaderless_partitions", "Partitions on this broker whose replica serves and knows no leader, or does not serve."),
		logSize:    desc("tidemark_log_size_bytes", "Size of the logs on this broker.", "topic"),
		segments:   desc("tidemark_log_segments", "Segments of the logs on this broker.", "topic"),
		tail:       desc("tidemark_log_tail_bytes", "Memory that the logs' tails take."),
		queued:     desc("tidemark_produce_queue_bytes", "Bytes of batches that wait for their answer."),
	})
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.partitions, c.leaderless, c.logSize, c.segments, c.tail, c.queued} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	states := map[string]int{"leader": 0, "follower": 0, "starting": 0, "resetting": 0, "quarantined": 0, "lost": 0, "failed": 0}
	size, segments := map[string]int64{}, map[string]int{}
	var tail int64
	leaderless := 0
	c.m.each(func(h *hosted) {
		r := h.running()
		if r == nil {
			if state := h.is().String(); state != "stopped" {
				states[state]++
				leaderless++
			}
			return
		}
		if r.View().Leader {
			states["leader"]++
		} else {
			states["follower"]++
			leaderless++
		}
		s := r.Stats()
		size[h.name] += s.SizeBytes
		segments[h.name] += s.Segments
		tail += s.TailBytes
	})
	for state, n := range states {
		gauge(c.partitions, float64(n), state)
	}
	for topic, n := range size {
		gauge(c.logSize, float64(n), topic)
		gauge(c.segments, float64(segments[topic]), topic)
	}
	gauge(c.leaderless, float64(leaderless))
	gauge(c.tail, float64(tail))
	gauge(c.queued, float64(c.m.inFlight.bytes()))
}
