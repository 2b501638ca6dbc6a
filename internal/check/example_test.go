package check_test

import (
	"fmt"

	"github.com/tidemarkhq/tidemark/internal/check"
)

// A broker acknowledges two records, and has forgotten the first when it is read after a restart.
func Example() {
	rec := check.NewRecorder("example", 1, 1000)
	key := check.Key{Topic: "orders", Partition: 0}
	var clock int64 // a suite reads its monotonic clock
	now := func() int64 { clock += 1_000_000; return clock }

	for i, value := range []string{"p-0", "p-1"} {
		op := check.Op{Kind: check.Send, Process: "p", Key: key, Invoke: now(), Records: []check.Record{{Offset: check.NoOffset, Value: value}}}
		ticket := rec.Begin(op)
		op.Records[0].Offset = int64(i) // as the broker answers
		op.Complete, op.Outcome = now(), check.OK
		rec.End(ticket, op)
	}
	killed := now()
	rec.Fault(check.Fault{Kind: "kill", From: killed, Until: now()})
	rec.Add(check.Op{
		Kind: check.Final, Process: "end", Key: key, Invoke: now(), Complete: now(), Outcome: check.OK,
		Offset: 0, End: 2, Records: []check.Record{{Offset: 1, Value: "p-1"}},
	})

	report := check.Check(rec.History())
	fmt.Println(report.Result(nil).Verdict, report.Counts[check.Lost])
	fmt.Println(report.Err(check.Require{check.SawFaults: 1}))
	// Output:
	// fail 1
	// FAIL: lost=1
	//   lost orders/0: "p-0" is gone from offset 0
	//     p send orders/0 0:"p-0" ok 0.001000s..0.002000s
	//     end final orders/0 [0,2) 1:"p-1" ok 0.007000s..0.008000s
}
