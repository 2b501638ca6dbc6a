package raftgroup

import (
	"sync"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are shared by all groups of a broker: none of them has a label per
// group, so that they stay bounded.
type Metrics struct {
	leaderships *prometheus.CounterVec
	elections   *prometheus.CounterVec
	failures    prometheus.Counter
	propose     prometheus.Histogram
	apply       prometheus.Histogram
	snapshot    prometheus.Histogram
	cut         prometheus.Counter
}

// NewMetrics registers the metrics; with a nil Registerer they count unseen.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		leaderships: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_raft_leadership_changes_total",
			Help: "Leaderships of groups that this broker took up or gave up.",
		}, []string{"change"}),
		elections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_raft_elections_total",
			Help: "Elections in which this broker was a candidate, by result.",
		}, []string{"result"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_raft_group_failures_total",
			Help: "Groups that stopped because of a disk error or damage.",
		}),
		propose: histogram("tidemark_raft_propose_duration_seconds",
			"Time from proposing a command to a state group until its result."),
		apply: histogram("tidemark_raft_apply_duration_seconds",
			"Time to apply one committed command to a state machine."),
		snapshot: histogram("tidemark_snapshot_duration_seconds",
			"Time to write one snapshot of a state group durably."),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_raft_torn_tail_bytes_total",
			Help: "Bytes of torn, never acknowledged log tails that were cut at start.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.leaderships, m.elections, m.failures, m.propose, m.apply, m.snapshot, m.cut)
	}
	return m
}

func histogram(name, help string) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: help,
		Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18), // 50 µs to 6.5 s
	})
}

func (m *Metrics) leadership(was, now uint64) {
	if was != 0 {
		m.leaderships.WithLabelValues("lost").Inc()
	}
	if now != 0 {
		m.leaderships.WithLabelValues("gained").Inc()
	}
}

// observer counts elections. It runs inside Raft as a filter that lets nothing pass,
// so that there is no channel that could fill up.
func (m *Metrics) observer() raft.FilterFn {
	last := raft.Follower // one goroutine of Raft changes the state at a time
	var mu sync.Mutex
	return func(o *raft.Observation) bool {
		state, ok := o.Data.(raft.RaftState)
		if !ok {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case last == raft.Candidate && state == raft.Leader:
			m.elections.WithLabelValues("won").Inc()
		case last == raft.Candidate && state == raft.Follower:
			m.elections.WithLabelValues("lost").Inc()
		}
		last = state
		return false
	}
}
