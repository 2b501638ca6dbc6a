// Package check judges what a cluster did under faults. Every suite records a History in the same
// format, and one checker looks for every broken promise in it.
//
// # How to use it
//
// A suite gives each client a process name and a Recorder, and records what the client did and what it
// was told, with times of one monotonic clock:
//
//	rec := check.NewRecorder("kill", seed, 1_000_000)
//	op := check.Op{Kind: check.Send, Process: "p1", Key: key, Invoke: now(),
//		Records: []check.Record{{Offset: check.NoOffset, Value: "p1-17"}}}
//	t := rec.Begin(op)
//	offset, err := produce(…)
//	op.Complete, op.Outcome = now(), check.OK // or Fail, or Unknown
//	op.Records[0].Offset = offset
//	rec.End(t, op)
//
// Faults, and what else the run must come across, are recorded beside it:
//
//	rec.Fault(check.Fault{Kind: "kill", From: killed, Until: restarted})
//	rec.Saw("repaired_tails", 1)
//
// At the end it heals everything, reads each partition from its log start to its end from a leader, records that
// as Final, and judges:
//
//	report := check.Check(rec.History())
//	require := check.Require{check.SawElections: 1, check.SawUnknown: 1}
//	t.Log(report.Result(require)) // the RESULT line
//	if err := report.Err(require); err != nil {
//		t.Error(err) // with the operations that show it
//	}
//
// # What keeps a verdict honest
//
// Outcomes decide everything. Fail means that the operation did not happen and never will; a timeout, a lost
// connection and a client that died are Unknown. One that is called failed and happened is reported as an
// aborted read; one that is called unknown and has failed hides what it could have shown.
//
// Values identify records: each is sent once per key. It may be sent again as long as no attempt was acknowledged.
//
// Invoke is read before a request can have left, Complete after its answer is there. Two operations are
// ordered only where one completed strictly before the other was invoked, so that equal times, which a
// virtual clock gives often, order nothing.
//
// A record may leave the log only through a Trim that did not fail, or below a LogStart that was seen. A Final
// that begins later than these allow shows the records between as lost. So a suite with
// retention records the log start that it sees, and says with that: this is where retention should be. Retention may
// have moved it at any time since it was seen before; looking often keeps what that excuses small.
//
// A consumer that moves by itself, such as to the end of the log after its offset is out of range, moves
// by a Seek. After a crash of a client its successor gets a new process name, or an Assign.
//
// Windows come from all strong acknowledgements, so that they are as fine as the load is steady. A suite with a
// prober calls Windows with its times and sets Report.Windows before Result.
//
// Without a Final, a record is lost if nobody read it and somebody read one behind it.
//
// Offsets may be sparse. What lies between two offsets at which records are known is nothing.
//
// Report.Checked counts how often each anomaly could have been found. Where it is 0, the
// history says nothing of it; Require takes Checked(anomaly) as well as any counter.
//
// # Invariants
//
// Check takes O(n log n) time, changes nothing and reads no clock. It finds the same in the same
// history. The package imports nothing of ours and works in a wasip1 module.
package check
