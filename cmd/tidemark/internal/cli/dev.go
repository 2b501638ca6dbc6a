package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/broker"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/config"
)

type devFlags struct {
	brokers  int
	data     string
	exec     string
	listen   string
	printEnv bool
}

func (a *app) devCommand() *cobra.Command {
	f := devFlags{}
	c := &cobra.Command{
		Use: "dev", Short: "Run a throw-away broker in this process",
		Long: `Run a broker in this process whose data is removed at the end (--data DIR keeps it). With --exec it runs a command
with TIDEMARK_BROKERS set and ends with the command's exit code.`,
		Example: `  tidemark dev
  tidemark dev --exec 'go test ./integration/...'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if f.brokers != 1 {
				return fail.With(fail.Usage, "leave --brokers out", fmt.Errorf("--brokers %d: this version runs one broker only", f.brokers))
			}
			return a.dev(f)
		},
	}
	fl := c.Flags()
	fl.IntVar(&f.brokers, "brokers", 1, "number of brokers; this version runs one")
	fl.StringVar(&f.data, "data", "", "keep the data in this directory")
	fl.StringVar(&f.exec, "exec", "", "run this shell command against the broker and exit with its code")
	fl.StringVar(&f.listen, "listen", "", "where to listen (default 127.0.0.1:9093; with --exec any free port)")
	fl.BoolVar(&f.printEnv, "print-env", false, "print the environment for clients on stdout")
	return impact(c, "write")
}

func (a *app) dev(f devFlags) (err error) {
	begun := clock.Monotonic()
	dir := f.data
	if dir == "" {
		if dir, err = os.MkdirTemp("", "tidemark-dev-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	listen, admin := f.listen, "127.0.0.1:0"
	if listen == "" && f.exec != "" {
		listen = "127.0.0.1:0"
	} else if listen == "" {
		listen, admin = "127.0.0.1:9093", "127.0.0.1:9644"
	}
	l, err := config.Load(config.Sources{Set: []string{"node.data_dir=" + dir, "listeners.grpc.address=" + listen, "listeners.admin.address=" + admin}})
	if err != nil {
		return fail.With(fail.Usage, "", err)
	}
	logger := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if a.verbose {
		logger = a.clientLogger()
	}
	b, err := a.startBroker(l, logger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.work, l.Config.ShutdownTimeout)
	defer cancel()
	defer func() { err = errors.Join(err, b.Stop(ctx)) }()
	if f.exec != "" {
		return a.devExec(f.exec, b.Addresses())
	}
	a.banner(b, l, clock.Since(begun))
	if f.data == "" {
		a.say("the data is removed at the end; --data DIR keeps it\ntry:  echo hello | tidemark produce greetings --create partitions=1      tidemark consume greetings -n 1")
	}
	if f.printEnv {
		for _, kv := range devEnv(b.Addresses()) {
			fmt.Fprintln(a.stdout, "export "+kv)
		}
	}
	<-a.soft.Done()
	return nil
}

func devEnv(at broker.Addresses) []string {
	return []string{"TIDEMARK_BROKERS=" + at.GRPC, "TIDEMARK_ADMIN=http://" + at.Admin, fmt.Sprintf("TIDEMARK_DEV_PID=%d", os.Getpid())}
}

// devExec runs a command against the broker and passes its exit code through.
func (a *app) devExec(line string, at broker.Addresses) error {
	cmd := exec.CommandContext(a.soft, "sh", "-c", line)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Env = append(append([]string(nil), a.environ...), devEnv(at)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return fail.Silent(exit.ExitCode())
	}
	return err
}
