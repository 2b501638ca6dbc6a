package broker

const (
	// filesPerReplica are open all the time: active segment, watermark, lock, and a second
	// lock once the replica was reset.
	filesPerReplica = 4
	// otherFiles are for sealed segments, state groups, listeners and the runtime.
	otherFiles = 1024
)

// partitionLimit is what this broker offers to host. A segment that cannot be
// opened for want of descriptors would end the process, so the limit of the
// process bounds the offer, and the refusal comes when a topic is created.
func (b *Broker) partitionLimit() int32 {
	limit := b.cfg.Limits.Partitions
	files, known := fileLimit()
	if !known {
		return limit
	}
	// Where few are allowed, half of them are for replicas.
	fit := max(files-otherFiles-int64(b.cfg.Limits.Connections), files/2) / filesPerReplica
	if fit >= int64(limit) {
		return limit
	}
	fit = max(fit, 1)
	b.logger.Warn("the process may not open enough files for limits.partitions: raise its limit (ulimit -n)",
		"open_files_limit", files, "limits_partitions", limit, "partitions_offered", fit)
	return int32(fit)
}
