package broker

import (
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
)

// BenchmarkStartToFirstAck measures design.md section 11: an empty directory, a start,
// a topic, and the first acknowledged record. Under 300 ms is asked for.
func BenchmarkStartToFirstAck(b *testing.B) {
	var started, topic, ack time.Duration
	for b.Loop() {
		dir := b.TempDir()
		at := clock.Monotonic()
		l, err := tryStart(b, testConfig(dir))
		if err != nil {
			b.Fatal(err)
		}
		started += clock.Since(at)
		l.create(b, "orders", 1, nil)
		topic += clock.Since(at)
		l.mustProduce(b, "orders", 0, "first")
		ack += clock.Since(at)
		l.stop(b)
	}
	b.ReportMetric(float64(started.Milliseconds())/float64(b.N), "ms/start")
	b.ReportMetric(float64(topic.Milliseconds())/float64(b.N), "ms/topic")
	b.ReportMetric(float64(ack.Milliseconds())/float64(b.N), "ms/ack")
}
