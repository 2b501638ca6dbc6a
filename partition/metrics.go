package partition

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Metrics counts for all replicas of a broker together. A nil Metrics counts nothing.
type Metrics struct {
	commit      prometheus.Histogram
	duplicates  prometheus.Counter
	refused     *prometheus.CounterVec
	checkpoints prometheus.Counter
	failures    prometheus.Counter
	resets      prometheus.Counter
	offers      prometheus.Counter
}

// NewMetrics registers the metrics; a nil registerer gives nil: no metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	if reg == nil {
		return nil
	}
	m := &Metrics{
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tidemark_append_commit_duration_seconds",
			Help:    "Time from the proposal of an append to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18),
		}),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_partition_duplicates_suppressed_total",
			Help: "Batches of idempotent producers that were appended before, and were answered with their first offset.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_partition_appends_refused_total",
			Help: "Appends that were refused, by error code.",
		}, []string{"reason"}),
		checkpoints: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_partition_checkpoints_total",
			Help: "Checkpoints that were written.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_partition_failed_replicas_total",
			Help: "Replicas that ended because of a disk error, damage, or disagreement with their leader.",
		}),
		resets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_partition_resets_total",
			Help: "Replicas that began anew where their leader's log begins, because it no longer has the entries that they lacked.",
		}),
		offers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_partition_reset_offers_total",
			Help: "Times that a leader here offered a follower to begin anew where the log begins.",
		}),
	}
	reg.MustRegister(m.commit, m.duplicates, m.refused, m.checkpoints, m.failures, m.resets, m.offers)
	return m
}

func (m *Metrics) committed(d time.Duration) {
	if m != nil {
		m.commit.Observe(d.Seconds())
	}
}

func (m *Metrics) suppress() {
	if m != nil {
		m.duplicates.Inc()
	}
}

// refuse counts by the code's name; codes are few.
func (m *Metrics) refuse(code errs.Code) {
	if m != nil {
		m.refused.WithLabelValues(strings.ToLower(code.Name())).Inc()
	}
}

func (m *Metrics) checkpoint() {
	if m != nil {
		m.checkpoints.Inc()
	}
}

func (m *Metrics) fail() {
	if m != nil {
		m.failures.Inc()
	}
}

func (m *Metrics) reset() {
	if m != nil {
		m.resets.Inc()
	}
}

func (m *Metrics) offer() {
	if m != nil {
		m.offers.Inc()
	}
}
