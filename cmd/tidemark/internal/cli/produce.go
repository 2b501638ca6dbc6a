package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/format"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/link"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// produceFlags are the flags of produce.
type produceFlags struct {
	link       link.ProducerConfig
	read       format.ReadOptions
	fixedKey   string
	headers    []string
	partition  int32
	keep       bool
	tombstone  bool
	report     string
	create     string
	onError    string
	deadLetter string
	properties []string // hidden, of Kafka's console producer
}

func (a *app) produceCommand() *cobra.Command {
	f := produceFlags{}
	c := &cobra.Command{
		Use:     "produce [TOPIC] [FILE...]",
		Aliases: []string{"producer", "pub"},
		Short:   "Write records from stdin or files",
		Long: `Write records from stdin or files to a topic; nothing is written to stdout unless --report asks for it.

Formats (-f): line (default: one value per line), kv (KEY TAB VALUE), json (what consume -f json writes),
value-json (one JSON value per line), csv (a header row; each row becomes a JSON object), file (each FILE is one
record), or a string with % such as '%k:%v\n'. Without TOPIC the records name it (json, or %t).

A record that cannot be written for two minutes is given up and named; the exit code is then 7, or says what
went wrong where nothing was written at all.`,
		Example: `  tail -F /var/log/syslog | tidemark produce syslog -z zstd
  tidemark produce users users.csv -f csv --key id --create partitions=6
  printf 'k1\tv1\nk2\t\n' | tidemark produce kv -f kv -Z
  tidemark consume orders -o :end -f json | tidemark produce copy -f json --keep-partition`,
		ValidArgsFunction: a.completeTopics,
		RunE:              func(_ *cobra.Command, args []string) error { return a.produce(f, args) },
	}
	fl := c.Flags()
	fl.StringVarP(&f.fixedKey, "fixed-key", "k", "", "key of every record")
	fl.StringArrayVarP(&f.headers, "add-header", "H", nil, "header of every record, as name:value (repeatable)")
	fl.Int32VarP(&f.partition, "partition", "p", format.Unset, "partition of every record (default: by key)")
	fl.BoolVar(&f.keep, "keep-partition", false, "write each record to the partition that it names (-f json, or %p)")
	fl.BoolVarP(&f.tombstone, "tombstone", "Z", false, "an empty value becomes a tombstone (null)")
	fl.StringVarP(&f.link.Codec, "compression", "z", "none", "none, gzip, snappy, lz4, zstd")
	fl.StringVar(&f.link.Acks, "acks", "all", "durability to wait for: all, quorum, 1, 0")
	fl.Var(newDuration(&f.link.Linger, 5*time.Millisecond), "linger", "how long a batch waits for more records")
	fl.IntVar(&f.link.BatchBytes, "batch-bytes", 0, "bytes of a batch before compression (0: the default)")
	fl.Var(newDuration(&f.link.DeliveryTimeout, 2*time.Minute), "delivery-timeout", "when a record is given up, retries included")
	fl.BoolVar(&f.link.NotIdempotent, "no-idempotence", false, "do not number batches (a retry may then write twice, so there is none)")
	fl.StringVar(&f.report, "report", "", `print each record that was written, such as '%p/%o %k\n'`)
	fl.StringVar(&f.create, "create", "", "create the topic if it is missing: partitions=6,retention.ms=86400000")
	fl.StringVar(&f.onError, "on-error", "stop", "after a record failed: stop, or continue")
	fl.StringVar(&f.deadLetter, "dead-letter", "", "append records that failed to this file, as JSON")
	fl.StringVar(&f.read.Key, "key", "", "where the key is: a path (-f value-json) or a column (-f csv)")
	fl.StringVar(&f.read.Time, "time", "", "where the timestamp is: a path or a column")
	fl.StringArrayVar(&f.read.Headers, "header", nil, "header from a path, as name=.path (-f value-json, repeatable)")
	fl.StringArrayVar(&f.properties, "property", nil, "as Kafka's console producer: parse.key=true")
	_ = fl.MarkHidden("property") // the flag exists
	return impact(c, "write")
}

func (a *app) produce(f produceFlags, args []string) error {
	topic, files := "", args
	if len(args) > 0 {
		topic, files = args[0], args[1:]
	}
	s, err := a.newSink(f, topic)
	if err != nil {
		return err
	}
	if f.create != "" {
		if err := a.createForProduce(topic, f.create); err != nil {
			return err
		}
	}
	if s.out, err = link.NewProducer(a.link(), f.link); err != nil {
		return err
	}
	typed := a.stdin // where a person types
	if len(files) > 0 {
		typed = nil
	}
	stop := a.progress(s.meter, typed)
	readErr := a.feed(s, f, files)
	closeErr := s.close(a.work)
	stop()
	outcome := s.outcome()
	a.say("%s", s.meter.Snapshot().Produced(s.name())) // also beside an error: what was read before it is written
	if outcome != nil {
		return outcome
	}
	return errors.Join(readErr, closeErr)
}

func (a *app) createForProduce(topic, spec string) error {
	if topic == "" {
		return fail.Usagef("--create needs a TOPIC argument")
	}
	t := link.NewTopic{Name: topic, IfNotExists: true, Configs: map[string]string{}}
	for item := range strings.SplitSeq(spec, ",") {
		name, value, ok := strings.Cut(item, "=")
		switch {
		case !ok:
			return fail.Usagef("--create %s: want partitions=N or a topic setting", item)
		case name == "partitions":
			if _, err := fmt.Sscan(value, &t.Partitions); err != nil || t.Partitions < 1 {
				return fail.Usagef("--create %s: want a number of partitions", item)
			}
		case name == "replicas":
			if _, err := fmt.Sscan(value, &t.Replicas); err != nil || t.Replicas < 1 {
				return fail.Usagef("--create %s: want a number of replicas", item)
			}
		default:
			t.Configs[name] = value
		}
	}
	return a.createTopic(t)
}

// feed reads records and hands them over until the input ends, a record
// fails, or an interrupt.
func (a *app) feed(s *sink, f produceFlags, files []string) error {
	if a.format == "file" {
		return a.feedFiles(s, files)
	}
	in, closeIn, err := a.open(files)
	if err != nil {
		return err
	}
	defer closeIn()
	name := a.format
	for _, p := range f.properties {
		if p == "parse.key=true" && name == "" {
			name = "kv"
		}
	}
	if len(files) == 0 && terminal.Is(a.stdin) {
		a.say("reading from stdin, one record per line; Ctrl-D to finish")
		in = &prompt{in: in, out: a.stderr}
	}
	return s.pump(a.soft, func() (format.Reader, error) {
		r, err := format.NewReader(name, in, f.read)
		if err != nil {
			return nil, fail.With(fail.Usage, "", err)
		}
		return r, nil
	})
}

// prompt shows a sign before each line of a person's input.
type prompt struct {
	in  io.Reader
	out io.Writer
}

func (p *prompt) Read(b []byte) (int, error) {
	fmt.Fprint(p.out, "> ")
	return p.in.Read(b)
}

func (a *app) open(files []string) (io.Reader, func(), error) {
	if len(files) == 0 {
		return a.stdin, func() {}, nil
	}
	var all []io.Reader
	var opened []*os.File
	closeAll := func() {
		for _, f := range opened {
			_ = f.Close() // read only
		}
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			closeAll()
			return nil, nil, fail.With(fail.NotFound, "", err)
		}
		opened = append(opened, f)
		all = append(all, f)
	}
	return io.MultiReader(all...), closeAll, nil
}

func (a *app) feedFiles(s *sink, files []string) error {
	if len(files) == 0 {
		return fail.Usagef("-f file needs FILE arguments: each file is one record")
	}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return fail.With(fail.NotFound, "", err)
		}
		if info.Size() > format.MaxRecordBytes {
			return fmt.Errorf("%s: %d bytes are more than a record can hold", name, info.Size())
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if a.soft.Err() != nil || s.stopped() {
			return nil
		}
		s.put(a.soft, format.Record{Partition: format.Unset, Offset: format.Unset, Timestamp: format.Unset, Value: b})
	}
	return nil
}

// sink is where the records of one produce command go.
type sink struct {
	flags   produceFlags
	topic   string
	headers []record.Header
	report  format.Appender
	stdout  io.Writer
	stderr  io.Writer
	out     link.Producer
	meter   *terminal.Meter
	read    int64

	mu     sync.Mutex
	topics map[string]bool // guarded by mu; written to
	failed int64           // guarded by mu
	first  error           // guarded by mu; the first failure
	text   []byte          // guarded by mu; buffer of report
	broken error           // guarded by mu; stdout or the dead-letter file
	dead   *os.File        // guarded by mu
}

func (a *app) newSink(f produceFlags, topic string) (*sink, error) {
	s := &sink{flags: f, topic: topic, stdout: a.stdout, stderr: a.stderr, meter: terminal.NewMeter(), topics: map[string]bool{}}
	if f.onError != "stop" && f.onError != "continue" {
		return nil, fail.Usagef("--on-error %s: want stop or continue", f.onError)
	}
	if topic == "" && a.format != "json" && !strings.Contains(a.format, "%t") {
		return nil, fail.Usagef("want a TOPIC, or a format that names it: -f json, or a string with %%t")
	}
	for _, h := range f.headers {
		i := strings.IndexAny(h, ":=")
		if i < 1 {
			return nil, fail.Usagef("-H %s: want name:value", h)
		}
		s.headers = append(s.headers, record.Header{Key: h[:i], Value: []byte(h[i+1:])})
	}
	var err error
	if f.report != "" {
		if s.report, err = format.NewAppender(f.report); err != nil {
			return nil, fail.With(fail.Usage, "", fmt.Errorf("--report: %w", err))
		}
	}
	if f.deadLetter != "" {
		s.dead, err = os.OpenFile(f.deadLetter, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	}
	return s, err
}

// pump reads in a goroutine of its own, because a read of stdin cannot be
// interrupted, and hands over in this one.
func (s *sink) pump(ctx context.Context, open func() (format.Reader, error)) error {
	type item struct {
		r   format.Record
		err error
	}
	items := make(chan item, 1024)
	group := run.NewGroup(ctx, "produce")
	defer group.Cancel() // a read of stdin ends with the process
	group.Go("read", func(ctx context.Context) {
		in, err := open()
		for {
			var it item
			if it.err = err; err == nil {
				it.r, it.err = in.Next()
			}
			select {
			case items <- it:
			case <-ctx.Done():
				return
			}
			if it.err != nil && !s.passable(it.err) {
				return
			}
		}
	})
	for {
		select {
		case <-ctx.Done():
			return nil
		case it := <-items:
			if errors.Is(it.err, io.EOF) {
				return nil
			}
			if it.err != nil && !s.passable(it.err) {
				return it.err
			}
			if s.stopped() {
				return nil
			}
			if it.err != nil {
				s.pass(it.err)
				continue
			}
			s.put(ctx, it.r)
		}
	}
}

// passable tells whether a line that is no record is to be counted and passed over.
func (s *sink) passable(err error) bool {
	var bad *format.BadLine
	return s.flags.onError == "continue" && errors.As(err, &bad)
}

// pass keeps such a line as the value of a failed record.
func (s *sink) pass(err error) {
	var bad *format.BadLine
	errors.As(err, &bad)
	s.read++
	s.meter.Sent()
	s.meter.Done(0, 0, true)
	r := format.Record{Topic: s.topic, Partition: format.Unset, Offset: format.Unset, Timestamp: format.Unset, Value: bad.Text}
	s.answer(s.read, r, link.Result{}, err)
}

func (s *sink) put(ctx context.Context, r format.Record) {
	s.read++
	number := s.read
	if s.topic != "" {
		r.Topic = s.topic
	}
	if s.flags.partition != format.Unset {
		r.Partition = s.flags.partition
	} else if !s.flags.keep {
		r.Partition = format.Unset
	}
	if s.flags.fixedKey != "" {
		r.Key = []byte(s.flags.fixedKey)
	}
	if s.flags.tombstone && len(r.Value) == 0 {
		r.Value = nil
	}
	r.Headers = append(r.Headers, s.headers...)
	size := len(r.Key) + len(r.Value)
	if r.Topic == "" {
		s.answer(number, r, link.Result{}, errs.Errorf(errs.InvalidRecord, "the record names no topic"))
		return
	}
	s.meter.Sent()
	sent := clock.Monotonic()
	s.out.Produce(ctx, r, func(res link.Result, err error) {
		s.meter.Done(size, clock.Since(sent), err != nil)
		s.answer(number, r, res, err)
	})
}

// answer is called once per record; in order per partition.
func (s *sink) answer(number int64, r format.Record, res link.Result, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.topics[r.Topic] = true
		s.reportLocked(r, res)
		return
	}
	s.failed++
	if s.first == nil {
		s.first = err
	}
	if s.failed <= 10 {
		fail.Print(s.stderr, fmt.Errorf("record %d%s to %s: %w", number, shortKey(r.Key), r.Topic, err))
	}
	if s.dead != nil {
		write, _ := format.NewAppender("json") // a preset
		line, _ := write(nil, &r)              // JSON takes any record
		if _, err := s.dead.Write(line); err != nil && s.broken == nil {
			s.broken = err
		}
	}
}

func (s *sink) reportLocked(r format.Record, res link.Result) {
	if s.report == nil || s.broken != nil {
		return
	}
	r.Partition, r.Offset, r.Timestamp = res.Partition, res.Offset, res.Timestamp
	var err error
	if s.text, err = s.report(s.text[:0], &r); err == nil {
		_, err = s.stdout.Write(s.text)
	}
	s.broken = err
}

func shortKey(key []byte) string {
	if len(key) == 0 {
		return ""
	}
	return fmt.Sprintf(" (key %.40q)", key)
}

func (s *sink) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken != nil || s.failed > 0 && s.flags.onError == "stop"
}

func (s *sink) close(ctx context.Context) error {
	err := s.out.Close(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead != nil {
		err = errors.Join(err, s.dead.Close())
	}
	return errors.Join(err, s.broken)
}

// outcome is the command's error: the failure itself where nothing was
// written, else that some records failed.
func (s *sink) outcome() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == 0 {
		return nil
	}
	if s.failed > 10 {
		fmt.Fprintf(s.stderr, "... and %s more\n", terminal.Count(s.failed-10))
	}
	exit := fail.Exit(s.first)
	if len(s.topics) > 0 || exit == fail.Other {
		exit = fail.Partial
	}
	return fail.Silent(exit)
}

func (s *sink) name() string {
	if s.topic != "" {
		return s.topic
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return counted(len(s.topics), "topic")
}
