package group

import (
	"fmt"
	"testing"
)

func BenchmarkAssign(b *testing.B) {
	for _, size := range []struct {
		partitions int32
		members    int
	}{{1000, 100}, {10_000, 1000}} {
		members := make([]assignee, size.members)
		for i := range members {
			members[i].topics = []int{0}
		}
		topics := []topicCount{{"t", size.partitions}}
		full := assign(members, topics)
		b.Run(fmt.Sprintf("fresh/partitions=%d/members=%d", size.partitions, size.members), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				assign(members, topics)
			}
		})
		b.Run(fmt.Sprintf("one-leaves/partitions=%d/members=%d", size.partitions, size.members), func(b *testing.B) {
			rest := make([]assignee, size.members-1)
			for i := range rest {
				rest[i] = assignee{topics: []int{0}, prev: full[i]}
			}
			b.ReportAllocs()
			for b.Loop() {
				assign(rest, topics)
			}
		})
		b.Run(fmt.Sprintf("one-joins/partitions=%d/members=%d", size.partitions, size.members), func(b *testing.B) {
			more := make([]assignee, size.members+1)
			for i := range more {
				more[i].topics = []int{0}
				if i < len(full) {
					more[i].prev = full[i]
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				assign(more, topics)
			}
		})
	}
}

// BenchmarkHeartbeat is one that changes nothing, in a group of 100 members and 1,000 partitions.
func BenchmarkHeartbeat(b *testing.B) {
	c, sg := benchCoordinator(b)
	r := HeartbeatRequest{Group: "g", MemberID: "m0", Topics: []string{"t"}}
	for range 3 { // until it has given up what the others got
		resp, err := c.Heartbeat(b.Context(), r)
		if err != nil {
			b.Fatal(err)
		}
		r.MemberEpoch, r.Owned = resp.MemberEpoch, resp.Assigned
	}
	written := sg.length()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Heartbeat(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
	if sg.length() != written {
		b.Fatal("it wrote")
	}
}

// BenchmarkRejoin applies a leave and a join in such a group.
func BenchmarkRejoin(b *testing.B) {
	c, _ := benchCoordinator(b)
	for b.Loop() {
		if err := c.Leave(b.Context(), LeaveRequest{Group: "g", MemberID: "m50"}); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Heartbeat(b.Context(), HeartbeatRequest{Group: "g", MemberID: "m50", Topics: []string{"t"}}); err != nil {
			b.Fatal(err)
		}
	}
}

func benchCoordinator(b *testing.B) (*Coordinator, *memoryGroup) {
	topics := &fakeTopics{all: map[string]Topic{}}
	topics.set("t", 1000)
	sg := &memoryGroup{term: 1, leading: true}
	c, err := New(Config{}, 1, Deps{Metadata: topics, Partitions: fakePartitions{}})
	if err != nil {
		b.Fatal(err)
	}
	sg.sm = c.StateMachine(0)
	c.Attach(0, sg)
	for i := range 100 {
		if _, err := c.Heartbeat(b.Context(), HeartbeatRequest{Group: "g", MemberID: fmt.Sprintf("m%d", i), Topics: []string{"t"}}); err != nil {
			b.Fatal(err)
		}
	}
	return c, sg
}
