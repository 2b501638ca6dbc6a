package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/offsets"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/record"
)

func (a *app) groupCommand() *cobra.Command {
	c := noun("group", "List, describe and reset consumer groups",
		a.groupList(), a.groupDescribe(), a.groupLag(), a.groupReset(), a.groupDelete(), a.groupDeleteOffsets())
	c.Aliases = []string{"groups"}
	return a.tables(c)
}

func (a *app) groupList() *cobra.Command {
	c := &cobra.Command{
		Use: "list [GLOB...]", Aliases: []string{"ls"}, Short: "List consumer groups",
		ValidArgsFunction: a.completeGroups,
		RunE: func(_ *cobra.Command, globs []string) error {
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				all, err := c.Groups(ctx)
				if err != nil {
					return err
				}
				out := table{columns: []string{"name", "state", "protocol", "members", "coordinator"}}
				for _, g := range all {
					match := len(globs) == 0
					for _, glob := range globs {
						ok, err := path.Match(glob, g.Name)
						if err != nil {
							return fail.Usagef("pattern %q: %v", glob, err)
						}
						match = match || ok
					}
					if match {
						out.add(g.Name, g.State, g.Protocol, g.Members, g.Coordinator)
					}
				}
				return a.printTable(out)
			})
		},
	}
	return impact(c, "read")
}

func (a *app) groupDescribe() *cobra.Command {
	c := &cobra.Command{
		Use: "describe NAME...", Short: "Show members, assignment, offsets and lag of groups",
		Args: atLeast("NAME"), ValidArgsFunction: a.completeGroups,
		RunE: func(_ *cobra.Command, names []string) error {
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				var all []document
				for _, name := range names {
					g, err := c.DescribeGroup(ctx, name)
					if err != nil {
						return err
					}
					all = append(all, groupDocument(g))
				}
				return a.printDocuments(all)
			})
		},
	}
	return impact(c, "read")
}

func groupDocument(g admin.Group) document {
	members := table{columns: []string{"member", "client", "host", "epoch", "assigned", "+instance", "+owned", "+topics"}}
	for _, m := range g.MemberList {
		members.add(m.ID, m.ClientID, m.Host, m.Epoch, joined(m.Assigned), m.InstanceID, joined(m.Owned), strings.Join(m.Topics, ","))
	}
	return document{
		fields: []field{
			{"name", g.Name}, {"state", g.State}, {"protocol", g.Protocol}, {"coordinator", g.Coordinator},
			{"generation", g.Generation}, {"lag", g.Lag()},
		},
		tables: []section{{"members", members}, {"partitions", lagTable(g)}},
	}
}

func joined(tps []admin.TopicPartition) string {
	out := make([]string, len(tps))
	for i, tp := range tps {
		out[i] = tp.Topic + "/" + strconv.Itoa(int(tp.Partition))
	}
	return strings.Join(out, " ")
}

func lagTable(g admin.Group) table {
	t := table{columns: []string{"topic", "partition", "committed", "end", "lag", "lag seconds", "member", "+start", "+metadata", "error"}}
	for _, p := range g.Partitions {
		text := ""
		if p.Err != nil {
			text = p.Err.Error()
		}
		var committed, lag, behind any
		if p.Committed >= 0 {
			committed = int64(p.Committed)
		}
		if p.Lag >= 0 {
			lag = p.Lag
		}
		if p.LagTime >= 0 {
			behind = float64(p.LagTime.Milliseconds()) / 1000
		}
		t.add(p.Topic, p.Partition, committed, int64(p.HighWatermark), lag, behind, p.Member, int64(p.LogStartOffset), p.Metadata, text)
	}
	return t
}

func (a *app) groupLag() *cobra.Command {
	watch := false
	every := time.Duration(0)
	c := &cobra.Command{
		Use: "lag NAME...", Short: "Show how far groups are behind, in records and seconds",
		Args: atLeast("NAME"), ValidArgsFunction: a.completeGroups,
		RunE: func(_ *cobra.Command, names []string) error {
			for {
				err := a.showLag(names, watch)
				if watch && a.soft.Err() != nil {
					return nil // interrupted while it asked
				}
				if err != nil || !watch {
					return err
				}
				select {
				case <-a.soft.Done():
					return nil
				case <-time.After(every):
				}
			}
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show again and again until Ctrl-C")
	c.Flags().Var(newDuration(&every, 2*time.Second), "interval", "pause of --watch")
	return impact(c, "read")
}

func (a *app) showLag(names []string, watch bool) error {
	return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
		var out table
		for _, name := range names {
			g, err := c.DescribeGroup(ctx, name)
			if err != nil {
				return err
			}
			t := lagTable(g)
			out.columns = append([]string{"group"}, t.columns...)
			for _, row := range t.rows {
				out.rows = append(out.rows, append([]any{name}, row...))
			}
		}
		if watch && terminal.Is(a.stdout) {
			fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
		}
		return a.printTable(out)
	})
}

func (a *app) groupReset() *cobra.Command {
	var topics []string
	to := ""
	execute := false
	c := &cobra.Command{
		Use: "reset NAME", Short: "Move a group's offsets; shows the plan unless --execute is given",
		Example: `  tidemark group reset billing --topic orders --to @2026-11-19T00:00Z
  tidemark group reset billing --topic orders:0,1 --to start --execute`,
		Args: exactly("NAME"), ValidArgsFunction: a.completeGroups,
		RunE: func(_ *cobra.Command, args []string) error {
			target, err := resetTo(to)
			if err != nil {
				return err
			}
			scope, err := resetScope(topics)
			if err != nil {
				return err
			}
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				return a.reset(ctx, c, args[0], target, scope, execute)
			})
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&topics, "topic", nil, "topic, or topic:partition,partition (repeatable; default: all that the group committed)")
	fl.StringVar(&to, "to", "", "start, end, current, N, +N and -N (from where the group is), @time")
	fl.BoolVar(&execute, "execute", false, "do it; without, the plan is shown and nothing changes")
	_ = c.MarkFlagRequired("to") // the flag exists
	return impact(c, "destructive")
}

func resetTo(s string) (admin.ResetTo, error) {
	if s == "current" {
		return admin.ToCurrent(), nil
	}
	r, err := offsets.Parse(s, clock.System().Now())
	if err != nil || r.To != nil {
		return admin.ResetTo{}, fail.Usagef("--to %q: want start, end, current, N, +N, -N or @time", s)
	}
	switch p := r.From; p.Kind {
	case offsets.End:
		return admin.ToEnd(), nil
	case offsets.Exact:
		return admin.ToOffset(record.Offset(p.N)), nil
	case offsets.AfterStart:
		return admin.Shift(p.N), nil
	case offsets.BeforeEnd:
		return admin.Shift(-p.N), nil
	case offsets.Time:
		return admin.ToTime(p.T), nil
	case offsets.Committed:
		return admin.ToCurrent(), nil
	default:
		return admin.ToStart(), nil
	}
}

func resetScope(args []string) (admin.ResetScope, error) {
	var scope admin.ResetScope
	for _, arg := range args {
		topic, list, some := strings.Cut(arg, ":")
		if !some {
			scope.Topics = append(scope.Topics, topic)
			continue
		}
		for item := range strings.SplitSeq(list, ",") {
			n, err := strconv.ParseUint(item, 10, 31)
			if err != nil {
				return scope, fail.Usagef("--topic %q: want topic or topic:0,1,2", arg)
			}
			scope.Partitions = append(scope.Partitions, admin.TopicPartition{Topic: topic, Partition: int32(n)})
		}
	}
	return scope, nil
}

func (a *app) reset(ctx context.Context, c *admin.Client, group string, to admin.ResetTo, scope admin.ResetScope, execute bool) error {
	plan, err := c.PlanReset(ctx, group, to, scope)
	if err != nil {
		return err
	}
	out := table{columns: []string{"topic", "partition", "from", "to", "lag after", "error"}}
	bad := false
	for _, m := range plan.Moves {
		var from any
		if m.From >= 0 {
			from = int64(m.From)
		}
		text := ""
		if m.Err != nil {
			bad, text = true, m.Err.Error()
		}
		out.add(m.Topic, m.Partition, from, int64(m.To), m.Lag, text)
	}
	if err := a.printTable(out); err != nil {
		return err
	}
	if len(plan.Moves) == 0 {
		return fail.With(fail.NotFound, "--topic names what to reset", fmt.Errorf("reset group %s: it has committed nothing", group))
	}
	if !execute {
		a.say("nothing was changed; --execute does it")
		return nil
	}
	if bad {
		return fail.With(fail.Conflict, "", fmt.Errorf("reset group %s: some partitions cannot be moved; nothing was changed", group))
	}
	results, err := c.ExecuteReset(ctx, plan)
	if err != nil {
		return err
	}
	a.say("moved %s of group %s", counted(len(plan.Moves), "partition"), group)
	return failures("reset group "+group, results)
}

// failures is the error of a call that covers several partitions.
func failures(what string, results []admin.PartitionResult) error {
	var all []error
	for _, r := range results {
		if r.Err != nil {
			all = append(all, fmt.Errorf("%s: %s/%d: %w", what, r.Topic, r.Partition, r.Err))
		}
	}
	switch {
	case len(all) == 0:
		return nil
	case len(all) == len(results):
		return errors.Join(all...)
	}
	return fail.With(fail.Partial, "", errors.Join(all...))
}

func (a *app) groupDelete() *cobra.Command {
	var ok confirmation
	exists := false
	c := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete groups and their offsets",
		Args: atLeast("NAME"), ValidArgsFunction: a.completeGroups,
		RunE: func(_ *cobra.Command, names []string) error {
			if err := a.confirm(ok, "delete "+counted(len(names), "group")+" with its offsets: "+strings.Join(names, ", "), names[0]); err != nil {
				return err
			}
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				for _, name := range names {
					if err := a.deleteGroup(ctx, c, name, exists, ok.dry); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	ok.flags(c)
	c.Flags().BoolVar(&exists, "if-exists", false, "a missing group is a success")
	return impact(c, "destructive")
}

func (a *app) deleteGroup(ctx context.Context, c *admin.Client, name string, ifExists, dry bool) error {
	if dry {
		if _, err := c.DescribeGroup(ctx, name); err != nil {
			return err
		}
		a.say("would delete group %s", name)
		return nil
	}
	err := c.DeleteGroup(ctx, name)
	if ifExists && fail.Exit(err) == fail.NotFound {
		a.say("there is no group %s", name)
		return nil
	}
	if err != nil {
		return err
	}
	a.say("deleted group %s", name)
	return nil
}

func (a *app) groupDeleteOffsets() *cobra.Command {
	var ok confirmation
	var topics []string
	c := &cobra.Command{
		Use: "delete-offsets NAME", Short: "Forget committed offsets of a group",
		Args: exactly("NAME"), ValidArgsFunction: a.completeGroups,
		RunE: func(_ *cobra.Command, args []string) error {
			scope, err := resetScope(topics)
			if err != nil {
				return err
			}
			if err := a.confirm(ok, "forget offsets of group "+args[0], args[0]); err != nil {
				return err
			}
			return a.withAdmin(func(ctx context.Context, c *admin.Client) error {
				g, err := c.DescribeGroup(ctx, args[0])
				if err != nil {
					return err
				}
				return a.deleteOffsets(ctx, c, g, scope, ok.dry)
			})
		},
	}
	ok.flags(c)
	c.Flags().StringArrayVar(&topics, "topic", nil, "topic, or topic:partition,partition (repeatable)")
	_ = c.MarkFlagRequired("topic") // the flag exists
	return impact(c, "destructive")
}

func (a *app) deleteOffsets(ctx context.Context, c *admin.Client, g admin.Group, scope admin.ResetScope, dry bool) error {
	var gone []admin.TopicPartition
	for _, p := range g.Partitions {
		if slices.Contains(scope.Topics, p.Topic) || slices.Contains(scope.Partitions, p.TopicPartition) {
			gone = append(gone, p.TopicPartition)
		}
	}
	if len(gone) == 0 {
		return fail.With(fail.NotFound, "tidemark group describe "+g.Name, fmt.Errorf("group %s has no such offsets", g.Name))
	}
	if dry {
		a.say("would forget %s", joined(gone))
		return nil
	}
	results, err := c.DeleteOffsets(ctx, g.Name, gone...)
	if err != nil {
		return err
	}
	a.say("forgot %s of group %s", joined(gone), g.Name)
	return failures("delete offsets of group "+g.Name, results)
}
