package grpcapi

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemarkhq/tidemark/internal/clock"
	pb "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	streams  *prometheus.GaugeVec
	uncoded  prometheus.Counter
	panics   prometheus.Counter
}

// newMetrics registers with r; with nil the metrics are kept and nobody sees them.
func newMetrics(r prometheus.Registerer) *metrics {
	protocol := prometheus.Labels{"protocol": "grpc"}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_requests_total", ConstLabels: protocol,
			Help: "Requests answered, by what became of them: ok or the name of the error. On streams, each request of a client counts.",
		}, []string{"api", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tidemark_request_duration_seconds", ConstLabels: protocol,
			Help:    "From a request's arrival to its answer. Parked heartbeats count as long as they are parked; fetch streams are not in here.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"api"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tidemark_grpcapi_open_streams", Help: "Streams that are open now.",
		}, []string{"api"}),
		uncoded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_grpcapi_uncoded_errors_total", Help: "Errors without a code, each a bug; the log has them.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidemark_grpcapi_panics_total", Help: "Handlers that panicked, each a bug; the log has them.",
		}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.duration, m.streams, m.uncoded, m.panics)
	}
	return m
}

// answered counts one request; e is nil for a good answer.
func (m *metrics) answered(api string, e *pb.Error, took time.Duration) {
	m.requests.WithLabelValues(api, codeName(e)).Inc()
	m.duration.WithLabelValues(api).Observe(took.Seconds())
}

func codeName(e *pb.Error) string {
	if e == nil {
		return "ok"
	}
	return e.Name
}

func since(m clock.Mono) time.Duration { return clock.Since(m) }
