package cli

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/link"
	"github.com/tidemarkhq/tidemark/internal/config"
)

// version is the release that this tree becomes.
const version = "0.1.0-dev"

func goVersion() string { return runtime.Version() }

// revision is the commit that the binary was built from, where that is known.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	rev, dirty := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	return rev + dirty
}

func (a *app) versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.format != "" && a.format != "table" {
				return a.printDocuments([]document{{fields: []field{
					{"version", version}, {"revision", revision()}, {"go", goVersion()}, {"os", runtime.GOOS}, {"arch", runtime.GOARCH},
				}}})
			}
			_, err := fmt.Fprintf(a.stdout, "tidemark %s (revision %s, %s, %s/%s)\n", version, revision(), goVersion(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	return impact(c, "read")
}

func (a *app) completionCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "Print a completion script for a shell",
		Long:      "Print a completion script for a shell. Topics and groups are completed from the cluster.\n\n  source <(tidemark completion bash)",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"}, Args: exactly("SHELL"),
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
			return fail.Usagef("shell %q: want bash, zsh, fish or powershell", args[0])
		},
	}
	return impact(c, "read")
}

// completionTimeout keeps a shell from waiting for a broker that is not there.
const completionTimeout = 200 * time.Millisecond

func (a *app) completeTopics(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	conf := a.link()
	conf.Timeout = completionTimeout
	t, err := link.NewTopics(conf)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	defer t.Close()
	ctx, cancel := context.WithTimeout(a.soft, completionTimeout)
	defer cancel()
	all, _ := t.Topics(ctx) // without an answer there is nothing to complete
	var names []string
	for _, topic := range all {
		if !topic.Internal {
			names = append(names, topic.Name)
		}
	}
	return names, cobra.ShellCompDirectiveDefault
}

func (a *app) completeGroups(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := link.NewAdmin(a.link())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(a.soft, completionTimeout)
	defer cancel()
	all, _ := c.Groups(ctx) // without an answer there is nothing to complete
	var names []string
	for _, g := range all {
		names = append(names, g.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func completeKeys(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, k := range config.Keys() {
		names = append(names, k.Name+"=")
	}
	return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

func completeTopicSettings(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, s := range controller.TopicSettings() {
		names = append(names, s.Name+"=\t"+s.Doc)
	}
	return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// helpCommand is help, and the whole tree for machines.
func (a *app) helpCommand(root *cobra.Command) *cobra.Command {
	all := false
	c := &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about a command; --all -f json prints the whole tree for machines",
		RunE: func(_ *cobra.Command, args []string) error {
			if all && (a.format == "json" || a.format == "jsonl") {
				writeJSON(a.stdout, describe(root))
				return nil
			}
			if all {
				return WriteReference(a.stdout, root)
			}
			c, _, err := root.Find(args)
			if err != nil {
				return fail.With(fail.Usage, "tidemark help lists the commands", err)
			}
			return c.Help()
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all commands")
	return impact(c, "read")
}

// commandTree is a command for machines.
type commandTree struct {
	Path     string         `json:"path"`
	Use      string         `json:"use"`
	Short    string         `json:"short"`
	Impact   string         `json:"impact,omitempty"`
	Aliases  []string       `json:"aliases,omitempty"`
	Flags    []flagTree     `json:"flags,omitempty"`
	Commands []*commandTree `json:"commands,omitempty"`
}

type flagTree struct {
	Name      string `json:"name"`
	Shorthand string `json:"shorthand,omitempty"`
	Type      string `json:"type"`
	Default   string `json:"default"`
	Usage     string `json:"usage"`
}

func describe(c *cobra.Command) *commandTree {
	t := &commandTree{Path: c.CommandPath(), Use: c.UseLine(), Short: c.Short, Impact: c.Annotations["impact"], Aliases: c.Aliases}
	visit := func(f *pflag.Flag) {
		if !f.Hidden {
			t.Flags = append(t.Flags, flagTree{f.Name, f.Shorthand, f.Value.Type(), f.DefValue, f.Usage})
		}
	}
	c.LocalNonPersistentFlags().VisitAll(visit)
	if !c.HasParent() {
		c.PersistentFlags().VisitAll(visit)
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			t.Commands = append(t.Commands, describe(sub))
		}
	}
	return t
}

// WriteReference writes the reference of all commands as Markdown: docs/cli.md.
func WriteReference(w io.Writer, root *cobra.Command) error {
	var b strings.Builder
	b.WriteString("# Commands\n\nPrinted by `tidemark help --all`; a test keeps this page equal to the code. Exit codes: 0 ok, 1 other failure,\n" +
		"2 usage or settings, 3 not found, 4 conflict, 5 not allowed, 6 unavailable or timed out (safe to try again), 7 some\n" +
		"records or partitions failed, 8 a check found problems, 130 interrupted.\n")
	reference(&b, describe(root))
	_, err := io.WriteString(w, b.String())
	return err
}

func reference(b *strings.Builder, t *commandTree) {
	fmt.Fprintf(b, "\n## %s\n\n%s.", t.Path, strings.TrimSuffix(t.Short, "."))
	if t.Impact != "" {
		fmt.Fprintf(b, " Impact: %s.", t.Impact)
	}
	fmt.Fprintf(b, "\n\n    %s\n", t.Use)
	if len(t.Flags) > 0 {
		b.WriteString("\n| flag | type | default | meaning |\n|---|---|---|---|\n")
	}
	for _, f := range t.Flags {
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", name, f.Type, strings.ReplaceAll(f.Default, "|", `\|`), strings.ReplaceAll(f.Usage, "|", `\|`))
	}
	for _, sub := range t.Commands {
		reference(b, sub)
	}
}
