package broker

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// childVariable names the data directory of a process that is there to be killed.
const childVariable = "TIDEMARK_TEST_BROKER_CHILD"

// child runs a broker that appends to its own topic and says which record was
// acknowledged at which offset, until it is killed.
func child(dir string) {
	ctx := context.Background()
	die := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	b, err := New(testConfig(dir), Deps{})
	die(err)
	die(b.Start(ctx))
	_, _, err = b.controller.CreateTopic(ctx, controller.NewTopic{Name: "orders", Partitions: 2, Configs: map[string]string{"segment.bytes": "64KiB"}, IfNotExists: true})
	die(err)
	var mu sync.Mutex
	loads := run.Owned("load")
	for p := range int32(2) {
		loads.Go("partition", func(context.Context) {
			for i := 0; ; i++ {
				value := fmt.Sprintf("%d-%d-%d-%s", os.Getpid(), p, i, strings.Repeat("x", 300))
				builder := record.NewBuilder(record.BuilderConfig{})
				builder.Append(record.Record{Timestamp: 1, Value: []byte(value)})
				batch, err := builder.Build()
				die(err)
				pending, err := b.replicas.Produce(ctx, "orders", p, partition.Append{Batch: batch})
				if errs.Retriable(err) {
					continue
				}
				die(err)
				a, err := pending.Result(ctx)
				die(err)
				mu.Lock()
				fmt.Println(p, a.BaseOffset, value)
				mu.Unlock()
			}
		})
	}
	select {} // until it is killed
}

// The process is killed in the middle of its work, again and again; what it
// had acknowledged is there, at its offset, and nothing is there twice.
func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	t.Parallel() // it waits more than it works
	dir := t.TempDir()
	acked := [2]map[record.Offset]string{{}, {}}
	for range 3 {
		killAfter(t, dir, 400, &acked)
	}
	b := start(t, testConfig(dir))
	if b.starts != 4 {
		t.Errorf("three deaths and a start count as %d starts", b.starts)
	}
	for p := range int32(2) {
		got := b.read(t, "orders", p)
		for offset, value := range acked[p] {
			if got[offset] != value {
				t.Errorf("partition %d offset %d: acknowledged %.20q, found %.20q", p, offset, value, got[offset])
			}
		}
		seen := map[string]record.Offset{}
		for offset, value := range got {
			if twice, ok := seen[value]; ok {
				t.Errorf("partition %d: %.20q is at %d and %d", p, value, twice, offset)
			}
			seen[value] = offset
		}
		if a := b.mustProduce(t, "orders", p, "next"); int(a.BaseOffset) != len(got) {
			t.Errorf("partition %d goes on at %d after %d records", p, a.BaseOffset, len(got))
		}
	}
	t.Logf("%d and %d acknowledged records survived", len(acked[0]), len(acked[1]))
}

func killAfter(t *testing.T, dir string, n int, acked *[2]map[record.Offset]string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	var stderr lines
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	heard := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var p int
		var offset record.Offset
		var value string
		if _, err := fmt.Sscan(lines.Text(), &p, &offset, &value); err != nil || !strings.HasSuffix(value, "xxx") {
			continue // the last line may be cut short
		}
		acked[p][offset] = value
		if heard++; heard == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // it was killed
	if heard < n {
		t.Fatalf("the process ended by itself after %d records:\n%s", heard, stderr.String())
	}
}
