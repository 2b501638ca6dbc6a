package cli

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/link"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func (a *app) topicCommand() *cobra.Command {
	c := noun("topic", "List, create, describe and change topics",
		a.topicList(), a.topicCreate(), a.topicDescribe(), a.topicAlter(), a.topicAddPartitions(),
		a.topicDelete(), a.topicOffsets(), a.topicTrim())
	c.Aliases = []string{"topics"}
	return a.tables(c)
}

// request bounds one command's talk with the cluster.
func (a *app) request() (context.Context, context.CancelFunc) {
	return context.WithTimeout(a.soft, a.timeout)
}

// withAdmin runs f with the native admin client.
func (a *app) withAdmin(f func(ctx context.Context, c *admin.Client) error) error {
	c, err := link.NewAdmin(a.link())
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := a.request()
	defer cancel()
	return f(ctx, c)
}

func (a *app) withTopics(f func(ctx context.Context, t link.Topics) error) error {
	t, err := link.NewTopics(a.link())
	if err != nil {
		return err
	}
	defer t.Close()
	ctx, cancel := a.request()
	defer cancel()
	return f(ctx, t)
}

func (a *app) topicList() *cobra.Command {
	internal := false
	c := &cobra.Command{
		Use: "list [GLOB...]", Aliases: []string{"ls"}, Short: "List topics",
		ValidArgsFunction: a.completeTopics,
		RunE: func(_ *cobra.Command, globs []string) error {
			for _, g := range globs {
				if _, err := path.Match(g, ""); err != nil {
					return fail.Usagef("pattern %q: %v", g, err)
				}
			}
			return a.withTopics(func(ctx context.Context, t link.Topics) error {
				all, err := t.Topics(ctx)
				if err != nil {
					return err
				}
				return a.printTopics(all, globs, internal)
			})
		},
	}
	c.Flags().BoolVar(&internal, "internal", false, "internal topics too")
	return impact(c, "read")
}

func (a *app) printTopics(all []link.Topic, globs []string, internal bool) error {
	out := table{columns: []string{"name", "partitions", "replicas", "leaderless", "under-replicated"}}
	for _, topic := range all {
		match := len(globs) == 0
		for _, g := range globs {
			ok, _ := path.Match(g, topic.Name) // checked before
			match = match || ok
		}
		if !match || topic.Internal && !internal {
			continue
		}
		leaderless, under := 0, 0
		for _, p := range topic.Partitions {
			if p.Leader < 0 {
				leaderless++
			}
			if len(p.ISR) < len(p.Replicas) {
				under++
			}
		}
		out.add(topic.Name, len(topic.Partitions), topic.Replicas, leaderless, under)
	}
	return a.printTable(out)
}

func (a *app) topicCreate() *cobra.Command {
	t := link.NewTopic{}
	var configs []string
	c := &cobra.Command{
		Use: "create NAME...", Short: "Create topics; returns when their leaders serve",
		Example: "  tidemark topic create orders -p 12 -c retention.ms=604800000 --if-not-exists",
		Args:    atLeast("NAME"),
		RunE: func(_ *cobra.Command, names []string) error {
			var err error
			if t.Configs, err = pairs(configs); err != nil {
				return err
			}
			for _, t.Name = range names {
				if err := a.createTopic(t); err != nil {
					return err
				}
			}
			return nil
		},
	}
	fl := c.Flags()
	fl.IntVarP(&t.Partitions, "partitions", "p", 0, "number of partitions (0: the broker's default)")
	fl.IntVarP(&t.Replicas, "replicas", "r", 0, "replicas of each partition (0: the broker's default)")
	fl.StringArrayVarP(&configs, "config", "c", nil, "topic setting, as name=value with Kafka's names (repeatable)")
	_ = c.RegisterFlagCompletionFunc("config", completeTopicSettings) // the flag exists
	fl.BoolVar(&t.IfNotExists, "if-not-exists", false, "an existing topic is a success")
	fl.BoolVar(&t.ValidateOnly, "dry-run", false, "check only")
	return impact(c, "write")
}

func pairs(args []string) (map[string]string, error) {
	all := map[string]string{}
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return nil, fail.Usagef("setting %q: want name=value", arg)
		}
		all[name] = value
	}
	return all, nil
}

func (a *app) createTopic(t link.NewTopic) error {
	return a.withTopics(func(ctx context.Context, ts link.Topics) error {
		made, existed, err := ts.Create(ctx, t)
		switch {
		case err != nil:
			return err
		case existed:
			a.say("topic %s exists already", t.Name)
		case t.ValidateOnly:
			a.say("would create topic %s", t.Name)
		default:
			a.say("created topic %s: %s, %s, leaders on %s", t.Name,
				counted(len(made.Partitions), "partition"), counted(made.Replicas, "replica"), leaders(made))
		}
		return nil
	})
}

func counted(n int, noun string) string {
	return terminal.Counted(int64(n), noun)
}

// leaders is how many partitions each broker leads: brokers 1(4) 2(4).
func leaders(t link.Topic) string {
	count := map[int32]int{}
	for _, p := range t.Partitions {
		count[p.Leader]++
	}
	text := "broker"
	if len(count) > 1 {
		text = "brokers"
	}
	for _, id := range slices.Sorted(maps.Keys(count)) {
		text += fmt.Sprintf(" %d(%d)", id, count[id])
	}
	return text
}

func (a *app) topicDescribe() *cobra.Command {
	c := &cobra.Command{
		Use: "describe NAME...", Short: "Show partitions, offsets and settings of topics",
		Args: atLeast("NAME"), ValidArgsFunction: a.completeTopics,
		RunE: func(_ *cobra.Command, names []string) error {
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				var all []document
				for _, name := range names {
					d, err := c.DescribeTopic(ctx, name)
					if err == nil {
						err = d.Err
					}
					if err != nil {
						return err
					}
					all = append(all, topicDocument(d, a.format == "" || a.format == "table"))
				}
				return a.printDocuments(all)
			})
		},
	}
	return impact(c, "read")
}

func topicDocument(d admin.TopicDetail, short bool) document {
	logs := map[int32]admin.PartitionLog{}
	var size int64
	for _, l := range d.Logs {
		logs[l.Partition] = l
		size += max(l.SizeBytes, 0) // -1: not known
	}
	parts := table{columns: []string{"partition", "leader", "leader epoch", "replicas", "isr", "start", "end", "records", "bytes", "segments", "+log end", "error"}}
	for _, p := range d.Partitions {
		l, ok := logs[p.Partition]
		if !ok || l.Err != nil {
			parts.add(p.Partition, p.Leader, p.LeaderEpoch, p.Replicas, p.ISR, nil, nil, nil, nil, nil, nil, fmt.Sprint(l.Err))
			continue
		}
		parts.add(p.Partition, p.Leader, p.LeaderEpoch, p.Replicas, p.ISR, l.LogStartOffset, l.HighWatermark,
			int64(l.HighWatermark-l.LogStartOffset), l.SizeBytes, l.Segments, l.LogEndOffset, "")
	}
	settings := table{columns: []string{"name", "value", "origin", "+default", "+meaning"}}
	for _, c := range d.Configs {
		if short && c.Origin == "default" {
			continue
		}
		settings.add(c.Name, c.Value, c.Origin, c.Default, c.Documentation)
	}
	return document{
		fields: []field{
			{"name", d.Name}, {"id", hex.EncodeToString(d.ID[:])}, {"internal", d.Internal}, {"partition count", len(d.Partitions)},
			{"replication factor", d.ReplicationFactor}, {"size bytes", size},
		},
		tables: []section{{"partitions", parts}, {"settings", settings}},
	}
}

func (a *app) topicAlter() *cobra.Command {
	var set, unset []string
	dry := false
	c := &cobra.Command{
		Use: "alter NAME", Short: "Change settings of a topic", Aliases: []string{"alter-config"},
		Example: "  tidemark topic alter orders -c retention.ms=3600000 -d segment.bytes",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeTopics,
		RunE: func(_ *cobra.Command, args []string) error {
			changes, err := pairs(set)
			if err != nil {
				return err
			}
			if len(changes) == 0 && len(unset) == 0 {
				return fail.Usagef("nothing to change: want -c name=value or -d name")
			}
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				if err := c.AlterTopic(ctx, args[0], admin.Change{Set: changes, Unset: unset, ValidateOnly: dry}); err != nil {
					return err
				}
				verb := "altered"
				if dry {
					verb = "would alter"
				}
				a.say("%s topic %s: %s", verb, args[0], strings.Join(append(slices.Clone(set), prefixed("default ", unset)...), ", "))
				return nil
			})
		},
	}
	c.Flags().StringArrayVarP(&set, "config", "c", nil, "setting, as name=value (repeatable)")
	_ = c.RegisterFlagCompletionFunc("config", completeTopicSettings) // the flag exists
	c.Flags().StringArrayVarP(&unset, "delete", "d", nil, "setting to put back to its default (repeatable)")
	c.Flags().BoolVar(&dry, "dry-run", false, "check only")
	return impact(c, "write")
}

func prefixed(prefix string, in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = prefix + s
	}
	return out
}

func (a *app) topicAddPartitions() *cobra.Command {
	total, dry := 0, false
	c := &cobra.Command{
		Use: "add-partitions NAME", Short: "Give a topic more partitions",
		Long: "Give a topic more partitions. Keys move: records of one key may lie in two partitions afterwards.",
		Args: exactly("NAME"), ValidArgsFunction: a.completeTopics,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				var opts []admin.ChangeOption
				if dry {
					opts = append(opts, admin.ValidateOnly())
				}
				t, err := c.AddPartitions(ctx, args[0], total, opts...)
				switch {
				case err != nil:
					return err
				case dry:
					a.say("would give topic %s %s", args[0], counted(total, "partition"))
				default:
					a.say("topic %s has %s now", args[0], counted(len(t.Partitions), "partition"))
				}
				return nil
			})
		},
	}
	c.Flags().IntVar(&total, "total", 0, "number of partitions afterwards")
	c.Flags().BoolVar(&dry, "dry-run", false, "check only")
	_ = c.MarkFlagRequired("total") // the flag exists
	return impact(c, "write")
}

func (a *app) topicDelete() *cobra.Command {
	var ok confirmation
	exists := false
	c := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete topics and their records",
		Args: atLeast("NAME"), ValidArgsFunction: a.completeTopics,
		RunE: func(_ *cobra.Command, names []string) error {
			if err := a.confirm(ok, "delete "+counted(len(names), "topic")+" with all records: "+strings.Join(names, ", "), names[0]); err != nil {
				return err
			}
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				for _, name := range names {
					if err := a.deleteTopic(ctx, c, name, exists, ok.dry); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	ok.flags(c)
	c.Flags().BoolVar(&exists, "if-exists", false, "a missing topic is a success")
	return impact(c, "destructive")
}

func (a *app) deleteTopic(ctx context.Context, c *admin.Client, name string, ifExists, dry bool) error {
	var opts []admin.ChangeOption
	verb := "deleted"
	if ifExists {
		opts = append(opts, admin.IfExists())
	}
	if dry {
		opts, verb = append(opts, admin.ValidateOnly()), "would delete"
	}
	if ifExists && !dry {
		if _, err := c.DescribeTopic(ctx, name); errs.CodeOf(err) == errs.UnknownTopicOrPartition {
			a.say("topic %s does not exist", name)
			return nil
		}
	}
	if err := c.DeleteTopic(ctx, name, opts...); err != nil {
		return err
	}
	a.say("%s topic %s", verb, name)
	return nil
}

func (a *app) topicOffsets() *cobra.Command {
	at := ""
	c := &cobra.Command{
		Use: "offsets NAME...", Short: "Show which offsets topics hold, or which offset belongs to a time",
		Args: atLeast("NAME"), ValidArgsFunction: a.completeTopics,
		RunE: func(_ *cobra.Command, names []string) error {
			return a.withTopics(func(ctx context.Context, t link.Topics) error {
				out := table{columns: []string{"topic", "partition", "start", "end", "records"}}
				if at != "" {
					out.columns = append(out.columns, "at time")
				}
				out.columns = append(out.columns, "error")
				var failed []error
				for _, name := range names {
					some, err := offsetRows(ctx, t, name, at, &out)
					if err != nil {
						return err
					}
					failed = append(failed, some...)
				}
				if err := a.printTable(out); err != nil || len(failed) == 0 {
					return err
				}
				err := errors.Join(failed...)
				if len(failed) < len(out.rows) {
					err = fail.With(fail.Partial, "tidemark topic describe tells the state of partitions", err)
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&at, "at", "", "also the first offset at or after this time: 2026-11-20T10:00Z, -15m")
	return impact(c, "read")
}

// offsetRows also returns why partitions have no offsets.
func offsetRows(ctx context.Context, t link.Topics, name, at string, out *table) (failed []error, err error) {
	bounds, err := t.Bounds(ctx, name)
	if err != nil {
		return nil, err
	}
	var found map[int32]int64
	if at != "" {
		when, err := offsets.ParseTime(strings.TrimPrefix(at, "@"), clock.System().Now())
		if err != nil {
			return nil, fail.With(fail.Usage, "", fmt.Errorf("--at: %w", err))
		}
		if found, err = t.AtTime(ctx, name, when, bounds); err != nil {
			return nil, err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(bounds)) {
		b := bounds[p]
		row, text := []any{name, p, b.Start, b.End, b.End - b.Start, found[p]}, ""
		if b.Err != nil {
			row, text = []any{name, p, nil, nil, nil, nil}, b.Err.Error()
			failed = append(failed, b.Err)
		}
		if at == "" {
			row = row[:5]
		}
		out.rows = append(out.rows, append(row, text))
	}
	return failed, nil
}

func (a *app) topicTrim() *cobra.Command {
	var ok confirmation
	before := ""
	var partitions []int32
	c := &cobra.Command{
		Use: "trim NAME", Short: "Delete the oldest records of a topic",
		Example: "  tidemark topic trim orders --before @-7d --dry-run",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeTopics,
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := offsets.Parse(before, clock.System().Now())
			if err != nil || r.To != nil || r.From.Kind == offsets.Committed {
				return fail.Usagef("--before %q: want an offset, end, -N or @time", before)
			}
			if err := a.confirm(ok, fmt.Sprintf("delete the records of %s before %s", args[0], before), args[0]); err != nil {
				return err
			}
			return a.trim(args[0], r.From, partitions, ok.dry)
		},
	}
	ok.flags(c)
	c.Flags().StringVar(&before, "before", "", "first offset to keep: N, end, -N, @time")
	c.Flags().Int32SliceVarP(&partitions, "partitions", "p", nil, "only these partitions")
	_ = c.MarkFlagRequired("before") // the flag exists
	return impact(c, "destructive")
}

func (a *app) trim(topic string, to offsets.Point, only []int32, dry bool) error {
	var before map[int32]record.Offset
	err := a.withTopics(func(ctx context.Context, t link.Topics) error {
		bounds, err := t.Bounds(ctx, topic)
		if err == nil {
			err = offsets.FirstErr(bounds, only...)
		}
		if err != nil {
			return err
		}
		points, err := resolve(ctx, t, topic, to, bounds)
		before = map[int32]record.Offset{}
		for p, o := range points {
			if len(only) == 0 || slices.Contains(only, p) {
				before[p] = record.Offset(min(o, bounds[p].End))
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
		var opts []admin.ChangeOption
		if dry {
			opts = append(opts, admin.ValidateOnly())
		}
		done, err := c.TrimTopic(ctx, topic, before, opts...)
		if err != nil {
			return err
		}
		out := table{columns: []string{"topic", "partition", "start", "error"}}
		var failed error
		for _, d := range done {
			text := ""
			if d.Err != nil {
				failed, text = d.Err, d.Err.Error()
			}
			out.add(topic, d.Partition, int64(d.LogStartOffset), text)
		}
		if failed != nil {
			failed = fail.With(fail.Partial, "", fmt.Errorf("trim topic %s: %w", topic, failed))
		}
		return errors.Join(a.printTable(out), failed)
	})
}

// confirmation is how a destructive command is let loose.
type confirmation struct{ yes, dry bool }

func (c *confirmation) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&c.dry, "dry-run", false, "check only")
}

// confirm asks a person to type a name; without a terminal --yes must be given.
func (a *app) confirm(c confirmation, what, name string) error {
	if c.yes || c.dry {
		return nil
	}
	if !terminal.Is(a.stdin) || !terminal.Is(a.stderr) {
		return fail.With(fail.Usage, "--yes does it, --dry-run shows it", fmt.Errorf("this would %s", what))
	}
	fmt.Fprintf(a.stderr, "This will %s.\nType %s to go on: ", what, name)
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != name {
		return fail.With(fail.Usage, "", errors.New("not confirmed; nothing was changed"))
	}
	return nil
}
