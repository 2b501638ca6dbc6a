package broker

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// bounded is a listener that takes on so many connections at a time. One too
// many is closed at once, which its client sees, instead of waiting unseen.
type bounded struct {
	net.Listener
	slots   chan struct{}
	open    prometheus.Gauge
	results *prometheus.CounterVec
}

func newBounded(l net.Listener, limit int, protocol string, reg prometheus.Registerer) *bounded {
	labels := prometheus.Labels{"protocol": protocol}
	b := &bounded{
		Listener: l, slots: make(chan struct{}, limit),
		open:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "tidemark_connections", Help: "Connections that are open.", ConstLabels: labels}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tidemark_connections_total", Help: "Connections by what became of them.", ConstLabels: labels}, []string{"result"}),
	}
	reg.MustRegister(b.open, b.results)
	return b
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.slots <- struct{}{}:
			b.open.Inc()
			b.results.WithLabelValues("accepted").Inc()
			return &boundedConn{Conn: c, leave: func() { b.open.Dec(); <-b.slots }}, nil
		default:
			b.results.WithLabelValues("refused").Inc()
			_ = c.Close() // nobody is told more than that
		}
	}
}

type boundedConn struct {
	net.Conn
	leave func()
	once  sync.Once
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}
