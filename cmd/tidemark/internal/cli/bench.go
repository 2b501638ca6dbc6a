package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/bench"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/link"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/internal/config"
)

type benchFlags struct {
	load     bench.Load
	rate     string
	size     string
	batch    string
	buffer   string
	topic    string
	dir      string
	jsonFile string
}

func (a *app) benchCommand() *cobra.Command {
	return noun("bench", "Measure throughput and latency",
		a.benchVerb("produce", "Measure writing: records per second, and latency to the acknowledgement"),
		a.benchVerb("consume", "Measure reading a topic from its start"),
		a.benchVerb("e2e", "Measure the way from producer to consumer at a fixed rate"))
}

func (a *app) benchVerb(kind, short string) *cobra.Command {
	f := benchFlags{}
	c := &cobra.Command{
		Use: kind, Short: short, Args: cobra.NoArgs,
		Long: short + `.

Without -b it starts a broker of its own in --dir and compares with a plain file on the same disk. With --rate the load
is an open loop: latency counts from the moment at which a record is due.`,
		Example: "  tidemark bench " + kind + " --rate 20k --size 256 --duration 30s --json out.json",
		RunE:    func(c *cobra.Command, _ []string) error { return a.bench(c.Context(), kind, f) },
	}
	fl := c.Flags()
	rate := ""
	if kind == "e2e" {
		rate = "5k"
	}
	fl.StringVar(&f.topic, "topic", "", "use this topic and keep it (default: one of its own)")
	fl.IntVar(&f.load.Partitions, "partitions", 4, "partitions of its own topic")
	fl.StringVar(&f.size, "size", "1KiB", "bytes of one record")
	fl.StringVar(&f.rate, "rate", rate, "records per second, such as 20k (default: as fast as it goes)")
	fl.Var(newDuration(&f.load.Duration, 10*time.Second), "duration", "how long to send")
	fl.Int64Var(&f.load.Records, "records", 0, "send so many records instead")
	fl.StringVar(&f.load.Acks, "acks", "all", "all, quorum, 1, 0")
	fl.StringVarP(&f.load.Codec, "compression", "z", "none", "none, gzip, snappy, lz4, zstd")
	fl.StringVar(&f.batch, "batch-bytes", "64KiB", "bytes of a batch, and of a write to the plain file")
	fl.StringVar(&f.buffer, "buffer-bytes", "4MiB", "bytes that may wait for their answer in the client; without --rate this bounds the latency from below")
	fl.StringVar(&f.dir, "dir", "", "directory for its own broker and the plain file (default: a temporary one)")
	fl.StringVar(&f.jsonFile, "json", "", "write the result to this file, as JSON (- is stdout)")
	return impact(c, "write")
}

func (f *benchFlags) parse() error {
	size, err := config.ParseSize(f.size)
	if err != nil || size > 16<<20 {
		return fail.Usagef("--size %s: want a size up to 16MiB", f.size)
	}
	batch, err := config.ParseSize(f.batch)
	if err != nil || batch < 1 || batch > 16<<20 {
		return fail.Usagef("--batch-bytes %s: want a size up to 16MiB", f.batch)
	}
	buffer, err := config.ParseSize(f.buffer)
	if err != nil || buffer < 1 || buffer > 1<<30 {
		return fail.Usagef("--buffer-bytes %s: want a size up to 1GiB", f.buffer)
	}
	f.load.BufferBytes = int(buffer)
	f.load.Size, f.load.BatchBytes, f.load.Topic = int(size), int(batch), f.topic
	f.load.Producer = link.ProducerConfig{
		Acks: f.load.Acks, Codec: f.load.Codec, Linger: 5 * time.Millisecond, BatchBytes: int(batch), BufferBytes: int(buffer), DeliveryTimeout: 2 * time.Minute,
	}
	if f.rate == "" {
		return nil
	}
	factor, digits := 1.0, f.rate
	for unit, n := range map[string]float64{"k": 1e3, "M": 1e6} {
		if d, ok := strings.CutSuffix(f.rate, unit); ok {
			factor, digits = n, d
		}
	}
	if _, err := fmt.Sscanf(digits, "%g", &f.load.Rate); err != nil || f.load.Rate <= 0 {
		return fail.Usagef("--rate %s: want records per second, such as 500 or 20k", f.rate)
	}
	f.load.Rate *= factor
	return nil
}

func (a *app) bench(ctx context.Context, kind string, f benchFlags) (err error) {
	if err := f.parse(); err != nil {
		return err
	}
	conf, dir := a.link(), f.dir
	if len(a.brokers) == 0 && a.protocol == "native" {
		broker, made, stop, err := a.ownBroker(ctx, f.dir)
		if err != nil {
			return err
		}
		defer stop()
		conf.Brokers, dir = []string{broker}, made
	}
	own := f.topic == ""
	if own {
		f.load.Topic = fmt.Sprintf("bench-%d", os.Getpid())
		if err := a.benchTopic(ctx, conf, f.load); err != nil {
			return err
		}
		defer a.dropTopic(conf, f.load.Topic)
	}
	res, err := a.measure(ctx, kind, conf, f, own)
	if err != nil {
		return err
	}
	if dir != "" && kind != "e2e" {
		if err := compareWithFile(&res, dir, f.load.BatchBytes); err != nil {
			return err
		}
	}
	if err := a.report(res, f.jsonFile); err != nil {
		return err
	}
	if res.Failed > 0 {
		return fail.With(fail.Partial, "", fmt.Errorf("bench: %s failed; the first: %s", terminal.Counted(int64(res.Failed), "record"), res.FirstError))
	}
	return nil
}

func (a *app) measure(ctx context.Context, kind string, conf link.Config, f benchFlags, own bool) (bench.Result, error) {
	switch kind {
	case "produce":
		return bench.Produce(ctx, conf, f.load)
	case "e2e":
		return bench.EndToEnd(ctx, conf, f.load)
	}
	if own {
		fill := f.load
		fill.Rate = 0
		a.say("writing what will be read")
		if _, err := bench.Produce(ctx, conf, fill); err != nil {
			return bench.Result{}, err
		}
	}
	return bench.Consume(ctx, conf, f.load)
}

// ownBroker starts a broker that ends with the benchmark.
func (a *app) ownBroker(ctx context.Context, dir string) (address, made string, stop func(), err error) {
	made, err = os.MkdirTemp(dir, "tidemark-bench-")
	if err != nil {
		return "", "", nil, err
	}
	b, err := child.Start(ctx, child.Config{Dir: filepath.Join(made, "data")})
	if err != nil {
		return "", "", nil, errors.Join(err, os.RemoveAll(made))
	}
	a.say("measuring a broker of its own, in %s; -b names another", made)
	return b.GRPC, made, func() {
		if err := errors.Join(b.Kill(), os.RemoveAll(made)); err != nil {
			a.say("note: %v", err)
		}
	}, nil
}

func (a *app) benchTopic(ctx context.Context, conf link.Config, l bench.Load) error {
	t, err := link.NewTopics(conf)
	if err != nil {
		return err
	}
	defer t.Close()
	_, _, err = t.Create(ctx, link.NewTopic{Name: l.Topic, Partitions: l.Partitions})
	if err != nil {
		return err
	}
	return nil
}

func (a *app) dropTopic(conf link.Config, name string) {
	if conf.Protocol == "kafka" {
		a.say("note: topic %s is left behind", name)
		return
	}
	c, err := admin.New(conf.Brokers)
	if err == nil {
		ctx, cancel := context.WithTimeout(a.work, 5*time.Second)
		defer cancel()
		err = errors.Join(c.DeleteTopic(ctx, name), c.Close())
	}
	if err != nil {
		a.say("note: topic %s is left behind: %v", name, err)
	}
}

func compareWithFile(res *bench.Result, dir string, write int) error {
	file, err := bench.MeasureFile(dir, write)
	if err != nil {
		return fmt.Errorf("measure a plain file: %w", err)
	}
	file.Ratio = res.MiBPerSec / file.Synced
	if res.Kind == "consume" {
		file.Ratio = res.MiBPerSec / file.Read
	}
	res.PlainFile = &file
	return nil
}

func (a *app) report(res bench.Result, jsonFile string) error {
	text, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	switch {
	case jsonFile == "-" || a.format == "json":
		_, err = a.stdout.Write(text)
		return err
	case jsonFile != "":
		if err := os.WriteFile(jsonFile, text, 0o600); err != nil {
			return err
		}
	}
	out := a.stdout
	fmt.Fprintf(out, "%s: %s records of %d bytes in %.2fs: %s rec/s, %.1f MiB/s, %d failed\n", res.Kind, terminal.Count(res.Records),
		res.Load.Size, res.Seconds, terminal.Rate(res.PerSecond), res.MiBPerSec, res.Failed)
	for _, l := range []struct {
		what string
		*bench.Latency
	}{{"acknowledged", res.Ack}, {"end to end", res.EndToEnd}} {
		if l.Latency != nil {
			fmt.Fprintf(out, "  %-12s ms: p50 %.2f  p90 %.2f  p95 %.2f  p99 %.2f  p99.9 %.2f  max %.2f\n", l.what, l.P50, l.P90, l.P95, l.P99, l.P999, l.Max)
		}
	}
	if res.Ack != nil && !res.OpenLoop {
		fmt.Fprintf(out, "  no --rate: the latencies include the wait in the client's own buffer of %s\n", terminal.Bytes(float64(res.Load.BufferBytes)))
	}
	if f := res.PlainFile; f != nil {
		fmt.Fprintf(out, "  plain file, %s writes: %.1f MiB/s synced, %.1f unsynced, %.1f read; ratio %.2f\n",
			terminal.Bytes(float64(f.WriteBytes)), f.Synced, f.Unsynced, f.Read, f.Ratio)
	}
	return nil
}
