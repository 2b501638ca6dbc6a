// Package demo shows the whole way of a record on real data, and checks it.
//
// It prints only what it measured, and it fails when a record is missing,
// changed, or there twice. So it is a smoke test too.
package demo

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tidemarkhq/tidemark/admin"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/consumer"
	"github.com/tidemarkhq/tidemark/internal/child"
	"github.com/tidemarkhq/tidemark/internal/clock"
)

// Config says how to run the demo.
type Config struct {
	Out    io.Writer
	Keep   bool                             // keep the data
	Verify func(dir string) (string, error) // checks a data directory; nil: skip the step
}

const (
	partitions = 6
	members    = 3
	stepLimit  = 90 * time.Second
)

// show is one run of the demo.
type show struct {
	Config
	dir    string // of everything
	data   string // of the broker
	broker *child.Broker
	admin  *admin.Client
	begun  clock.Mono
}

// GoAPI loads Go's API history, consumes it through a group, kills the broker
// in the middle of a second load, and proves that nothing acknowledged is missing.
func GoAPI(ctx context.Context, c Config) error {
	in, err := goAPI(ctx)
	if err != nil {
		return err
	}
	return play(ctx, c, func(ctx context.Context, s *show) error { return s.goAPI(ctx, in) })
}

// play gives f a broker in a temporary directory.
func play(ctx context.Context, c Config, f func(context.Context, *show) error) (err error) {
	s := &show{Config: c, begun: clock.Monotonic()}
	if s.dir, err = os.MkdirTemp("", "tidemark-demo-"); err != nil {
		return err
	}
	s.data = filepath.Join(s.dir, "data")
	defer func() {
		if s.broker != nil {
			err = errors.Join(err, s.broker.Kill())
		}
		if c.Keep {
			fmt.Fprintf(c.Out, "\nthe data is kept in %s\n", s.dir)
		} else {
			err = errors.Join(err, os.RemoveAll(s.dir))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 2*stepLimit)
	defer cancel()
	if err := s.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.admin.Close()) }()
	return f(ctx, s)
}

func (s *show) say(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }

// command prints the command that does the same.
func (s *show) command(format string, args ...any) { s.say("\n$ "+format, args...) }

func (s *show) start(ctx context.Context) error {
	s.say("$ tidemark serve --set node.data_dir=%s", s.data)
	begun := clock.Monotonic()
	b, err := child.Start(ctx, child.Config{Dir: s.data})
	if err != nil {
		return err
	}
	s.broker = b
	s.say("  broker with process id %d serves at %s after %s", b.PID, b.GRPC, terminal.Duration(clock.Since(begun)))
	s.admin, err = admin.New([]string{b.GRPC})
	return err
}

func (s *show) goAPI(ctx context.Context, in input) error {
	if err := s.create(ctx, "go-api"); err != nil {
		return err
	}
	want, err := s.load(ctx, "go-api", in)
	if err != nil {
		return err
	}
	if err := s.consumeAsGroup(ctx, "go-api", want); err != nil {
		return err
	}
	if err := s.create(ctx, "go-api-2"); err != nil {
		return err
	}
	if err := s.killWhileLoading(ctx, "go-api-2", in); err != nil {
		return err
	}
	if err := s.stop(ctx); err != nil {
		return err
	}
	s.say("\nall checks passed in %s", terminal.Duration(clock.Since(s.begun)))
	return nil
}

func (s *show) create(ctx context.Context, topic string) error {
	s.command("tidemark topic create %s -p %d -b %s", topic, partitions, s.broker.GRPC)
	begun := clock.Monotonic()
	t, _, err := s.admin.CreateTopic(ctx, admin.NewTopic{Name: topic, Partitions: partitions})
	if err != nil {
		return fmt.Errorf("create topic %s: %w", topic, err)
	}
	s.say("  created with %s, all led, in %s", terminal.Counted(int64(len(t.Partitions)), "partition"), terminal.Duration(clock.Since(begun)))
	return nil
}

// stop ends the broker in order and checks its files.
func (s *show) stop(ctx context.Context) error {
	begun := clock.Monotonic()
	if err := s.broker.Stop(ctx); err != nil {
		return err
	}
	s.broker = nil
	s.say("\nthe broker stopped in order in %s", terminal.Duration(clock.Since(begun)))
	if s.Verify == nil {
		return nil
	}
	s.command("tidemark verify %s", s.data)
	text, err := s.Verify(s.data)
	if err != nil {
		return err
	}
	s.say("  %s", text)
	return nil
}

// sum is a checksum of a set of records: it does not depend on their order.
type sum struct {
	records int64
	crc     uint64
}

var crcTable = crc64.MakeTable(crc64.ECMA)

func recordSum(key, value []byte) uint64 {
	crc := crc64.Update(0, crcTable, key)
	crc = crc64.Update(crc, crcTable, []byte{0})
	return crc64.Update(crc, crcTable, value)
}

func (s *sum) add(crc uint64) {
	s.records++
	// A sum, not xor: two equal records must not cancel out.
	s.crc += crc
}

// place is where a record is.
type place struct {
	partition int32
	offset    int64
}

// readAll reads a topic from start to end.
func (s *show) readAll(ctx context.Context, topic string, each func(consumer.Record) error) error {
	ranges, err := s.admin.TopicOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("offsets of %s: %w", topic, err)
	}
	at := map[consumer.TopicPartition]consumer.Position{}
	left := int64(0)
	for _, r := range ranges {
		if r.Err != nil {
			return fmt.Errorf("offsets of %s/%d: %w", topic, r.Partition, r.Err)
		}
		at[consumer.TopicPartition{Topic: topic, Partition: r.Partition}] = consumer.AtStart()
		left += int64(r.End - r.Start)
	}
	c, err := consumer.New([]string{s.broker.GRPC})
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	if err := c.Assign(ctx, at); err != nil {
		return err
	}
	for left > 0 {
		records, err := c.Poll(ctx, 0)
		if err != nil {
			return fmt.Errorf("consume %s: %w", topic, err)
		}
		for _, r := range records {
			if err := each(r); err != nil {
				return err
			}
		}
		left -= int64(len(records))
	}
	return nil
}
