package group

import (
	"context"
	"slices"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// commitOffsets replicates a commit, without the partitions that are wrong in themselves.
func (s *shard) commitOffsets(ctx context.Context, r CommitRequest) ([]PartitionError, error) {
	if err := checkGroup(r.Group); err != nil {
		return nil, err
	}
	if len(r.Offsets) > maxOwned {
		return nil, errs.Errorf(errs.InvalidRequest, "%d offsets are more than the %d allowed", len(r.Offsets), maxOwned)
	}
	k := &commit{
		member: r.MemberID, instance: r.InstanceID, epoch: r.MemberEpoch, classic: r.Classic,
		maxGroups: uint64(s.cfg.MaxGroups), maxEntries: uint64(s.cfg.MaxGroupPartitions),
	}
	var bad []PartitionError
	for _, o := range r.Offsets {
		e, err := s.commitEntry(o)
		if err != nil {
			bad = append(bad, PartitionError{o.Topic, o.Partition, err})
			continue
		}
		k.entries = append(k.entries, e)
	}
	if err := s.preCommit(r.Group, k); err != nil {
		return nil, err
	}
	if len(k.entries) == 0 {
		return bad, nil
	}
	o, err := s.propose(ctx, r.Group, k)
	if err != nil {
		return nil, err
	}
	for i, code := range o.partitions {
		if code != errs.None {
			e := k.entries[i]
			bad = append(bad, PartitionError{e.topic, e.partition, errs.New(code, commitText(code))})
		}
	}
	return bad, nil
}

func commitText(code errs.Code) string {
	switch code {
	case errs.StaleMemberEpoch:
		return "the member does not hold the partition under this epoch; heartbeat to learn what it holds"
	case errs.LimitExceeded:
		return "the group has offsets of as many partitions as it may have"
	}
	return ""
}

func (s *shard) commitEntry(o OffsetCommit) (commitEntry, error) {
	t, ok := s.metadata.Topic(o.Topic)
	switch {
	case !ok || o.Partition < 0 || o.Partition >= t.Partitions:
		return commitEntry{}, errs.Errorf(errs.UnknownTopicOrPartition, "topic %.64q has no partition %d", o.Topic, o.Partition)
	case o.TopicID != [16]byte{} && o.TopicID != t.ID:
		return commitEntry{}, errs.Errorf(errs.TokenTruncated, "topic %.64q was deleted and made again: offset %d is of the one that is gone", o.Topic, o.Offset)
	case len(o.Metadata) > s.cfg.MaxMetadataBytes:
		return commitEntry{}, errs.Errorf(errs.OffsetMetadataTooLarge, "%d bytes of metadata are more than the %d allowed", len(o.Metadata), s.cfg.MaxMetadataBytes)
	case o.Offset < 0 || o.LeaderEpoch < -1:
		return commitEntry{}, errs.Errorf(errs.InvalidRequest, "offset %d and leader epoch %d: 0 and -1 are the least", o.Offset, o.LeaderEpoch)
	}
	return commitEntry{o.Topic, t.ID, o.Partition, int64(o.Offset), int32(o.LeaderEpoch), o.Metadata}, nil
}

// preCommit refuses what the state machine would refuse as a whole, and takes the
// commit as a sign of life.
func (s *shard) preCommit(group string, k *commit) error {
	if err := s.lead(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if o := k.fence(s.machine.groups[group], group); o.code != errs.None {
		return o.err()
	}
	if g, m, lm := s.find(group, k.member); m != nil && g.protocol == ProtocolClassic {
		s.renew(m, lm)
	}
	return nil
}

// fetchOffsets reads committed offsets, not older than the call.
func (s *shard) fetchOffsets(ctx context.Context, group string, partitions []TopicPartition) ([]CommittedOffset, error) {
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	if len(partitions) > maxOwned {
		return nil, errs.Errorf(errs.InvalidRequest, "%d partitions are more than the %d allowed", len(partitions), maxOwned)
	}
	if err := s.read(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	g := s.machine.groups[group]
	if g == nil {
		g = newGroup()
	}
	if len(partitions) == 0 {
		partitions = g.committedPartitions()
	}
	all := make([]CommittedOffset, len(partitions))
	for i, tp := range partitions {
		all[i] = s.committed(g, tp)
	}
	return all, nil
}

// read waits until this broker knows everything that was acknowledged, then locks the shard.
func (s *shard) read(ctx context.Context) error {
	if _, ok := s.sg.Leading(); !ok {
		return errNotCoordinator
	}
	if err := s.sg.Read(ctx); err != nil {
		if errs.CodeOf(err) == errs.NotLeaderOrFollower {
			return errNotCoordinator
		}
		return errs.Errorf(errs.CoordinatorNotAvailable, "read the groups: %w", err)
	}
	return s.lead()
}

func (g *groupState) committedPartitions() []TopicPartition {
	var all []TopicPartition
	for topic, t := range g.offsets {
		for n := range t.partitions {
			all = append(all, TopicPartition{topic, n})
		}
	}
	slices.SortFunc(all, TopicPartition.compare)
	return all
}

// committed is the offset of a partition; none where the topic was made anew since.
func (s *shard) committed(g *groupState, tp TopicPartition) CommittedOffset {
	none := CommittedOffset{OffsetCommit{Topic: tp.Topic, Partition: tp.Partition, Offset: -1, LeaderEpoch: -1}, -1}
	t := g.offsets[tp.Topic]
	if t == nil {
		return none
	}
	o, ok := t.partitions[tp.Partition]
	if known, exists := s.metadata.Topic(tp.Topic); !ok || exists && known.ID != t.id {
		return none
	}
	return CommittedOffset{OffsetCommit{Topic: tp.Topic, Partition: tp.Partition, Offset: record.Offset(o.offset), LeaderEpoch: record.Epoch(o.leaderEpoch), Metadata: o.metadata}, o.at}
}

func (s *shard) deleteOffsets(ctx context.Context, group string, partitions []TopicPartition) ([]PartitionError, error) {
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	if len(partitions) > maxOwned {
		return nil, errs.Errorf(errs.InvalidRequest, "%d partitions are more than the %d allowed", len(partitions), maxOwned)
	}
	o, err := s.propose(ctx, group, &deleteOffsets{partitions: partitions})
	if err != nil {
		return nil, err
	}
	var bad []PartitionError
	for i, code := range o.partitions {
		if code != errs.None {
			bad = append(bad, PartitionError{partitions[i].Topic, partitions[i].Partition, errs.New(code, "members of the group read this topic; stop them first")})
		}
	}
	return bad, nil
}

func (s *shard) deleteGroup(ctx context.Context, group string) error {
	if err := checkGroup(group); err != nil {
		return err
	}
	_, err := s.propose(ctx, group, &deleteGroup{})
	return err
}
