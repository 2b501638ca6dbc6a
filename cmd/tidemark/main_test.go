package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/cli"
	"github.com/tidemarkhq/tidemark/internal/child"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"tidemark": tidemark,
		"consumer": tidemark,
		"producer": tidemark,
	})
}

// tidemark is the program, and after it a look for goroutines that it left behind. Only
// a read of stdin may be left: nothing can cancel it.
func tidemark() {
	code := cli.Main(context.Background(), os.Args)
	err := goleak.Find(goleak.IgnoreAnyFunction("os.(*File).Read"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "goroutines left behind:", err)
		os.Exit(99)
	}
	os.Exit(code)
}

// Every command, format and exit code, as a user would type it. A script has a
// broker of its own after "broker", and a Kafka cluster after "kafka".
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:      "testdata/script",
		Deadline: time.Now().Add(8 * limit), // for all scripts together; with -race they take minutes
		Setup: func(e *testscript.Env) error {
			e.Setenv("NO_COLOR", "1")
			e.Values["world"] = &world{}
			// A script that forgets to start a broker must not find one on this machine.
			e.Setenv("TIDEMARK_BROKERS", "127.0.0.1:1")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"broker": startBroker, "crash": crashBroker, "halt": haltBroker,
			"kafka": startKafka, "exit": exitCode, "await": await, "flip": flip, "repeat": repeat,
		},
	})
}

const limit = 60 * time.Second

// world is what a script has started.
type world struct {
	broker *child.Broker
	dir    string
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value("world").(*world) }

// broker [key=value...] starts a broker on $WORK/data, at the address it had before if
// it ran before, and points TIDEMARK_BROKERS to it.
func startBroker(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || w.broker != nil {
		ts.Fatalf("usage: broker [key=value...], while none is running")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	w.dir = ts.MkAbs("data")
	b, err := child.Start(ctx, child.Config{Dir: w.dir, GRPC: ts.Getenv("BROKER"), Set: args})
	ts.Check(err)
	w.broker = b
	ts.Defer(func() {
		if w.broker == b {
			ts.Logf("broker: %s", b.Logs())
			_ = b.Kill() // the script is over
		}
	})
	for name, value := range map[string]string{"BROKER": b.GRPC, "TIDEMARK_BROKERS": b.GRPC, "ADMIN": b.Admin, "DATA": w.dir} {
		ts.Setenv(name, value)
	}
}

// crash kills the broker with SIGKILL.
func crashBroker(ts *testscript.TestScript, _ bool, _ []string) {
	w := worldOf(ts)
	if w.broker == nil {
		ts.Fatalf("there is no broker")
	}
	ts.Check(w.broker.Kill())
	w.broker = nil
}

// halt ends the broker with SIGTERM; its exit code must be 0. (A script's own stop ends the script.)
func haltBroker(ts *testscript.TestScript, _ bool, _ []string) {
	w := worldOf(ts)
	if w.broker == nil {
		ts.Fatalf("there is no broker")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	ts.Check(w.broker.Stop(ctx))
	w.broker = nil
}

// kafka starts a Kafka cluster in this process and sets $KAFKA.
func startKafka(ts *testscript.TestScript, _ bool, _ []string) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	ts.Check(err)
	ts.Defer(c.Close)
	ts.Setenv("KAFKA", strings.Join(c.ListenAddrs(), ","))
}

// exit CODE COMMAND... runs a command and checks its exit code.
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("%s ended with exit code %d, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// await FILE [TEXT] waits until a file is there and holds a text.
func await(ts *testscript.TestScript, _ bool, args []string) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(limit)
	for {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && (len(args) < 2 || strings.Contains(string(b), args[1])) {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			ts.Fatalf("%s does not come: %v\n%s", args[0], err, b)
		}
	}
}

// flip PATTERN OFFSET flips one bit of the largest file that matches.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	var largest string
	var size int64
	err := filepath.WalkDir(ts.MkAbs("data"), func(name string, d os.DirEntry, err error) error {
		if ok, _ := filepath.Match(args[0], filepath.Base(name)); err == nil && ok {
			if info, err := d.Info(); err == nil && info.Size() > size {
				largest, size = name, info.Size()
			}
		}
		return err
	})
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	b, err := os.ReadFile(largest)
	ts.Check(err)
	if at >= len(b) {
		ts.Fatalf("%s has %d bytes only", largest, len(b))
	}
	b[at] ^= 4
	ts.Check(os.WriteFile(largest, b, 0o600))
	ts.Logf("flipped a bit of byte %d of %s (%d bytes)", at, largest, len(b))
}

// repeat N TEXT FILE writes a text many times, without line ends.
func repeat(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(strings.Repeat(args[1], n)), 0o600))
}
