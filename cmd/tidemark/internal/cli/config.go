package cli

import (
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	return noun("config", "Write, check and print a broker's settings",
		a.configInit(), a.configValidate(), a.configPrint(), a.configDoc())
}

func (a *app) configInit() *cobra.Command {
	c := &cobra.Command{
		Use: "init [FILE]", Short: "Write a commented settings file (default: to stdout)", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return config.WriteInit(a.stdout)
			}
			f, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, os.ErrExist) {
				return fail.With(fail.Conflict, "choose another name", fmt.Errorf("write settings: %w", err))
			}
			if err != nil {
				return fmt.Errorf("write settings: %w", err)
			}
			if err := errors.Join(config.WriteInit(f), f.Close()); err != nil {
				return err
			}
			a.say("wrote %s; tidemark serve -c %s uses it", args[0], args[0])
			return nil
		},
	}
	return impact(c, "write")
}

func (a *app) configValidate() *cobra.Command {
	var node nodeFlags
	c := &cobra.Command{
		Use: "validate [FILE...]", Short: "Check settings: files, environment and --set together; exit code 8 if something is wrong",
		RunE: func(_ *cobra.Command, args []string) error {
			node.files = append(node.files, args...)
			l, err := node.load(a)
			if err == nil {
				err = servable(l)
			}
			if err != nil {
				return fail.With(fail.Found, fail.Hint(err), err)
			}
			for _, text := range l.Overridden {
				a.say("note: %s", text)
			}
			for _, key := range l.Unused {
				a.say("note: %s has no effect in this version", key)
			}
			a.say("the settings are valid")
			return nil
		},
	}
	node.add(c)
	return impact(c, "read")
}

func (a *app) configPrint() *cobra.Command {
	var node nodeFlags
	origin, changes := false, false
	c := &cobra.Command{
		Use: "print", Short: "Print the settings in force, secrets masked", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := node.load(a)
			if err != nil {
				return err
			}
			if a.format != "" {
				t := table{columns: []string{"key", "value", "origin", "+default"}}
				for _, e := range l.Entries() {
					if !changes || e.Origin != "default" {
						t.add(e.Name, e.Value, e.Origin, e.Default)
					}
				}
				return a.printTable(t)
			}
			tw := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
			for _, e := range l.Entries() {
				switch {
				case changes && e.Origin == "default":
				case origin:
					fmt.Fprintf(tw, "%s=%s\t# %s\n", e.Name, e.Value, e.Origin)
				default:
					fmt.Fprintf(tw, "%s=%s\n", e.Name, e.Value)
				}
			}
			return tw.Flush()
		},
	}
	node.add(c)
	c.Flags().BoolVar(&origin, "origin", false, "say where each value comes from")
	c.Flags().BoolVar(&changes, "diff-defaults", false, "only what was set")
	return impact(c, "read")
}

func (a *app) configDoc() *cobra.Command {
	c := &cobra.Command{
		Use: "doc", Short: "Print the reference of all settings", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.format != "" {
				t := table{columns: []string{"key", "type", "default", "reload", "later", "meaning"}}
				for _, k := range config.Keys() {
					t.add(k.Name, k.Type, k.Default, string(k.Reload), k.Later, k.Doc)
				}
				return a.printTable(t)
			}
			return config.WriteDoc(a.stdout)
		},
	}
	return impact(c, "read")
}
