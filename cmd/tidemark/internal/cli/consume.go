package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/format"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/link"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/clock"
)

type consumeFlags struct {
	offset     string
	untilEnd   bool
	number     int64
	group      string
	tail       int64
	partitions []int32
	regex      bool
	beginning  bool // hidden, of Kafka's console consumer
}

func (a *app) consumeCommand() *cobra.Command {
	f := consumeFlags{}
	c := &cobra.Command{
		Use:     "consume TOPIC...",
		Aliases: []string{"consumer", "sub"},
		Short:   "Read records",
		Long: `Read records and go on as new ones come, until Ctrl-C, -n, -e, or the end of the range.

Where to read (-o): start (default), end, 47, +2 (after the start), -3 (before the end), 10:20 (10 to 19), :end
(all there is now), committed (of the group), @2026-11-20T10:00Z, @-15m, @-1h:-5m.

Formats (-f): line (default: values), kv, json (lossless), value-json, or a string with % such as '%p/%o %k %v\n'. On
a terminal the default shows partition, offset, key and value. With -g the group's offsets are committed after the
records were written out, so none is skipped.`,
		Example: `  tidemark consume nginx -o @-15m -e -f json | jq -r .value
  tidemark consume orders -g billing -f '%d{strftime[%T]} %p/%o %k %v\n'
  tidemark consume orders -o :end -f json | tidemark produce copy -f json`,
		Args:              atLeast("TOPIC"),
		ValidArgsFunction: a.completeTopics,
		RunE:              func(_ *cobra.Command, args []string) error { return a.consume(f, args) },
	}
	fl := c.Flags()
	fl.StringVarP(&f.offset, "offset", "o", "", "where to read: start|end|N|+N|-N|A:B|A:|:end|committed|@time|@-15m (default start; with -g committed)")
	fl.BoolVarP(&f.untilEnd, "exit-at-end", "e", false, "stop at what is the end now")
	fl.Int64VarP(&f.number, "number", "n", 0, "stop after so many records")
	fl.StringVarP(&f.group, "group", "g", "", "consume as a member of this group")
	fl.Int64Var(&f.tail, "tail", 0, "begin with the last N records of each partition")
	fl.Int32SliceVarP(&f.partitions, "partitions", "p", nil, "only these partitions")
	fl.BoolVarP(&f.regex, "regex", "r", false, "TOPIC is a regular expression")
	fl.BoolVar(&f.beginning, "from-beginning", false, "")
	fl.Int64Var(&f.number, "max-messages", 0, "")
	_ = fl.MarkHidden("from-beginning") // the flags exist
	_ = fl.MarkHidden("max-messages")
	return impact(c, "read")
}

func (a *app) consume(f consumeFlags, topics []string) error {
	name := a.format
	if name == "" && terminal.Is(a.stdout) {
		name = "terminal"
	}
	write, err := format.NewAppender(name)
	if err != nil {
		return fail.With(fail.Usage, "", err)
	}
	what, err := f.what(a)
	if err != nil {
		return err
	}
	t, err := link.NewTopics(a.link())
	if err != nil {
		return err
	}
	defer t.Close()
	ctx, cancel := context.WithTimeout(a.soft, a.timeout)
	defer cancel()
	if topics, err = matching(ctx, t, topics, f.regex); err != nil {
		return err
	}
	p, err := a.plan(ctx, t, f, topics, what)
	if err != nil {
		return err
	}
	s := &source{app: a, flags: f, plan: p, write: write, meter: terminal.NewMeter(), topics: topics, next: map[link.TP]int64{}}
	return s.run(what.From)
}

// what says what to read, from all flags that bear on it.
func (f *consumeFlags) what(a *app) (offsets.Range, error) {
	text := f.offset
	if f.number < 0 || f.tail < 0 {
		return offsets.Range{}, fail.Usagef("-n and --tail want a number of records, not below 0")
	}
	switch {
	case f.tail > 0:
		text = fmt.Sprintf("-%d", f.tail)
	case text == "" && f.group != "" && !f.beginning:
		text = "committed"
	case text == "":
		text = "start"
	}
	what, err := offsets.Parse(text, clock.System().Now())
	if err != nil {
		return what, fail.With(fail.Usage, "", fmt.Errorf("-o: %w", err))
	}
	if what.From.Kind == offsets.Committed && f.group == "" {
		return what, fail.Usagef("-o committed needs a group (-g)")
	}
	if what.To != nil && what.To.Kind != offsets.End && f.group != "" {
		return what, fail.Usagef("with -g a range can only end at the end")
	}
	if f.group != "" && len(f.partitions) > 0 {
		return what, fail.Usagef("-p does not go with -g: the group shares out the partitions")
	}
	if f.untilEnd && what.To == nil {
		what.To = &offsets.Point{Kind: offsets.End}
	}
	return what, nil
}

// matching expands regular expressions.
func matching(ctx context.Context, t link.Topics, topics []string, regex bool) ([]string, error) {
	if !regex {
		return topics, nil
	}
	all, err := t.Topics(ctx)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, text := range topics {
		re, err := regexp.Compile("^(?:" + text + ")$")
		if err != nil {
			return nil, fail.With(fail.Usage, "", err)
		}
		for _, topic := range all {
			if !topic.Internal && re.MatchString(topic.Name) && !slices.Contains(found, topic.Name) {
				found = append(found, topic.Name)
			}
		}
	}
	if len(found) == 0 {
		return nil, fail.With(fail.NotFound, "tidemark topic list shows the topics", fmt.Errorf("no topic matches %s", strings.Join(topics, " or ")))
	}
	return found, nil
}

// plan is where each partition begins and ends; partitions without an end are followed.
type plan struct{ from, to map[link.TP]int64 }

func (a *app) plan(ctx context.Context, t link.Topics, f consumeFlags, topics []string, what offsets.Range) (plan, error) {
	p := plan{map[link.TP]int64{}, map[link.TP]int64{}}
	for _, topic := range topics {
		bounds, err := t.Bounds(ctx, topic)
		if err != nil {
			return p, err
		}
		for _, n := range f.partitions {
			if _, ok := bounds[n]; !ok {
				return p, fail.With(fail.NotFound, "tidemark topic describe "+topic, fmt.Errorf("topic %s has no partition %d", topic, n))
			}
		}
		if err := readable(bounds, f, topic, what.To != nil); err != nil {
			return p, err
		}
		from, err := resolve(ctx, t, topic, what.From, bounds)
		if err != nil {
			return p, err
		}
		var to map[int32]int64
		if what.To != nil {
			if to, err = resolve(ctx, t, topic, *what.To, bounds); err != nil {
				return p, err
			}
		}
		for _, n := range slices.Sorted(maps.Keys(bounds)) {
			b := bounds[n]
			if len(f.partitions) > 0 && !slices.Contains(f.partitions, n) {
				continue
			}
			if b.Err != nil {
				a.say("note: %v", b.Err) // the group reads the others
				continue
			}
			tp := link.TP{Topic: topic, Partition: n}
			p.from[tp] = min(max(from[n], b.Start), b.End)
			if p.from[tp] != from[n] && f.group == "" {
				a.say("note: %s/%d holds [%d, %d): reading from %d", topic, n, b.Start, b.End, p.from[tp])
			}
			if to != nil {
				p.to[tp] = min(to[n], b.End)
			}
		}
	}
	return p, nil
}

// readable is why the partitions that f asks for cannot all be read. A group without an end needs none of
// them at its start.
func readable(bounds map[int32]offsets.Bounds, f consumeFlags, topic string, ends bool) error {
	err := offsets.FirstErr(bounds, f.partitions...)
	if err == nil || f.group != "" && !ends {
		return nil
	}
	hint := "tidemark topic describe " + topic + " tells the state of its partitions"
	var others []string
	for _, n := range slices.Sorted(maps.Keys(bounds)) {
		if bounds[n].Err == nil {
			others = append(others, strconv.Itoa(int(n)))
		}
	}
	if len(others) > 0 && f.group == "" {
		hint += "; -p " + strings.Join(others, ",") + " reads the others"
	}
	return fail.With(fail.Exit(err), hint, err)
}

// resolve turns a point into offsets of the partitions whose bounds are known.
func resolve(ctx context.Context, t link.Topics, topic string, p offsets.Point, bounds map[int32]offsets.Bounds) (map[int32]int64, error) {
	if p.NeedsTime() {
		return t.AtTime(ctx, topic, p.T, bounds)
	}
	all := map[int32]int64{}
	for n, b := range bounds {
		if b.Err == nil {
			all[n] = p.In(b)
		}
	}
	return all, nil
}

// source reads for one consume command. One goroutine uses it.
type source struct {
	app    *app
	flags  consumeFlags
	plan   plan
	write  format.Appender
	meter  *terminal.Meter
	topics []string

	in      link.Consumer
	text    []byte
	ends    []int
	next    map[link.TP]int64 // written to stdout, not committed yet
	count   int64
	settled clock.Mono // last commit
	heard   clock.Mono // last record
}

// pollFor bounds a wait, so that the end of a range and an interrupt are noticed.
const pollFor = 200 * time.Millisecond

func (s *source) run(start offsets.Point) error {
	a := s.app
	if s.flags.group == "" && len(s.plan.to) > 0 && s.finished(s.plan.from) {
		a.say("%s", s.meter.Snapshot().Consumed(strings.Join(s.topics, ",")))
		return nil
	}
	var err error
	s.in, err = link.NewConsumer(a.soft, a.link(), link.ConsumerConfig{
		Topics: s.topics, Group: s.flags.group, Start: start, Assigned: s.plan.from, Revoked: s.revoked,
	})
	if err != nil {
		return err
	}
	s.settled, s.heard = clock.Monotonic(), clock.Monotonic()
	stop := a.progress(s.meter, a.stdout)
	err = s.loop()
	ctx, cancel := context.WithTimeout(a.work, 10*time.Second)
	defer cancel()
	commitErr := s.commit(ctx)
	closeErr := s.in.Close(ctx)
	stop()
	if errors.Is(err, syscall.EPIPE) {
		err, closeErr = nil, nil // whoever read our output has seen enough
	}
	if err = errors.Join(err, commitErr, closeErr); err == nil {
		a.say("%s", s.meter.Snapshot().Consumed(strings.Join(s.topics, ",")))
	}
	return err
}

func (s *source) loop() error {
	for s.app.soft.Err() == nil && (s.flags.number == 0 || s.count < s.flags.number) {
		ctx, cancel := context.WithTimeout(s.app.soft, pollFor)
		records, err := s.in.Poll(ctx)
		cancel()
		if err != nil {
			return err
		}
		if err := s.put(records); err != nil {
			return err
		}
		if clock.Since(s.settled) > time.Second {
			if err := s.commit(s.app.work); err != nil {
				return err
			}
		}
		at := s.in.Assigned()
		if len(s.plan.to) > 0 && s.finished(at) || terminal.Closed(s.app.stdout) {
			return nil
		}
		if err := s.stalled(at, len(records) > 0); err != nil {
			return err
		}
	}
	return nil
}

// stalled is an error once a range that ends has not moved for the timeout. What
// lies below an end exists already, so a partition that does not hand it out has no leader.
func (s *source) stalled(at map[link.TP]int64, moved bool) error {
	if moved || len(s.plan.to) == 0 || len(at) == 0 {
		s.heard = clock.Monotonic()
		return nil
	}
	if clock.Since(s.heard) < s.app.timeout {
		return nil
	}
	for tp, next := range at {
		if to := s.plan.to[tp]; next < to {
			return fail.With(fail.Unavailable, "tidemark topic describe "+tp.Topic+" tells the state of its partitions",
				fmt.Errorf("no record came for %v: %s/%d is at offset %d of %d", s.app.timeout, tp.Topic, tp.Partition, next, to))
		}
	}
	return nil
}

// finished tells whether every partition that is read has reached its end.
func (s *source) finished(at map[link.TP]int64) bool {
	for tp, next := range at {
		if to, ok := s.plan.to[tp]; ok && next < to {
			return false
		}
	}
	return len(at) > 0
}

// put writes records in one go. Only records whose bytes were written count.
func (s *source) put(records []format.Record) error {
	s.text, s.ends = s.text[:0], s.ends[:0]
	var kept []format.Record
	for i := range records {
		r := &records[i]
		if to, ok := s.plan.to[link.TP{Topic: r.Topic, Partition: r.Partition}]; ok && r.Offset >= to {
			continue
		}
		if s.flags.number > 0 && s.count+int64(len(kept)) == s.flags.number {
			break
		}
		text, err := s.write(s.text, r)
		if err != nil {
			return errors.Join(s.flush(kept), err)
		}
		s.text = text
		s.ends = append(s.ends, len(s.text))
		kept = append(kept, *r)
	}
	return s.flush(kept)
}

func (s *source) flush(records []format.Record) error {
	if len(records) == 0 {
		return nil
	}
	n, err := s.app.stdout.Write(s.text[:s.ends[len(records)-1]])
	var size int64
	whole := 0
	for i, r := range records {
		if s.ends[i] > n {
			break
		}
		s.next[link.TP{Topic: r.Topic, Partition: r.Partition}] = r.Offset + 1
		size += int64(len(r.Key) + len(r.Value))
		whole++
	}
	s.count += int64(whole)
	s.meter.Add(whole, size)
	return err
}

// revoked commits what was written of partitions that go to another member,
// and forgets it where they are gone already.
func (s *source) revoked(ctx context.Context, partitions []link.TP, lost bool) {
	if !lost {
		if err := s.commit(ctx); err != nil {
			s.app.say("note: the last offsets were not committed, so some records will be read again: %v", err)
		}
	}
	for _, tp := range partitions {
		delete(s.next, tp)
	}
}

func (s *source) commit(ctx context.Context) error {
	s.settled = clock.Monotonic()
	if len(s.next) == 0 || s.flags.group == "" {
		return nil
	}
	err := s.in.Commit(ctx, maps.Clone(s.next))
	if err == nil {
		clear(s.next)
	}
	return err
}
