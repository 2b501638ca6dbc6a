package group

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxGroupSeries bounds the groups that have series of their own in one scrape.
	maxGroupSeries = 1000
	scrapeWithin   = 2 * time.Second
)

// metrics are computed when they are scraped; only rebalances are counted as they happen.
type metrics struct {
	c          *Coordinator
	rebalances *prometheus.CounterVec
	members    *prometheus.Desc
	state      *prometheus.Desc
	lag        *prometheus.Desc
	lagSeconds *prometheus.Desc
}

func newMetrics(c *Coordinator) *metrics {
	partition := []string{"group", "topic", "partition"}
	return &metrics{
		c: c,
		rebalances: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_group_rebalances_total", Help: "Rebalances that began here, by reason.",
		}, []string{"reason"}),
		members:    prometheus.NewDesc("tidemark_group_members", "Members of a group coordinated here.", []string{"group"}, nil),
		state:      prometheus.NewDesc("tidemark_group_state", "1 for the state a group coordinated here is in.", []string{"group", "state"}, nil),
		lag:        prometheus.NewDesc("tidemark_group_lag", "Committed records that a group has not read.", partition, nil),
		lagSeconds: prometheus.NewDesc("tidemark_group_lag_seconds", "Age of the first record that a group has not read; 0 when it has read all.", partition, nil),
	}
}

func (m *metrics) rebalanced(reason string) {
	if reason != "" {
		m.rebalances.WithLabelValues(strings.ReplaceAll(reason, "-", "_")).Inc()
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.rebalances.Describe(ch)
	ch <- m.members
	ch <- m.state
	ch <- m.lag
	ch <- m.lagSeconds
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.rebalances.Collect(ch)
	groups := m.c.local()
	if len(groups) > maxGroupSeries {
		groups = groups[:maxGroupSeries]
	}
	for _, g := range groups {
		ch <- prometheus.MustNewConstMetric(m.members, prometheus.GaugeValue, float64(g.Members), g.Name)
		ch <- prometheus.MustNewConstMetric(m.state, prometheus.GaugeValue, 1, g.Name, g.State)
	}
	if m.c.cfg.LagMetrics {
		m.collectLag(ch, groups)
	}
}

// collectLag asks a bounded number of partitions, for a bounded time.
func (m *metrics) collectLag(ch chan<- prometheus.Metric, groups []Listing) {
	ctx, cancel := context.WithTimeout(m.c.group.Context(), scrapeWithin)
	defer cancel()
	left := m.c.cfg.LagMetricsPartitions
	for _, g := range groups {
		d, err := m.c.shard(g.Name).describe(ctx, g.Name)
		if err != nil {
			continue
		}
		for i := range d.Partitions {
			if left--; left < 0 || ctx.Err() != nil {
				return
			}
			m.collectPartition(ctx, ch, g.Name, &d.Partitions[i])
		}
	}
}

func (m *metrics) collectPartition(ctx context.Context, ch chan<- prometheus.Metric, group string, p *PartitionDescription) {
	m.c.measure(ctx, p)
	if p.Lag < 0 {
		return
	}
	labels := []string{group, p.Topic, strconv.Itoa(int(p.Partition))}
	ch <- prometheus.MustNewConstMetric(m.lag, prometheus.GaugeValue, float64(p.Lag), labels...)
	if p.LagTime >= 0 {
		ch <- prometheus.MustNewConstMetric(m.lagSeconds, prometheus.GaugeValue, p.LagTime.Seconds(), labels...)
	}
}

// local lists the groups led here, as they are in memory, by name.
func (c *Coordinator) local() []Listing {
	var all []Listing
	for _, s := range c.shards {
		if s.lead() != nil {
			continue
		}
		all = append(all, s.listLocked()...)
		s.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b Listing) int { return strings.Compare(a.Name, b.Name) })
	return all
}
