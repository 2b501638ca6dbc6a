package group

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"sync"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

const (
	maxPatternBytes = 1024
	// maxPatternInstructions bounds what matching one name costs.
	maxPatternInstructions = 4096
	maxPatternsCached      = 1024
	// maxPatternsPerGroup bounds the lists of matching topics that a group replicates.
	maxPatternsPerGroup = 64
)

// patterns compiles subscriptions by regex. RE2 matches in linear time; length and
// size of the program are bounded besides.
type patterns struct {
	mu    sync.Mutex
	cache map[string]*regexp.Regexp // guarded by mu
}

func (p *patterns) compile(pattern string) (*regexp.Regexp, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if re := p.cache[pattern]; re != nil {
		return re, nil
	}
	re, err := compilePattern(pattern)
	if err != nil {
		return nil, errs.Errorf(errs.InvalidRequest, "topic pattern: %w", err)
	}
	if p.cache == nil || len(p.cache) >= maxPatternsCached {
		p.cache = map[string]*regexp.Regexp{}
	}
	p.cache[pattern] = re
	return re, nil
}

func compilePattern(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > maxPatternBytes {
		return nil, errs.Errorf(errs.InvalidRequest, "%d bytes are more than the %d allowed", len(pattern), maxPatternBytes)
	}
	if _, err := syntax.Parse(pattern, syntax.Perl); err != nil {
		return nil, err
	}
	whole := "^(?:" + pattern + ")$"
	tree, err := syntax.Parse(whole, syntax.Perl)
	if err != nil {
		return nil, err
	}
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, err
	}
	if len(prog.Inst) > maxPatternInstructions {
		return nil, errs.Errorf(errs.InvalidRequest, "it is too complex: %d instructions, %d are allowed", len(prog.Inst), maxPatternInstructions)
	}
	return regexp.Compile(whole)
}

// resolve finds what a subscription stands for among the topics there are.
func (s *shard) resolve(topics []string, pattern string) (known []topicCount, matched []string, err error) {
	for _, name := range topics {
		if t, ok := s.metadata.Topic(name); ok {
			known = append(known, topicCount{t.Name, t.Partitions})
		}
	}
	if pattern == "" {
		return known, nil, nil
	}
	re, err := s.patterns.compile(pattern)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range s.metadata.Topics() {
		if !t.Internal && re.MatchString(t.Name) {
			matched = append(matched, t.Name)
			known = append(known, topicCount{t.Name, t.Partitions})
		}
	}
	slices.Sort(matched)
	return known, matched, nil
}

// refresh compares what a group knows of its topics with what there is now, and
// returns the command that brings it up to date, if one is needed.
func (s *shard) refresh(g *groupState) *setTopics {
	if g.protocol != ProtocolNative || len(g.members) == 0 {
		return nil
	}
	names := map[string]bool{}
	fresh := &setTopics{patterns: map[string][]string{}}
	counts := map[string]int32{}
	for _, m := range g.members {
		for _, t := range m.topics {
			names[t] = true
		}
		if m.regex == "" || fresh.patterns[m.regex] != nil {
			continue
		}
		known, matched, err := s.resolve(nil, m.regex)
		if err != nil {
			continue // it compiled when the member joined
		}
		fresh.patterns[m.regex] = matched
		for _, t := range known {
			counts[t.name] = t.partitions
		}
	}
	for name := range names {
		if t, ok := s.metadata.Topic(name); ok {
			counts[name] = t.Partitions
		}
	}
	if g.knows(counts, fresh.patterns) {
		return nil
	}
	for name, n := range counts {
		fresh.known = append(fresh.known, topicCount{name, n})
	}
	slices.SortFunc(fresh.known, func(a, b topicCount) int {
		return TopicPartition{Topic: a.name}.compare(TopicPartition{Topic: b.name})
	})
	return fresh
}

func (g *groupState) tooManyPatterns(one string) bool {
	if g == nil || len(g.patterns) < maxPatternsPerGroup {
		return false
	}
	_, known := g.patterns[one]
	return !known
}

func (g *groupState) knows(counts map[string]int32, byPattern map[string][]string) bool {
	if len(counts) != len(g.topics) || len(byPattern) != len(g.patterns) {
		return false
	}
	for name, n := range counts {
		if have, ok := g.topics[name]; !ok || have != n {
			return false
		}
	}
	for p, matched := range byPattern {
		if have, ok := g.patterns[p]; !ok || !slices.Equal(have, matched) {
			return false
		}
	}
	return true
}
