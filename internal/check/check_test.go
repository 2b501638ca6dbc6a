package check_test

import (
	"fmt"
	"strings"
	"testing"

	. "github.com/tidemarkhq/tidemark/internal/check"
)

var k0 = Key{Topic: "t", Partition: 0}

// at is an operation that takes from until until, in seconds.
func at(from, until int64, op Op) Op {
	const second = 1_000_000_000
	op.Invoke, op.Complete = from*second, until*second
	if op.Outcome == "" {
		op.Outcome = OK
	}
	if op.Key.IsZero() && op.Kind != Assign && op.Kind != Subscribe && op.Kind != Fence {
		op.Key = k0
	}
	if op.Process == "" {
		op.Process = "p"
	}
	return op
}

// recs turns "5:a 6:b" into records; ":a" has no offset.
func recs(s string) (list []Record) {
	for _, f := range strings.Fields(s) {
		o, v, _ := strings.Cut(f, ":")
		offset := NoOffset
		if o != "" {
			fmt.Sscan(o, &offset)
		}
		list = append(list, Record{Offset: offset, Value: v})
	}
	return list
}

func send(records string) Op    { return Op{Kind: Send, Records: recs(records)} }
func poll(p, records string) Op { return Op{Kind: Poll, Process: p, Records: recs(records)} }
func final(s, e int64, rs string) Op {
	return Op{Kind: Final, Process: "f", Offset: s, End: e, Records: recs(rs)}
}
func latest(o int64) Op           { return Op{Kind: Latest, Process: "l", Offset: o} }
func trim(o int64) Op             { return Op{Kind: Trim, Process: "t", Offset: o} }
func logStart(o int64) Op         { return Op{Kind: LogStart, Process: "t", Offset: o} }
func assign(p string) Op          { return Op{Kind: Assign, Process: p, Offset: NoOffset} }
func seek(p string, o int64) Op   { return Op{Kind: Seek, Process: p, Offset: o} }
func commit(p string, o int64) Op { return Op{Kind: Commit, Process: p, Group: "g", Offset: o} }
func committed(o int64) Op        { return Op{Kind: Committed, Process: "w", Group: "g", Offset: o} }
func fence(pid int64, epoch int16) Op {
	return Op{Kind: Fence, Process: "i", Producer: &Producer{ID: pid, Epoch: epoch}}
}
func own(p string, from, to int32) Op {
	return Op{Kind: Own, Process: p, Group: "g", Generation: from, Through: to}
}
func unknown(o Op) Op      { o.Outcome = Unknown; return o }
func failed(o Op) Op       { o.Outcome = Fail; return o }
func weak(o Op) Op         { o.Weak = true; return o }
func reset(o Op) Op        { o.Reset = true; return o }
func grouped(o Op) Op      { o.Group = "g"; return o }
func by(p string, o Op) Op { o.Process = p; return o }
func idem(pid int64, epoch int16, seq int32, o Op) Op {
	o.Producer = &Producer{ID: pid, Epoch: epoch, Seq: seq, Idempotent: true}
	return o
}

// none says that the history is clean.
const none = Anomaly("")

type example struct {
	name  string
	want  Anomaly // and no other, but for also
	ops   []Op
	facts []Fact
}

// also is what an example shows besides: a read before the send is out of order as well.
var also = map[string]Anomaly{"a record that was read before it was sent": RealtimeOrder}

var examples = []example{
	{"everything is well", none, []Op{at(1, 2, send("0:a")), at(3, 4, send("1:b")), at(5, 6, final(0, 2, "0:a 1:b"))}, nil},

	{"an acknowledged record is not in the log", Lost, []Op{at(1, 2, send("0:a")), at(3, 4, send("1:b")), at(5, 6, final(0, 2, "1:b"))}, nil},
	{"the log ends before an acknowledged record", Lost, []Op{at(1, 2, send("0:a")), at(3, 4, send("1:b")), at(5, 6, final(0, 1, "0:a"))}, nil},
	{"the log is empty", Lost, []Op{at(1, 2, send("0:a")), at(5, 6, final(0, 0, ""))}, nil},
	{"the log begins behind an acknowledged record", Lost, []Op{at(1, 2, send("0:a 1:b")), at(5, 6, final(1, 2, "1:b"))}, nil},
	{"a record that was read is gone", Lost, []Op{at(1, 2, unknown(send(":a"))), at(3, 4, poll("c", "0:a")), at(5, 6, final(0, 1, ""))}, nil},
	{"a record that was in one final read is not in the next", Lost, []Op{at(1, 2, send("0:a")), at(3, 4, final(0, 1, "0:a")), at(5, 6, final(0, 1, ""))}, nil},
	{"a record below another that was read, without a final read", Lost, []Op{at(1, 2, send("0:a")), at(3, 4, send("1:b")), at(5, 6, poll("c", "1:b"))}, nil},
	{"a trim that failed takes nothing", Lost, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, failed(trim(1))), at(5, 6, final(1, 2, "1:b"))}, nil},
	{"a trim takes no more than was asked for", Lost, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, trim(1)), at(5, 6, final(2, 3, "2:c"))}, nil},
	{"a trim after the final read excuses nothing", Lost, []Op{at(1, 2, send("0:a 1:b")), at(5, 6, final(0, 2, "1:b")), at(7, 8, trim(2))}, nil},
	{"a trimmed record", none, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, trim(1)), at(5, 6, final(1, 2, "1:b"))}, nil},
	{"a trim of unknown outcome may have been done", none, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, unknown(trim(1))), at(5, 6, final(1, 2, "1:b"))}, nil},
	{"a trim of unknown outcome may not have been done", none, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, unknown(trim(1))), at(5, 6, final(0, 2, "0:a 1:b"))}, nil},
	{"retention has moved the log start", none, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, logStart(1)), at(5, 6, final(1, 2, "1:b"))}, nil},
	{"all is trimmed", none, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, trim(2)), at(5, 6, final(2, 2, ""))}, nil},
	{"a send of unknown outcome is not there", none, []Op{at(1, 2, unknown(send(":a"))), at(5, 6, final(0, 0, ""))}, nil},
	{"a send of unknown outcome is there", none, []Op{at(1, 2, unknown(send(":a"))), at(5, 6, final(0, 1, "0:a"))}, nil},
	{"a send of unknown outcome appears late", none, []Op{at(1, 2, unknown(send(":a"))), at(3, 4, send("0:b")), at(5, 6, final(0, 1, "0:b")), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a weak acknowledgement is lost, and its offset used again", none, []Op{at(1, 2, weak(send("0:a"))), at(3, 4, send("0:b")), at(5, 6, final(0, 1, "0:b"))}, nil},
	{"offsets are sparse", none, []Op{at(1, 2, send("3:a")), at(3, 4, send("7:b")), at(5, 6, final(0, 9, "3:a 7:b"))}, nil},
	{"the final read comes in pieces", none, []Op{at(1, 2, send("0:a 1:b 2:c")), at(5, 6, final(0, 2, "0:a 1:b")), at(6, 7, final(2, 3, "2:c"))}, nil},
	{"a record sent during the final read may be missing, if another has it", none, []Op{at(1, 5, send("0:a")), at(4, 6, final(0, 0, "")), at(7, 8, final(0, 1, "0:a"))}, nil},

	{"an acknowledged record is never read", Unseen, []Op{at(1, 2, send("0:a"))}, nil},
	{"the final read came too early", Unseen, []Op{at(1, 2, final(0, 0, "")), at(3, 4, send("0:a"))}, nil},
	{"the last records were not read, without a final read", Unseen, []Op{at(1, 2, send("0:a")), at(3, 4, send("1:b")), at(5, 6, poll("c", "0:a"))}, nil},
	{"a record that somebody has read was seen", none, []Op{at(1, 2, send("0:a")), at(5, 6, poll("c", "0:a"))}, nil},
	{"a record that was trimmed before anybody read it", none, []Op{at(1, 2, send("0:a")), at(5, 6, trim(1))}, nil},

	{"two acknowledgements of one offset", InconsistentOffsets, []Op{at(1, 3, send("0:a")), at(2, 4, by("q", send("0:b"))), at(5, 6, poll("c", "0:a"))}, nil},
	{"two readers see different values", InconsistentOffsets, []Op{at(1, 2, unknown(send(":a"))), at(1, 2, unknown(send(":b"))), at(3, 4, poll("c", "0:a")), at(3, 4, poll("d", "0:b"))}, nil},
	{"two readers see the same", none, []Op{at(1, 2, send("0:a")), at(3, 4, poll("c", "0:a")), at(3, 4, poll("d", "0:a")), at(5, 6, final(0, 1, "0:a"))}, nil},

	{"an idempotent send appears twice", DuplicateIdempotent, []Op{at(1, 2, idem(1, 0, 0, send("0:a"))), at(5, 6, final(0, 2, "0:a 1:a"))}, nil},
	{"an idempotent send of unknown outcome appears twice", DuplicateIdempotent, []Op{at(1, 2, unknown(idem(1, 0, 0, send(":a")))), at(5, 6, final(0, 2, "0:a 1:a"))}, nil},
	{"a retry with the same sequence appears twice", DuplicateIdempotent, []Op{at(1, 2, unknown(idem(1, 0, 0, send(":a")))), at(3, 4, idem(1, 0, 0, send("1:a"))), at(5, 6, final(0, 2, "0:a 1:a"))}, nil},
	{"a retry with the same sequence appears once", none, []Op{at(1, 2, unknown(idem(1, 0, 0, send(":a")))), at(3, 4, idem(1, 0, 0, send("0:a"))), at(5, 6, final(0, 1, "0:a"))}, nil},
	{"the same value sent again under another producer may appear twice", none, []Op{at(1, 2, unknown(idem(1, 0, 0, send(":a")))), at(3, 4, idem(2, 0, 0, send("1:a"))), at(5, 6, final(0, 2, "0:a 1:a"))}, nil},
	{"a plain producer's retry appears twice", none, []Op{at(1, 2, unknown(send(":a"))), at(3, 4, send("1:a")), at(5, 6, final(0, 2, "0:a 1:a"))}, nil},
	{"a plain producer's client retries by itself", none, []Op{at(1, 2, send("1:a")), at(5, 6, final(0, 2, "0:a 1:a"))}, nil},

	{"a sequence is missing in the middle", SequenceGap, []Op{
		at(1, 2, idem(1, 0, 0, send("0:a"))), at(1, 2, unknown(idem(1, 0, 1, send(":b")))), at(1, 3, idem(1, 0, 2, send("1:c"))), at(5, 6, final(0, 2, "0:a 1:c"))}, nil},
	{"the last sequences are missing", none, []Op{
		at(1, 2, idem(1, 0, 0, send("0:a"))), at(1, 2, unknown(idem(1, 0, 1, send(":b")))), at(1, 3, unknown(idem(1, 0, 2, send(":c")))), at(5, 6, final(0, 1, "0:a"))}, nil},
	{"a sequence is used for another value after a failure", none, []Op{
		at(1, 2, idem(1, 0, 0, send("0:a"))), at(1, 2, failed(idem(1, 0, 1, send(":b")))), at(3, 4, idem(1, 0, 1, send("1:c"))), at(3, 4, idem(1, 0, 2, send("2:d"))), at(5, 6, final(0, 3, "0:a 1:c 2:d"))}, nil},
	{"a missing sequence has been trimmed", none, []Op{
		at(1, 2, idem(1, 0, 0, send("0:a"))), at(1, 2, unknown(idem(1, 0, 1, send(":b")))), at(1, 3, idem(1, 0, 2, send("2:c"))), at(3, 4, trim(2)), at(5, 6, final(2, 3, "2:c"))}, nil},
	{"nobody has read what a missing sequence became", none, []Op{
		at(1, 2, idem(1, 0, 0, send("0:a"))), at(1, 2, unknown(idem(1, 0, 1, send(":b")))), at(1, 3, idem(1, 0, 2, send("2:c"))), at(5, 6, poll("c", "0:a")), at(5, 6, poll("d", "2:c"))}, nil},

	{"a record of a failed send is read", AbortedRead, []Op{at(1, 2, failed(send(":a"))), at(5, 6, final(0, 1, "0:a"))}, nil},
	{"one attempt failed, and another is unknown", none, []Op{at(1, 2, unknown(send(":a"))), at(3, 4, failed(send(":a"))), at(5, 6, final(0, 1, "0:a"))}, nil},
	{"a failed send is not there", none, []Op{at(1, 2, failed(send(":a"))), at(5, 6, final(0, 0, ""))}, nil},

	{"a record that nobody sent", Phantom, []Op{at(1, 2, send("0:a")), at(5, 6, final(0, 2, "0:a 1:x"))}, nil},
	{"a record that was read before it was sent", Phantom, []Op{at(1, 2, poll("c", "0:a")), at(3, 4, unknown(send(":a"))), at(5, 6, final(0, 1, "0:a"))}, nil},
	{"a record of another partition", Phantom, []Op{
		at(1, 2, send("0:a")), at(1, 2, Op{Kind: Send, Key: Key{"t", 1}, Records: recs("0:b")}), at(5, 6, final(0, 1, "0:a")), at(5, 6, Op{Kind: Final, Key: Key{"t", 1}, Offset: 0, End: 2, Records: recs("0:b 1:a")})}, nil},
	{"a record that is read while it is sent", none, []Op{at(1, 4, send("0:a")), at(2, 3, poll("c", "0:a")), at(5, 6, final(0, 1, "0:a"))}, nil},

	{"a consumer jumps over a record between polls", PollSkip, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(5, 6, poll("c", "2:c")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},
	{"a consumer jumps over a record inside a poll", PollSkip, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a 2:c")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},
	{"a consumer jumps over a record of unknown outcome", PollSkip, []Op{at(1, 2, send("0:a")), at(1, 2, unknown(send(":b"))), at(2, 3, send("2:c")), at(3, 4, poll("c", "0:a 2:c")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},
	{"a consumer jumps behind the offset that it was assigned at", PollSkip, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, seek("c", 0)), at(5, 6, poll("c", "1:b")), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"a consumer jumps although one poll had failed", PollSkip, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(4, 5, failed(poll("c", ""))), at(5, 6, poll("c", "2:c")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},
	{"gaps in the offsets are no skips", none, []Op{at(1, 2, send("0:a 5:b")), at(3, 4, poll("c", "0:a")), at(5, 6, poll("c", "5:b")), at(7, 8, final(0, 6, "0:a 5:b"))}, nil},
	{"a seek between polls", none, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(4, 5, seek("c", 2)), at(5, 6, poll("c", "2:c")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},
	{"an assignment of all between polls", none, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "1:b")), at(4, 5, assign("c")), at(5, 6, poll("c", "0:a")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},
	{"a poll of unknown outcome may have read", none, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(4, 5, unknown(poll("c", ""))), at(5, 6, poll("c", "2:c")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},
	{"skipped records had been trimmed", none, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(4, 5, trim(2)), at(5, 6, poll("c", "2:c")), at(7, 8, final(2, 3, "2:c"))}, nil},
	{"skipped records were trimmed after the poll", PollSkip, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(5, 6, poll("c", "2:c")), at(7, 8, trim(2)), at(9, 10, final(2, 3, "2:c"))}, nil},
	{"skipped records fell to retention before anybody looked", none, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(5, 6, poll("c", "2:c")), at(7, 8, logStart(2)), at(9, 10, final(2, 3, "2:c"))}, nil},
	{"skipped records fell to retention later", PollSkip, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(5, 6, poll("c", "2:c")), at(7, 8, logStart(0)), at(8, 9, logStart(2)), at(9, 10, final(2, 3, "2:c"))}, nil},
	{"two consumers do not share a position", none, []Op{at(1, 2, send("0:a 1:b 2:c")), at(3, 4, poll("c", "0:a")), at(5, 6, poll("d", "2:c")), at(7, 8, final(0, 3, "0:a 1:b 2:c"))}, nil},

	{"a consumer goes back", PollNonmonotonic, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, poll("c", "0:a 1:b")), at(5, 6, poll("c", "0:a")), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"a consumer reads a record again", PollNonmonotonic, []Op{at(1, 2, send("0:a")), at(3, 4, poll("c", "0:a")), at(5, 6, poll("c", "0:a")), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"a poll is not in order", PollNonmonotonic, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, poll("c", "1:b 0:a")), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"a member goes back while it owns the partition", PollNonmonotonic, []Op{at(1, 2, send("0:a")), at(2, 9, own("c", 1, 1)), at(3, 4, grouped(poll("c", "0:a"))), at(5, 6, grouped(poll("c", "0:a"))), at(9, 10, final(0, 1, "0:a"))}, nil},
	{"a member goes back before it knows that it has lost the partition", PollNonmonotonic, []Op{at(1, 2, send("0:a")), at(2, 9, unknown(own("c", 1, 1))), at(3, 4, grouped(poll("c", "0:a"))), at(5, 6, grouped(poll("c", "0:a"))), at(9, 10, final(0, 1, "0:a"))}, nil},
	{"a member reads again what it got anew", none, []Op{at(1, 2, send("0:a")), at(2, 4, own("c", 1, 1)), at(3, 4, grouped(poll("c", "0:a"))), at(5, 9, own("c", 2, 2)), at(6, 7, grouped(poll("c", "0:a"))), at(9, 10, final(0, 1, "0:a"))}, nil},
	{"a member whose partitions are not known", none, []Op{at(1, 2, send("0:a")), at(3, 4, grouped(poll("c", "0:a"))), at(6, 7, grouped(poll("c", "0:a"))), at(9, 10, final(0, 1, "0:a"))}, nil},
	{"a rebalance during a poll", none, []Op{at(1, 2, send("0:a 1:b")), at(2, 4, own("c", 1, 1)), at(5, 9, own("c", 2, 2)), at(3, 7, grouped(poll("c", "0:a 1:b 0:a"))), at(9, 10, final(0, 2, "0:a 1:b"))}, nil},

	{"idempotent sends land in reverse", SendNonmonotonic, []Op{at(1, 5, idem(1, 0, 0, send("1:a"))), at(2, 5, idem(1, 0, 1, send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"an idempotent send of unknown outcome lands behind a later one", SendNonmonotonic, []Op{at(1, 5, unknown(idem(1, 0, 0, send(":a")))), at(2, 5, idem(1, 0, 1, send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"sends begun at one time are in the order of their sequences", SendNonmonotonic, []Op{at(1, 5, idem(1, 0, 1, send("0:b"))), at(1, 5, idem(1, 0, 0, send("1:a"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a batch lands in reverse", SendNonmonotonic, []Op{at(1, 5, send("1:a 0:b")), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"plain sends in flight land in reverse", none, []Op{at(1, 5, send("1:a")), at(2, 5, send("0:b")), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"sends without a sequence begun at one time", none, []Op{at(1, 5, idem(1, 0, -1, send("1:a"))), at(1, 5, idem(1, 0, -1, send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"sends of two producers", none, []Op{at(1, 5, idem(1, 0, 0, send("1:a"))), at(2, 5, idem(2, 0, 0, send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a retry under a new epoch lands behind", none, []Op{at(1, 5, unknown(idem(1, 0, 0, send(":a")))), at(2, 5, idem(1, 0, 1, send("0:b"))), at(6, 7, idem(1, 1, 0, send("1:a"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},

	{"a later send stands earlier", RealtimeOrder, []Op{at(1, 2, send("1:a")), at(3, 4, by("q", send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a later send of unknown outcome stands earlier", RealtimeOrder, []Op{at(1, 2, send("1:a")), at(3, 4, by("q", unknown(send(":b")))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a send after a read stands earlier than what was read", RealtimeOrder, []Op{at(1, 2, unknown(send(":a"))), at(3, 4, poll("c", "1:a")), at(5, 6, by("q", send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a send stands before the end that was read earlier", RealtimeOrder, []Op{at(1, 2, latest(3)), at(3, 4, send("2:a")), at(7, 8, final(0, 3, "2:a"))}, nil},
	{"concurrent sends may land in either order", none, []Op{at(1, 4, send("1:a")), at(3, 6, by("q", send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a send that begins as another ends is concurrent", none, []Op{at(1, 3, send("1:a")), at(3, 6, by("q", send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},
	{"a send of unknown outcome has no end", none, []Op{at(1, 2, unknown(send(":a"))), at(3, 6, by("q", send("0:b"))), at(7, 8, final(0, 2, "0:b 1:a"))}, nil},

	{"the end of the log lies before an acknowledged record", StaleLatest, []Op{at(1, 2, send("0:a")), at(3, 4, latest(0)), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"the end of the log lies before a record that was read", StaleLatest, []Op{at(1, 2, unknown(send(":a"))), at(3, 4, poll("c", "0:a")), at(5, 6, latest(0)), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"the end of the log goes back", StaleLatest, []Op{at(1, 2, latest(5)), at(3, 4, latest(4))}, nil},
	{"the end of the log is read while a record is sent", none, []Op{at(1, 3, send("0:a")), at(2, 4, latest(0)), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"a weak read of the end may be old", none, []Op{at(1, 2, send("0:a")), at(3, 4, weak(latest(0))), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"a failed read of the end says nothing", none, []Op{at(1, 2, send("0:a")), at(3, 4, failed(latest(0))), at(7, 8, final(0, 1, "0:a"))}, nil},

	{"the log start goes back", LogStartRegress, []Op{at(1, 2, logStart(5)), at(3, 4, logStart(4))}, nil},
	{"the log start is below an acknowledged trim", LogStartRegress, []Op{at(1, 2, trim(5)), at(3, 4, logStart(4))}, nil},
	{"a final read begins below an acknowledged trim", LogStartRegress, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, trim(1)), at(5, 6, final(0, 2, "0:a 1:b"))}, nil},
	{"the log start is below a trim of unknown outcome", none, []Op{at(1, 2, unknown(trim(5))), at(3, 4, logStart(4))}, nil},
	{"the log start is below a later trim", none, []Op{at(1, 3, trim(5)), at(2, 4, logStart(4))}, nil},

	{"a committed position goes back", CommitRegress, []Op{at(1, 2, committed(5)), at(3, 4, committed(4))}, nil},
	{"a committed position is gone", CommitRegress, []Op{at(1, 2, committed(5)), at(3, 4, committed(NoOffset))}, nil},
	{"an acknowledged commit is not there", CommitRegress, []Op{at(1, 2, commit("c", 5)), at(3, 4, committed(4))}, nil},
	{"a reset that failed excuses nothing", CommitRegress, []Op{at(1, 2, commit("c", 5)), at(3, 4, failed(reset(commit("c", 2)))), at(5, 6, committed(2))}, nil},
	{"a reset excuses nothing below its target", CommitRegress, []Op{at(1, 2, commit("c", 5)), at(3, 4, reset(commit("c", 2))), at(5, 6, committed(1))}, nil},
	{"a commit after a reset counts again", CommitRegress, []Op{at(1, 2, commit("c", 5)), at(3, 4, reset(commit("c", 2))), at(5, 6, commit("c", 4)), at(7, 8, committed(3))}, nil},
	{"a reset", none, []Op{at(1, 2, commit("c", 5)), at(3, 4, reset(commit("c", 2))), at(5, 6, committed(2))}, nil},
	{"a reset of unknown outcome may come late", none, []Op{at(1, 2, commit("c", 5)), at(3, 4, unknown(reset(commit("c", 2)))), at(5, 6, committed(5)), at(7, 8, committed(2))}, nil},
	{"a reset at the same time as a commit", none, []Op{at(1, 2, commit("c", 3)), at(3, 6, reset(commit("c", 2))), at(4, 5, commit("c", 5)), at(7, 8, committed(2))}, nil},
	{"a reset at the same time as a read", none, []Op{at(1, 2, commit("c", 5)), at(3, 6, committed(2)), at(4, 5, reset(commit("c", 2)))}, nil},
	{"commits of unknown outcome", none, []Op{at(1, 2, commit("c", 3)), at(3, 4, unknown(commit("c", 5))), at(5, 6, committed(3)), at(7, 8, committed(5))}, nil},
	{"a commit while it is read", none, []Op{at(1, 4, commit("c", 5)), at(3, 6, committed(NoOffset))}, nil},
	{"another group", none, []Op{at(1, 2, commit("c", 5)), at(3, 4, Op{Kind: Committed, Group: "h", Offset: 2})}, nil},

	{"a committed record was not read by the group", CommitAhead, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, grouped(poll("c", "0:a"))), at(5, 6, committed(2)), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"a committed record was read later", CommitAhead, []Op{at(1, 2, send("0:a")), at(5, 6, committed(1)), at(7, 8, grouped(poll("c", "0:a"))), at(9, 10, final(0, 1, "0:a"))}, nil},
	{"a committed record was read by another member", none, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, grouped(poll("c", "0:a"))), at(3, 4, grouped(poll("d", "1:b"))), at(5, 6, committed(2)), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"a committed record behind a reset was not read", CommitAhead, []Op{at(1, 2, send("0:a 1:b")), at(2, 3, reset(commit("c", 0))), at(3, 4, grouped(poll("c", "0:a"))), at(5, 6, committed(2)), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"a user has skipped records", none, []Op{at(1, 2, send("0:a 1:b")), at(3, 4, grouped(poll("c", "0:a"))), at(4, 5, reset(commit("c", 2))), at(5, 6, committed(2)), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},

	{"two members own a partition in one generation", DoubleOwner, []Op{at(1, 2, own("c", 1, 1)), at(3, 4, own("d", 1, 1))}, nil},
	{"two members own a partition in overlapping generations", DoubleOwner, []Op{at(1, 9, own("c", 1, 4)), at(3, 4, unknown(own("d", 3, 3)))}, nil},
	{"two members own a partition at one time and give it up in order", DoubleOwner, []Op{at(1, 4, own("c", 1, 1)), at(3, 6, own("d", 2, 2))}, nil},
	{"a third member is between two generations of another", DoubleOwner, []Op{at(1, 9, own("c", 1, 9)), at(1, 2, unknown(own("d", 10, 10))), at(3, 4, unknown(own("e", 5, 5)))}, nil},
	{"a member takes over", none, []Op{at(1, 3, own("c", 1, 1)), at(3, 6, own("d", 2, 2))}, nil},
	{"a member that has lost its session learns it late", none, []Op{at(1, 5, unknown(own("c", 1, 1))), at(3, 6, own("d", 2, 2))}, nil},
	{"generations that are not known", none, []Op{at(1, 3, own("c", 0, 0)), at(3, 6, own("d", 0, 0))}, nil},
	{"generations that are not known, at one time", DoubleOwner, []Op{at(1, 4, own("c", 0, 0)), at(3, 6, own("d", 0, 0))}, nil},
	{"a member keeps a partition", none, []Op{at(1, 3, own("c", 1, 3)), at(3, 6, own("c", 4, 5))}, nil},

	{"a fenced producer writes", ZombieWrite, []Op{at(1, 2, fence(1, 1)), at(3, 4, idem(1, 0, 0, send("0:a"))), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"a write of a fenced producer lands that had no answer", ZombieWrite, []Op{at(1, 2, fence(1, 1)), at(3, 4, unknown(idem(1, 0, 0, send(":a")))), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"a newer epoch has written", ZombieWrite, []Op{at(1, 2, idem(1, 1, 0, send("0:a"))), at(3, 4, by("q", idem(1, 0, 0, send("1:b")))), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"an older epoch stands behind a newer one", ZombieWrite, []Op{at(1, 6, idem(1, 1, 0, send("0:a"))), at(1, 6, by("q", idem(1, 0, 0, send("1:b")))), at(7, 8, final(0, 2, "0:a 1:b"))}, nil},
	{"a write is under way while it is fenced", none, []Op{at(1, 4, fence(1, 1)), at(3, 5, idem(1, 0, 0, send("0:a"))), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"a fence of unknown outcome", none, []Op{at(1, 2, unknown(fence(1, 1))), at(3, 4, idem(1, 0, 0, send("0:a"))), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"a fenced producer is refused", none, []Op{at(1, 2, fence(1, 1)), at(3, 4, failed(idem(1, 0, 0, send(":a")))), at(7, 8, final(0, 0, ""))}, nil},
	{"another producer is fenced", none, []Op{at(1, 2, fence(2, 1)), at(3, 4, idem(1, 0, 0, send("0:a"))), at(7, 8, final(0, 1, "0:a"))}, nil},
	{"the newer epoch writes", none, []Op{at(1, 2, fence(1, 1)), at(3, 4, idem(1, 1, 0, send("0:a"))), at(7, 8, final(0, 1, "0:a"))}, nil},
}

func TestExamples(t *testing.T) {
	flagged := map[Anomaly]bool{}
	for _, e := range append(examples, factExamples...) {
		t.Run(strings.ReplaceAll(e.name, " ", "_"), func(t *testing.T) {
			r := Check(&History{Ops: e.ops, Facts: e.facts})
			if len(r.Invalid) > 0 {
				t.Fatalf("invalid: %v", r.Invalid)
			}
			for a, n := range r.Counts {
				if a != e.want && a != also[e.name] && n > 0 {
					t.Errorf("%s is found %d times: %v", a, n, r.Err(nil))
				}
			}
			if e.want != none && r.Counts[e.want] == 0 {
				t.Errorf("%s is not found", e.want)
			}
			if e.want != none && r.Checked[e.want] == 0 {
				t.Errorf("%s is not counted as looked for", e.want)
			}
			flagged[e.want] = true
		})
	}
	for _, a := range Anomalies() {
		if !flagged[a] {
			t.Errorf("no example of %s", a)
		}
	}
}

func seen(kind FactKind, at int64, f Fact) Fact {
	f.Kind, f.At = kind, at
	if f.Group == "" {
		f.Group = "t/0"
	}
	return f
}

func entries(commit uint64, list ...Entry) Fact { return Fact{Commit: commit, Entries: list} }

func on(replica string, f Fact) Fact { f.Replica = replica; return f }

var factExamples = []example{
	{"two replicas lead in one term", TwoLeaders, nil, []Fact{seen(Leader, 1, Fact{Replica: "a", Term: 3}), seen(Leader, 2, Fact{Replica: "b", Term: 3})}},
	{"leaders of two terms, of two groups, one seen twice", none, nil, []Fact{
		seen(Leader, 1, Fact{Replica: "a", Term: 3}), seen(Leader, 2, Fact{Replica: "a", Term: 3}), seen(Leader, 3, Fact{Replica: "b", Term: 4}), seen(Leader, 3, Fact{Group: "u/0", Replica: "b", Term: 3})}},
	{"a term goes back", TermRegress, nil, []Fact{seen(Term, 1, Fact{Replica: "a", Term: 3}), seen(Term, 2, Fact{Replica: "a", Term: 2})}},
	{"a term goes back over a restart", TermRegress, nil, []Fact{seen(Term, 1, Fact{Replica: "a", Term: 3}), seen(Term, 2, Fact{Replica: "a", Term: 2, Run: 1})}},
	{"a vote in an older term", TermRegress, nil, []Fact{seen(Term, 1, Fact{Replica: "a", Term: 3}), seen(Vote, 2, Fact{Replica: "a", Term: 2, Candidate: "b"})}},
	{"a replica that leads is told of late", none, nil, []Fact{seen(Term, 1, Fact{Replica: "a", Term: 3}), seen(Leader, 2, Fact{Replica: "a", Term: 2})}},
	{"terms of two replicas", none, nil, []Fact{seen(Term, 1, Fact{Replica: "a", Term: 3}), seen(Term, 2, Fact{Replica: "b", Term: 2}), seen(Term, 3, Fact{Replica: "a", Term: 3})}},
	{"a replica votes twice", VoteTwice, nil, []Fact{seen(Vote, 1, Fact{Replica: "a", Term: 2, Candidate: "b"}), seen(Vote, 2, Fact{Replica: "a", Term: 2, Candidate: "c", Run: 1})}},
	{"a vote is repeated", none, nil, []Fact{seen(Vote, 1, Fact{Replica: "a", Term: 2, Candidate: "b"}), seen(Vote, 2, Fact{Replica: "a", Term: 2, Candidate: "b"}), seen(Vote, 2, Fact{Replica: "b", Term: 2, Candidate: "c"})}},
	{"two replicas committed different entries", LogDivergence, nil, []Fact{
		seen(Log, 1, on("a", entries(2, Entry{1, 1, 7}, Entry{2, 1, 8}))), seen(Log, 1, on("b", entries(2, Entry{1, 1, 7}, Entry{2, 1, 9})))}},
	{"an entry has another term", LogDivergence, nil, []Fact{seen(Log, 1, on("a", entries(1, Entry{1, 1, 7}))), seen(Log, 1, on("b", entries(1, Entry{1, 2, 7})))}},
	{"a committed entry changes on one replica", LogDivergence, nil, []Fact{seen(Log, 1, on("a", entries(1, Entry{1, 1, 7}))), seen(Log, 2, on("a", entries(1, Entry{1, 2, 8})))}},
	{"two replicas differ above what is committed", none, nil, []Fact{
		seen(Log, 1, on("a", entries(2, Entry{1, 1, 7}, Entry{2, 1, 8}))), seen(Log, 1, on("b", entries(1, Entry{1, 1, 7}, Entry{2, 2, 9})))}},
	{"a high watermark goes back", HWRegress, nil, []Fact{seen(HighWatermark, 1, Fact{Replica: "a", Offset: 3}), seen(HighWatermark, 2, Fact{Replica: "a", Offset: 2})}},
	{"a high watermark goes back over a restart, and another is behind", none, nil, []Fact{
		seen(HighWatermark, 1, Fact{Replica: "a", Offset: 3}), seen(HighWatermark, 2, Fact{Replica: "b", Offset: 2}), seen(HighWatermark, 3, Fact{Replica: "a", Run: 1, Offset: 2})}},
	{"an index has two offsets", DeltaMismatch, nil, []Fact{seen(Delta, 1, Fact{Replica: "a", Index: 5, Offset: 3}), seen(Delta, 1, Fact{Replica: "b", Index: 5, Offset: 4})}},
	{"an index has one offset", none, nil, []Fact{seen(Delta, 1, Fact{Replica: "a", Index: 5, Offset: 3}), seen(Delta, 1, Fact{Replica: "b", Index: 5, Offset: 3}), seen(Delta, 1, Fact{Replica: "b", Index: 6, Offset: 9})}},
	{"two segments differ", SegmentMismatch, nil, []Fact{seen(Segment, 1, Fact{Replica: "a", Offset: 0, End: 9, Sum: 1}), seen(Segment, 1, Fact{Replica: "b", Offset: 0, End: 9, Sum: 2})}},
	{"segments with other bounds are not compared", none, nil, []Fact{seen(Segment, 1, Fact{Replica: "a", Offset: 0, End: 9, Sum: 1}), seen(Segment, 1, Fact{Replica: "b", Offset: 0, End: 8, Sum: 2})}},
}
