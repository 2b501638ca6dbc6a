package group

import "slices"

// assignee is a member as the assignor sees it.
type assignee struct {
	topics []int // indexes of the topics it subscribes to, sorted
	prev   []TopicPartition
}

type topicCount struct {
	name       string
	partitions int32
}

// assignor gives partitions to members. The result is a function of its input:
//   - everything whose topic somebody subscribes to is given to one who does;
//   - no chain of moves could bring two members' loads, two or more apart, closer together
//     (so with equal subscriptions loads differ by one at most);
//   - a member keeps what it had unless its load must shrink.
//
// It is a local search for a semi-matching: keep, then give the rest to the least loaded,
// then move partitions along augmenting paths until there are none.
type assignor struct {
	members     []assignee
	topics      []topicCount
	subscribers [][]int        // topic -> members, sorted
	owned       [][][]int32    // member -> topic -> partitions
	subscribed  []map[int]bool // member -> topics
	load        []int
}

// assign returns what each member shall have, sorted. topics are sorted by name.
func assign(members []assignee, topics []topicCount) [][]TopicPartition {
	a := &assignor{members: members, topics: topics, load: make([]int, len(members))}
	a.index()
	rest := a.keep()
	a.spread(rest)
	a.balance()
	return a.result()
}

func (a *assignor) index() {
	a.subscribers = make([][]int, len(a.topics))
	a.owned = make([][][]int32, len(a.members))
	a.subscribed = make([]map[int]bool, len(a.members))
	for m := range a.members {
		a.owned[m] = make([][]int32, len(a.topics))
		a.subscribed[m] = make(map[int]bool, len(a.members[m].topics))
		for _, t := range a.members[m].topics {
			a.subscribers[t] = append(a.subscribers[t], m)
			a.subscribed[m][t] = true
		}
	}
}

// keep leaves partitions where they were and returns those without an owner, by topic.
func (a *assignor) keep() [][]int32 {
	byName := make(map[string]int, len(a.topics))
	taken := make([][]bool, len(a.topics))
	for t, topic := range a.topics {
		byName[topic.name] = t
		taken[t] = make([]bool, topic.partitions)
	}
	for m := range a.members {
		for _, tp := range a.members[m].prev {
			t, ok := byName[tp.Topic]
			if !ok || !a.subscribed[m][t] || tp.Partition < 0 || tp.Partition >= a.topics[t].partitions || taken[t][tp.Partition] {
				continue
			}
			taken[t][tp.Partition] = true
			a.give(m, t, tp.Partition)
		}
	}
	rest := make([][]int32, len(a.topics))
	for t := range taken {
		for p, is := range taken[t] {
			if !is {
				rest[t] = append(rest[t], int32(p))
			}
		}
	}
	return rest
}

func (a *assignor) give(m, t int, p int32) {
	a.owned[m][t] = append(a.owned[m][t], p)
	a.load[m]++
}

// spread gives the topics with the fewest subscribers first: they have the least choice.
func (a *assignor) spread(rest [][]int32) {
	order := make([]int, 0, len(a.topics))
	for t := range a.topics {
		if len(a.subscribers[t]) > 0 && len(rest[t]) > 0 {
			order = append(order, t)
		}
	}
	slices.SortStableFunc(order, func(x, y int) int { return len(a.subscribers[x]) - len(a.subscribers[y]) })
	for _, t := range order {
		for _, p := range rest[t] {
			a.give(a.leastLoaded(t), t, p)
		}
	}
}

// leastLoaded breaks ties by the load in this topic, then by the member's place.
func (a *assignor) leastLoaded(t int) int {
	best := a.subscribers[t][0]
	for _, m := range a.subscribers[t][1:] {
		if a.load[m] < a.load[best] || a.load[m] == a.load[best] && len(a.owned[m][t]) < len(a.owned[best][t]) {
			best = m
		}
	}
	return best
}

// balance moves partitions along paths from a loaded member to one that has at
// least two fewer. Each path lowers the sum of the squares of the loads, so it ends.
func (a *assignor) balance() {
	order := make([]int, len(a.members))
	for m := range order {
		order[m] = m
	}
	for moved := true; moved; {
		moved = false
		slices.SortFunc(order, func(x, y int) int {
			if a.load[x] != a.load[y] {
				return a.load[y] - a.load[x]
			}
			return x - y
		})
		lowest := a.load[order[len(order)-1]]
		for _, m := range order {
			if a.load[m]-lowest < 2 {
				break
			}
			if path := a.path(m); path != nil {
				a.shift(path)
				moved = true
				break
			}
		}
	}
}

// path finds the shortest way along which one partition after the other can
// change hands, from a member to the least loaded that it reaches.
func (a *assignor) path(from int) []int {
	via := make([]int, len(a.members))
	for m := range via {
		via[m] = -1
	}
	seen := make([]bool, len(a.topics))
	queue := []int{from}
	via[from] = from
	best := from
	for i := 0; i < len(queue); i++ {
		m := queue[i]
		for t, partitions := range a.owned[m] {
			if seen[t] || len(partitions) == 0 {
				continue
			}
			seen[t] = true
			for _, next := range a.subscribers[t] {
				if via[next] < 0 {
					via[next] = m
					queue = append(queue, next)
					if a.load[next] < a.load[best] {
						best = next
					}
				}
			}
		}
	}
	if a.load[from]-a.load[best] < 2 {
		return nil
	}
	var path []int
	for m := best; m != from; m = via[m] {
		path = append(path, m)
	}
	path = append(path, from)
	slices.Reverse(path)
	return path
}

// shift moves one partition over each step of a path, from its end on, so that no
// step takes away what an earlier one brought.
func (a *assignor) shift(path []int) {
	for i := len(path) - 1; i > 0; i-- {
		a.move(path[i-1], path[i])
	}
}

// move takes from the topic of which the giver has most more than the taker.
func (a *assignor) move(from, to int) {
	best, gain := -1, 0
	for _, t := range a.members[to].topics {
		if len(a.owned[from][t]) == 0 {
			continue
		}
		if d := len(a.owned[from][t]) - len(a.owned[to][t]); best < 0 || d > gain {
			best, gain = t, d
		}
	}
	have := a.owned[from][best]
	at := 0
	for i, p := range have {
		if p > have[at] {
			at = i
		}
	}
	p := have[at]
	a.owned[from][best] = slices.Delete(have, at, at+1)
	a.load[from]--
	a.give(to, best, p)
}

func (a *assignor) result() [][]TopicPartition {
	all := make([][]TopicPartition, len(a.members))
	for m := range a.members {
		for t, partitions := range a.owned[m] {
			slices.Sort(partitions)
			for _, p := range partitions {
				all[m] = append(all[m], TopicPartition{a.topics[t].name, p})
			}
		}
	}
	return all
}
