package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/broker"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/config"
	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// nodeFlags say where a broker's settings come from.
type nodeFlags struct {
	files []string
	set   []string
	short map[string]*string // popular keys that have a flag of their own
}

func (n *nodeFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringArrayVarP(&n.files, "config", "c", nil, "settings file, YAML (repeatable; later wins; env TIDEMARK_CONFIG)")
	fl.StringArrayVar(&n.set, "set", nil, "a setting, as key=value (repeatable; lists are comma-separated; keys: tidemark config doc)")
	n.short = map[string]*string{}
	for flag, key := range map[string]string{
		"node-data-dir": "node.data_dir", "listeners-grpc-address": "listeners.grpc.address",
		"listeners-grpc-advertised": "listeners.grpc.advertised", "listeners-admin-address": "listeners.admin.address",
		"log-level": "log.level", "log-format": "log.format",
	} {
		n.short[key] = fl.String(flag, "", "same as --set "+key+"=...")
	}
	_ = c.RegisterFlagCompletionFunc("set", completeKeys) // the flag exists
}

// load reads the settings from all their sources.
func (n *nodeFlags) load(a *app) (*config.Loaded, error) {
	files := n.files
	if env := a.getenv("TIDEMARK_CONFIG"); len(files) == 0 && env != "" {
		files = []string{env}
	}
	set := n.set
	for _, k := range config.Keys() {
		if v, ok := n.short[k.Name]; ok && *v != "" {
			set = append(set, k.Name+"="+*v)
		}
	}
	l, err := config.Load(config.Sources{Files: files, Env: a.environ, Set: set})
	if err != nil {
		return nil, fail.With(fail.Usage, "tidemark config doc lists the keys", fmt.Errorf("settings:\n%w", err))
	}
	return l, nil
}

// servable tells what serve itself would refuse of settings that are right as such: whoever
// checks settings wants to know whether the broker starts with them.
func servable(l *config.Loaded) error {
	if err := brokerConfig(l.Config).Validate(); err != nil {
		return fail.With(fail.Usage, "tidemark config print --origin tells where each setting comes from", fmt.Errorf("settings: %w", err))
	}
	return nil
}

func (a *app) serveCommand() *cobra.Command {
	var node nodeFlags
	check, untilEOF := false, false
	addressFile := ""
	c := &cobra.Command{
		Use: "serve", Aliases: []string{"server", "broker"}, Short: "Run a broker",
		Long: `Run a broker until SIGINT or SIGTERM. Without settings it keeps its data in ./tidemark-data and listens on
loopback: 9093 for clients, 9644 for health and metrics. The first signal stops it in order, the second at once;
nothing acknowledged is lost either way.`,
		Example: `  tidemark serve
  tidemark serve -c tidemark.yaml --set limits.tail_bytes=128MiB
  tidemark serve --set node.data_dir=/tmp/t --set listeners.grpc.address=127.0.0.1:0 --set listeners.admin.address=127.0.0.1:0`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := node.load(a)
			if err != nil {
				return err
			}
			if check {
				if err := servable(l); err != nil {
					return err
				}
				a.say("the settings are valid")
				return nil
			}
			if untilEOF {
				defer a.stopAtEOF()()
			}
			return a.serve(l, addressFile)
		},
	}
	node.add(c)
	c.Flags().BoolVar(&check, "check-config", false, "check the settings and exit")
	c.Flags().StringVar(&addressFile, "address-file", "", "write the addresses to this file, as JSON, when the broker serves")
	c.Flags().BoolVar(&untilEOF, "until-stdin-closes", false, "stop when stdin ends: a broker that does not outlive who started it")
	return impact(c, "write")
}

// stopAtEOF stops the broker, in order, when stdin ends.
func (a *app) stopAtEOF() (done func()) {
	soft, cancel := context.WithCancel(a.soft)
	a.soft = soft
	group := run.Owned("stdin")
	group.Go("watch", func(context.Context) {
		_, _ = io.Copy(io.Discard, a.stdin) // its end is what matters
		cancel()
	})
	return group.Cancel // a read of stdin ends with the process
}

func (a *app) serve(l *config.Loaded, addressFile string) error {
	begun := clock.Monotonic()
	logger := a.serverLogger(l.Config.Log)
	for _, text := range l.Overridden {
		logger.Info("a setting is set in two places", "setting", text)
	}
	for _, key := range l.Unused {
		logger.Warn("a setting has no effect in this version", "setting", key)
	}
	b, err := a.startBroker(l, logger)
	if err != nil {
		return err
	}
	if addressFile != "" {
		err = writeAddresses(addressFile, b)
	}
	if err == nil {
		text := a.logsText(l.Config.Log)
		if text { // else the log's "broker serves" is the one line that says so
			a.banner(b, l, clock.Since(begun))
		}
		notifySystemd(a.getenv, "READY=1")
		<-a.soft.Done()
		notifySystemd(a.getenv, "STOPPING=1")
		if text {
			a.say("stopping; a second signal stops at once")
		} else {
			logger.Info("stopping; a second signal stops at once")
		}
	}
	ctx, cancel := context.WithTimeout(a.work, l.Config.ShutdownTimeout)
	defer cancel()
	return errors.Join(err, b.Stop(ctx))
}

// startBroker starts a broker whose disk errors end this process.
func (a *app) startBroker(l *config.Loaded, logger *slog.Logger) (*broker.Broker, error) {
	if err := servable(l); err != nil {
		return nil, err
	}
	b, err := broker.New(brokerConfig(l.Config), broker.Deps{
		Logger:   logger,
		Registry: prometheus.NewRegistry(),
		OnFatal: func(err error) {
			// Nothing may be written to the data directory any more, so
			// this is not a graceful stop.
			logger.Error("the broker cannot go on", "err", err)
			fail.Print(a.stderr, fmt.Errorf("the broker cannot go on: %w", err))
			os.Exit(fail.Other)
		},
		Version:  broker.Version{Version: version, Revision: revision(), GoVersion: goVersion()},
		Settings: func() []broker.Setting { return settings(l) },
	})
	if err != nil {
		return nil, err
	}
	if err := b.Start(a.soft); err != nil {
		return nil, startError(err, l)
	}
	return b, nil
}

// settings are those of this broker as clients see them.
func settings(l *config.Loaded) []broker.Setting {
	entries := l.Entries()
	list := make([]broker.Setting, len(entries))
	for i, e := range entries {
		list[i] = broker.Setting{Name: e.Name, Value: e.Value, Default: e.Default, Origin: e.Origin, Doc: e.Doc, ReadOnly: true}
	}
	return list
}

func startError(err error, l *config.Loaded) error {
	err = fmt.Errorf("start the broker: %w", err)
	switch {
	case errors.Is(err, fsx.ErrLocked):
		return fail.With(fail.Conflict, "stop the other broker, or give this one another directory: --set node.data_dir=DIR", err)
	case errors.Is(err, syscall.EADDRINUSE):
		return fail.With(fail.Conflict, "stop the other process, or listen elsewhere: --set listeners.grpc.address=127.0.0.1:0 (admin alike)", err)
	case errors.Is(err, os.ErrPermission):
		return fail.With(fail.Denied, "may this user write to "+l.Config.Node.DataDir+"?", err)
	case errs.CodeOf(err) == errs.KafkaStorageError: // retriable for clients, not for whoever starts this broker
		return fail.With(fail.Other, "tidemark verify "+l.Config.Node.DataDir+" tells what is damaged; restore it from a backup", err)
	}
	return err
}

// brokerConfig is the settings as the broker takes them.
func brokerConfig(c config.Config) broker.Config {
	b := broker.DefaultConfig()
	b.Node = broker.NodeConfig{ID: c.Node.ID, Rack: c.Node.Rack, DataDir: c.Node.DataDir}
	b.Listeners = broker.ListenersConfig{
		Kafka: listener(c.Listeners.Kafka), GRPC: listener(c.Listeners.GRPC), Internal: listener(c.Listeners.Internal),
		Gossip: broker.ListenerConfig{Address: c.Listeners.Gossip.Address, Advertised: c.Listeners.Gossip.Advertised},
		Admin:  listener(c.Listeners.Admin),
	}
	b.Cluster = broker.ClusterConfig{
		Name: c.Cluster.Name, BootstrapExpect: c.Cluster.BootstrapExpect, Join: c.Cluster.Join, CoordinatorGroups: c.Cluster.CoordinatorGroups,
	}
	b.Topics = broker.TopicsConfig{
		AutoCreate: c.Topics.AutoCreate, Partitions: c.Topics.Partitions, ReplicationFactor: c.Topics.ReplicationFactor,
	}
	b.Limits = broker.LimitsConfig{
		Partitions: c.Limits.Partitions, InFlightBytes: c.Limits.InFlightBytes, TailBytes: c.Limits.TailBytes,
		PoolBytes: c.Limits.PoolBytes, Connections: c.Limits.Connections,
	}
	b.Insecure, b.ShutdownTimeout = c.Insecure, c.ShutdownTimeout
	return b
}

func listener(l config.Listener) broker.ListenerConfig {
	return broker.ListenerConfig{Address: l.Address, Advertised: l.Advertised}
}

func (a *app) serverLogger(c config.Log) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // the settings were checked
	opts := &slog.HandlerOptions{Level: level}
	if a.logsText(c) {
		return slog.New(slog.NewTextHandler(a.stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(a.stderr, opts))
}

// logsText tells whether stderr is for people. Where it is JSON, every line of it is.
func (a *app) logsText(c config.Log) bool {
	return c.Format == "text" || c.Format == "auto" && terminal.Is(a.stderr)
}

func (a *app) banner(b *broker.Broker, l *config.Loaded, took time.Duration) {
	at := b.Addresses()
	var text strings.Builder
	fmt.Fprintf(&text, "tidemark %s · broker %d · cluster %s · data %s\n", version, b.ID(), b.ClusterID(), l.Config.Node.DataDir)
	fmt.Fprintf(&text, "  grpc   %s\n", at.GRPC)
	if at.Admin != "" {
		fmt.Fprintf(&text, "  admin  http://%s/healthz   metrics http://%s/metrics\n", at.Admin, at.Admin)
	}
	fmt.Fprintf(&text, "ready in %.2fs; Ctrl-C stops", took.Seconds())
	a.say("%s", text.String())
}

// addresses is what --address-file writes.
type addresses struct {
	PID   int    `json:"pid"`
	GRPC  string `json:"grpc"`
	Admin string `json:"admin"`
}

// writeAddresses writes the file whole or not at all, because somebody waits for it.
func writeAddresses(name string, b *broker.Broker) error {
	at := b.Addresses()
	text, err := json.Marshal(addresses{os.Getpid(), at.GRPC, at.Admin})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".addresses-*")
	if err != nil {
		return fmt.Errorf("--address-file: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("--address-file: %w", err)
	}
	return nil
}
