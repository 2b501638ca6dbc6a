package replicas

import (
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
)

// opener opens a replica. It fills in what the replicas of a broker share.
type opener func(partition.Config, partition.Deps) (replica, error)

// maxSyncs bounds the fsyncs that run at once.
const maxSyncs = 16

// shareAmongReplicas makes what all replicas share: memory, descriptors, metrics.
func shareAmongReplicas(cfg Config) opener {
	shared := log.Config{
		Budget:  log.NewBudget(cfg.TailBytes),
		Files:   log.NewFiles(0, 0),
		Syncs:   log.NewSyncLimit(maxSyncs),
		Metrics: log.NewMetrics(cfg.Registerer),
		Space:   cfg.Space, Watchdog: cfg.Watchdog, Pool: cfg.Pool,
	}
	metrics := partition.NewMetrics(cfg.Registerer)
	return func(c partition.Config, d partition.Deps) (replica, error) {
		d.FS, d.Clock, d.Log, d.Metrics, d.GroupMetrics = cfg.FS, cfg.Clock, shared, metrics, cfg.GroupMetrics
		r, err := partition.Open(c, d)
		if err != nil {
			return nil, err // not a nil *Replica in a replica
		}
		return r, nil
	}
}
