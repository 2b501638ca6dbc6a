package broker

import (
	"context"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/broker/group"
	"github.com/tidemarkhq/tidemark/broker/replicas"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// groupTopics shows the metadata to the coordinator of consumer groups.
type groupTopics struct{ c *controller.Controller }

func (g groupTopics) Topics() []group.Topic {
	all := g.c.Topics()
	list := make([]group.Topic, len(all))
	for i, t := range all {
		list[i] = groupTopic(t)
	}
	return list
}

func (g groupTopics) Topic(name string) (group.Topic, bool) {
	t, ok := g.c.Topic(name)
	return groupTopic(t), ok
}

func groupTopic(t controller.Topic) group.Topic {
	return group.Topic{Name: t.Name, ID: t.ID, Partitions: int32(len(t.Partitions)), Internal: t.Internal}
}

// groupPartitions tells the coordinator how far partitions are, for lag.
type groupPartitions struct{ m *replicas.Manager }

func (g groupPartitions) State(_ context.Context, topic string, partition int32, from record.Offset) (group.PartitionState, error) {
	r, err := g.m.Find(topic, partition)
	if err != nil {
		return group.PartitionState{}, err
	}
	v := r.View()
	s := group.PartitionState{LogStart: v.LogStart, HighWatermark: v.HighWatermark, UnreadTimestamp: -1}
	from = max(from, v.LogStart)
	if from >= v.HighWatermark {
		return s, nil
	}
	batches, _, err := r.Read(from, 1)
	if err != nil || len(batches) == 0 {
		return s, nil // the watermarks are right; the age is not known
	}
	s.UnreadTimestamp = timestampAt(batches[0], from)
	return s, nil
}

// timestampAt is the timestamp of the record at offset o, or of the first after it in the batch.
func timestampAt(b record.Raw, o record.Offset) int64 {
	switch {
	case b.TimestampType() == record.LogAppendTime:
		return b.MaxTimestamp()
	case b.BaseOffset() >= o:
		return b.FirstTimestamp()
	}
	for r, err := range b.Records(0) {
		if err != nil {
			return b.MaxTimestamp()
		}
		if r.Offset >= o {
			return r.Timestamp
		}
	}
	return b.MaxTimestamp()
}
