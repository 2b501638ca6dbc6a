// Package cli is the command line: commands, flags, and what they print.
//
// Data goes to stdout and talk to stderr. A command ends with one of the exit
// codes of package fail; errors say what, why, and what to do next. The first
// interrupt ends a command in order, the second at once.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/link"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/config"
	"github.com/tidemarkhq/tidemark/internal/run"
)

// app is one run of the command line.
type app struct {
	stdin          *os.File
	stdout, stderr *os.File
	environ        []string

	work  context.Context // lives until the process ends
	soft  context.Context // done at the first interrupt
	taken atomic.Int32    // the signal that came first

	brokers    []string
	format     string
	quiet      bool
	verbose    bool
	timeout    time.Duration
	color      string
	noProgress bool
	protocol   string
}

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, args []string) int {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ(), work: ctx}
	stop := a.watchSignals()
	defer stop()
	root := a.root()
	root.SetArgs(multiCall(args))
	err := root.ExecuteContext(a.soft)
	return a.finish(err)
}

// multiCall lets the binary be called producer or consumer.
func multiCall(args []string) []string {
	name := strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	switch strings.TrimPrefix(name, "tidemark-") {
	case "producer":
		return append([]string{"produce"}, args[1:]...)
	case "consumer":
		return append([]string{"consume"}, args[1:]...)
	}
	return args[1:]
}

func (a *app) finish(err error) int {
	var pe *os.PathError
	if err == nil || errors.As(err, &pe) && errors.Is(err, syscall.EPIPE) && pe.Path == a.stdout.Name() {
		return fail.OK // whoever read our output has seen enough
	}
	exit := fail.Exit(err)
	if sig := a.taken.Load(); sig != 0 && errors.Is(err, context.Canceled) {
		return 128 + int(sig)
	}
	var known *fail.Error
	if errors.As(err, &known) {
		fail.Print(a.stderr, err)
		return exit
	}
	if strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "unknown flag") ||
		strings.HasPrefix(err.Error(), "unknown shorthand") || strings.HasPrefix(err.Error(), "required flag") {
		err = fail.With(fail.Usage, "tidemark help lists the commands", err)
		exit = fail.Usage
	}
	fail.Print(a.stderr, err)
	return exit
}

// sameSignal is how long after the first signal another one is taken for the same:
// timeout(1), shells and supervisors signal the process and its group at once.
const sameSignal = 300 * time.Millisecond

// watchSignals ends the command in order at the first interrupt, and the
// process at the second. A broken pipe is an error of the write, not a death.
func (a *app) watchSignals() (stop func()) {
	soft, cancel := context.WithCancel(a.work)
	a.soft = soft
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	var first clock.Mono
	group := run.Owned("signals")
	group.Go("watch", func(ctx context.Context) {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				number := int32(2)
				if n, ok := s.(syscall.Signal); ok {
					number = int32(n)
				}
				if a.taken.CompareAndSwap(0, number) {
					first = clock.Monotonic()
					cancel()
					continue
				}
				if clock.Since(first) < sameSignal {
					continue
				}
				fmt.Fprintln(a.stderr, "aborted")
				os.Exit(128 + int(number))
			}
		}
	})
	return func() {
		signal.Stop(signals)
		cancel()
		group.Stop()
	}
}

// root is the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tidemark",
		Short: "A partitioned, replicated commit log in one binary",
		Long: `Tidemark is a partitioned, replicated, append-only commit log in one binary.

  tidemark demo                          see it work on real data, in less than a minute
  tidemark serve                         run a broker: ./tidemark-data, loopback, no settings
  echo hello | tidemark produce hi --create partitions=1
  tidemark consume hi -o :end`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true, DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkGlobals() },
	}
	a.globalFlags(root.PersistentFlags())
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fail.With(fail.Usage, c.CommandPath()+" --help shows the flags", err)
	})
	root.AddGroup(
		&cobra.Group{ID: "daily", Title: "Every day:"},
		&cobra.Group{ID: "manage", Title: "Topics and groups:"},
		&cobra.Group{ID: "check", Title: "Check and measure:"},
		&cobra.Group{ID: "more", Title: "More:"},
	)
	a.addAll(root)
	root.SetHelpCommand(a.helpCommand(root))
	root.SetGlobalNormalizationFunc(kafkaNames) // for the commands' own flag sets too
	return root
}

func (a *app) addAll(root *cobra.Command) {
	for group, commands := range map[string][]*cobra.Command{
		"daily":  {a.serveCommand(), a.devCommand(), a.demoCommand(), a.produceCommand(), a.consumeCommand()},
		"manage": {a.topicCommand(), a.groupCommand()},
		"check":  {a.benchCommand(), a.verifyCommand(), a.debugCommand()},
		"more":   {a.configCommand(), a.completionCommand(), a.errorsCommand(), a.versionCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
}

func (a *app) globalFlags(f *pflag.FlagSet) {
	var brokers []string
	if env := a.getenv("TIDEMARK_BROKERS"); env != "" {
		brokers = strings.Split(env, ",")
	}
	f.StringSliceVarP(&a.brokers, "brokers", "b", brokers, "gRPC addresses of brokers, tried in turn (env TIDEMARK_BROKERS; default 127.0.0.1:9093; with --protocol kafka 127.0.0.1:9092)")
	f.StringVarP(&a.format, "format", "f", "", "output: table, wide, json, jsonl, yaml, csv, name; records: line, kv, json, value-json, csv, file, or a string with %")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no banners, progress or closing line")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say more on stderr")
	f.Var(newDuration(&a.timeout, 30*time.Second), "timeout", "how long a request may take, retries included")
	f.StringVar(&a.color, "color", "auto", "colours: auto, always, never")
	f.BoolVar(&a.noProgress, "no-progress", false, "no progress line")
	f.StringVar(&a.protocol, "protocol", cmpOr(a.getenv("TIDEMARK_PROTOCOL"), "native"), "native (gRPC) or kafka")
}

// kafkaNames lets fingers that know Kafka's tools type what they always type.
func kafkaNames(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == "bootstrap-server" {
		name = "brokers"
	}
	return pflag.NormalizedName(name)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (a *app) checkGlobals() error {
	if a.protocol != "native" && a.protocol != "kafka" {
		return fail.Usagef("--protocol %s: want native or kafka", a.protocol)
	}
	if a.color != "auto" && a.color != "always" && a.color != "never" {
		return fail.Usagef("--color %s: want auto, always or never", a.color)
	}
	return nil
}

// link says how to reach the cluster.
func (a *app) link() link.Config {
	brokers := a.brokers
	if len(brokers) == 0 && a.protocol == "kafka" {
		brokers = []string{"127.0.0.1:9092"}
	} else if len(brokers) == 0 {
		brokers = []string{"127.0.0.1:9093"}
	}
	return link.Config{Brokers: brokers, Protocol: a.protocol, Timeout: a.timeout, Logger: a.clientLogger()}
}

func (a *app) clientLogger() *slog.Logger {
	if !a.verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (a *app) getenv(name string) string {
	for _, kv := range a.environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// say prints talk, unless -q.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// progress shows a meter on stderr where that makes sense. data is what else the command does with a terminal: the line must not be
// drawn over what a person types, or between the records that are shown.
func (a *app) progress(m *terminal.Meter, data *os.File) func() {
	tty := terminal.Is(a.stderr)
	if a.quiet || a.noProgress || !tty && !a.verbose || tty && data != nil && terminal.Is(data) {
		return func() {}
	}
	return m.Progress(a.stderr, tty)
}

// durationFlag is a duration that also knows days and weeks.
type durationFlag struct{ d *time.Duration }

func newDuration(d *time.Duration, def time.Duration) *durationFlag {
	*d = def
	return &durationFlag{d}
}

func (f *durationFlag) String() string {
	if f.d == nil {
		return ""
	}
	return f.d.String()
}
func (f *durationFlag) Type() string { return "duration" }
func (f *durationFlag) Set(s string) error {
	d, err := config.ParseDuration(s)
	if err == nil && d <= 0 {
		err = fmt.Errorf("got %q, want more than nothing", s)
	}
	*f.d = d
	return err
}

// impact says what a command does to data, for people and machines.
func impact(c *cobra.Command, kind string) *cobra.Command {
	c.Annotations = map[string]string{"impact": kind}
	return c
}

// group is a command that only has commands below it.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return c.Help()
	}}
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := c.CommandPath() + " --help lists the commands"
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean " + c.CommandPath() + " " + near[0] + "?"
		}
		return fail.With(fail.Usage, hint, fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath()))
	}
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(verbs...)
	return c
}

// exactly wants n arguments, and says which.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return fail.With(fail.Usage, c.CommandPath()+" --help", fmt.Errorf("want %s, got %d arguments", strings.Join(names, " "), len(args)))
		}
		return nil
	}
}

func atLeast(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fail.With(fail.Usage, c.CommandPath()+" --help", fmt.Errorf("want %s", name))
		}
		return nil
	}
}

var _ io.Writer = (*os.File)(nil)
