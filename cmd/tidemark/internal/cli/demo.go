package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/demo"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
)

func (a *app) demoCommand() *cobra.Command {
	keep := false
	c := &cobra.Command{
		Use: "demo [goapi|dpkg]", Short: "See the whole way of real records: in, through a group, and past a kill -9",
		Long: `goapi (default) starts a broker in a temporary directory, loads the history of Go's API from the toolchain on this
machine, consumes it through a group of three, kills the broker with SIGKILL in the middle of a second load, starts it
again, and proves that no acknowledged record is missing. dpkg folds /var/log/dpkg.log into the installed packages and
compares them with dpkg-query.`,
		ValidArgs: []string{"goapi", "dpkg"}, Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			conf := demo.Config{Out: a.stdout, Keep: keep, Verify: verifySummary}
			switch {
			case len(args) == 0 || args[0] == "goapi":
				return demo.GoAPI(a.soft, conf)
			case args[0] == "dpkg":
				err := demo.Dpkg(a.soft, conf)
				if errors.Is(err, demo.ErrNoLog) {
					return fail.With(fail.NotFound, "tidemark demo works everywhere", err)
				}
				return err
			}
			return fail.Usagef("demo %q: want goapi or dpkg", args[0])
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "keep the data")
	return impact(c, "write")
}
