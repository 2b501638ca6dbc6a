package check

import (
	"fmt"
	"strconv"
	"strings"
)

// Kind says what an operation did.
type Kind string

// Kinds of operations.
const (
	Send      Kind = "send"      // Records are appended to Key; acknowledged with their offsets
	Poll      Kind = "poll"      // Records of Key were read, as a member of Group where that is set
	Assign    Kind = "assign"    // Process starts over on Key (on all keys where Key is zero), at Offset if that is not NoOffset
	Seek      Kind = "seek"      // like Assign, by a consumer that keeps its assignment
	Subscribe Kind = "subscribe" // Process joins Group; like Assign of all keys
	Own       Kind = "own"       // member Process owns Key in Group, from Invoke until Complete; see Generation
	Commit    Kind = "commit"    // Group's position of Key becomes Offset; Reset says that going back is meant
	Committed Kind = "committed" // Group's position of Key is Offset, or NoOffset
	Latest    Kind = "latest"    // the log of Key ends at Offset, said by a linearizable read
	Fence     Kind = "fence"     // Producer's epoch is the newest; older ones are fenced, on Key or everywhere
	Final     Kind = "final"     // Records are all that Key holds in [Offset, End), read at the end by a leader
	Trim      Kind = "trim"      // the log start of Key moves to Offset on request
	LogStart  Kind = "log_start" // the log start of Key was seen at Offset; retention may have moved it
)

var kinds = map[Kind]bool{
	Send: true, Poll: true, Assign: true, Seek: true, Subscribe: true, Own: true, Commit: true,
	Committed: true, Latest: true, Fence: true, Final: true, Trim: true, LogStart: true,
}

// Outcome is what the caller knows of an operation.
type Outcome string

// Outcomes. An operation that has failed did not happen and never will; one whose outcome
// is unknown may have happened, and may happen later.
const (
	OK      Outcome = "ok"
	Fail    Outcome = "fail"
	Unknown Outcome = "unknown"
)

// NoOffset stands where no offset is known.
const NoOffset int64 = -1

// Key is one partition of a topic.
type Key struct {
	Topic     string
	Partition int32
}

func (k Key) String() string { return k.Topic + "/" + strconv.Itoa(int(k.Partition)) }

// IsZero says that k names no partition.
func (k Key) IsZero() bool { return k == Key{} }

// MarshalText writes topic/partition, and nothing for the zero Key.
func (k Key) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return nil, nil
	}
	return []byte(k.String()), nil
}

// UnmarshalText is the inverse of MarshalText.
func (k *Key) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*k = Key{}
		return nil
	}
	topic, number, ok := strings.Cut(string(text), "/")
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || err != nil {
		return fmt.Errorf("key %.100q: want topic/partition", text)
	}
	*k = Key{topic, int32(n)}
	return nil
}

// Record is one record that was sent or read. Values identify records: a value is sent once per
// key, and again only while nobody knows whether it got there.
type Record struct {
	Offset int64  `json:"o"` // NoOffset where it is not known
	Value  string `json:"v"`
}

// Producer is whom a send or a fence came from.
type Producer struct {
	ID         int64 `json:"pid"`           // -1: not known
	Epoch      int16 `json:"epoch"`         // of the producer, not of the leader
	Seq        int32 `json:"seq"`           // of the first record, -1: not known
	Idempotent bool  `json:"idem"`          // retries are told apart from new records
	Ordered    bool  `json:"ord,omitempty"` // sends land in the order of Invoke; implied by Idempotent
}

// Op is one operation of a client. Times are nanoseconds of one monotonic clock for the whole
// history. Invoke is read before the operation is started and Complete after its answer is
// there; the Complete of an operation with an unknown outcome means nothing.
//
// An Own is ok where the coordinator wanted the partition back and the member gave it up at Complete. Its outcome is
// unknown where the member lost its session or just left: others may have owned the partition before
// Complete, which is when the member knew.
type Op struct {
	Kind     Kind    `json:"kind"`
	Process  string  `json:"process"` // one consumer, producer or client; its polls do not overlap
	Key      Key     `json:"key,omitzero"`
	Group    string  `json:"group,omitempty"` // consumer group
	Invoke   int64   `json:"invoke"`
	Complete int64   `json:"complete"`
	Outcome  Outcome `json:"outcome"`

	Records    []Record  `json:"records,omitempty"`
	Offset     int64     `json:"offset"` // see Kind
	End        int64     `json:"end,omitempty"`
	Epoch      int32     `json:"epoch,omitempty"`      // of the leader that answered
	Generation int32     `json:"generation,omitempty"` // Own: the first one; 0: not known
	Through    int32     `json:"through,omitempty"`    // Own: the last one; 0: Generation
	Producer   *Producer `json:"producer,omitempty"`
	Error      string    `json:"error,omitempty"`

	// Weak says that less was promised than this checker demands: an acknowledgement by the leader alone, or
	// without an fsync before a power cut; a read that need not be the newest. A weak
	// acknowledgement counts as an unknown outcome.
	Weak bool `json:"weak,omitempty"`
	// Reset says that the user wanted a commit to go back, or to skip records.
	Reset bool `json:"reset,omitempty"`
}

// strong says that the caller may rely on what op answered.
func (op *Op) strong() bool { return op.Outcome == OK && !op.Weak }

// until is when op has happened at the latest.
func (op *Op) until() int64 {
	if op.Outcome == Unknown {
		return forever
	}
	return op.Complete
}

const forever = 1<<63 - 1

func (op *Op) through() int32 { return max(op.Generation, op.Through) }

// String is one line of at most a few hundred bytes.
func (op *Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", op.Process, op.Kind)
	if !op.Key.IsZero() {
		fmt.Fprintf(&b, " %s", op.Key)
	}
	if op.Group != "" {
		fmt.Fprintf(&b, " group=%s", op.Group)
	}
	switch op.Kind {
	case Final:
		fmt.Fprintf(&b, " [%d,%d)", op.Offset, op.End)
	case Own:
		fmt.Fprintf(&b, " generations %d-%d", op.Generation, op.through())
	case Commit, Committed, Latest, Trim, LogStart, Seek, Assign:
		fmt.Fprintf(&b, " offset=%d", op.Offset)
	}
	writeRecords(&b, op.Records)
	if p := op.Producer; p != nil {
		fmt.Fprintf(&b, " pid=%d/%d seq=%d", p.ID, p.Epoch, p.Seq)
	}
	fmt.Fprintf(&b, " %s", op.Outcome)
	if op.Weak {
		b.WriteString(" (weak)")
	}
	if op.Reset {
		b.WriteString(" (reset)")
	}
	if op.Outcome == Unknown {
		fmt.Fprintf(&b, " from %s", seconds(op.Invoke))
	} else {
		fmt.Fprintf(&b, " %s..%s", seconds(op.Invoke), seconds(op.Complete))
	}
	if op.Error != "" {
		fmt.Fprintf(&b, " %.100q", op.Error)
	}
	return b.String()
}

func writeRecords(b *strings.Builder, records []Record) {
	const shown = 3
	for i, r := range records {
		if i == shown && len(records) > shown+1 {
			last := records[len(records)-1]
			fmt.Fprintf(b, " … %d:%.40q (%d records)", last.Offset, last.Value, len(records))
			return
		}
		fmt.Fprintf(b, " %d:%.40q", r.Offset, r.Value)
	}
}

func seconds(ns int64) string { return strconv.FormatFloat(float64(ns)/1e9, 'f', 6, 64) + "s" }

// FactKind says what was seen inside a broker.
type FactKind string

// Kinds of facts.
const (
	Leader        FactKind = "leader"  // Replica leads Group in Term; may be told late
	Term          FactKind = "term"    // Replica's term is Term
	Vote          FactKind = "vote"    // Replica voted for Candidate in Term
	Log           FactKind = "log"     // Replica's log holds Entries; those up to Commit are committed
	HighWatermark FactKind = "hw"      // Replica's high watermark is Offset
	Delta         FactKind = "delta"   // the committed entry at Index of Replica's log has base offset Offset
	Segment       FactKind = "segment" // the records in [Offset, End) of a sealed segment of Replica, all committed, have checksum Sum
)

var factKinds = map[FactKind]bool{Leader: true, Term: true, Vote: true, Log: true, HighWatermark: true, Delta: true, Segment: true}

// Entry is one entry of a Raft log. Sum covers what must be the same on all replicas.
type Entry struct {
	Index uint64 `json:"i"`
	Term  uint64 `json:"t"`
	Sum   uint64 `json:"s"`
}

// Fact is something seen inside a broker. Terms, votes and high watermarks of one replica are told in
// the order in which they were, by one observer: two would overtake each other.
type Fact struct {
	Kind    FactKind `json:"kind"`
	Group   string   `json:"group"`         // Raft group: "orders/0", "meta"
	Replica string   `json:"replica"`       // the identity that it votes under; a wiped disk gets a new one
	Run     int      `json:"run,omitempty"` // counts the starts of the replica's process
	At      int64    `json:"at"`            // ns, the clock of the operations

	Term      uint64  `json:"term,omitempty"`
	Candidate string  `json:"candidate,omitempty"`
	Commit    uint64  `json:"commit,omitempty"`
	Entries   []Entry `json:"entries,omitempty"`
	Index     uint64  `json:"index,omitempty"`
	Offset    int64   `json:"offset,omitempty"`
	End       int64   `json:"end,omitempty"`
	Sum       uint64  `json:"sum,omitempty"`
}

func (f *Fact) String() string {
	s := fmt.Sprintf("%s %s %s", f.Group, f.Replica, f.Kind)
	switch f.Kind {
	case Leader, Term:
		s += fmt.Sprintf(" term=%d", f.Term)
	case Vote:
		s += fmt.Sprintf(" term=%d for=%s", f.Term, f.Candidate)
	case Log:
		s += fmt.Sprintf(" %d entries commit=%d", len(f.Entries), f.Commit)
	case HighWatermark:
		s += fmt.Sprintf(" offset=%d", f.Offset)
	case Delta:
		s += fmt.Sprintf(" index=%d offset=%d", f.Index, f.Offset)
	case Segment:
		s += fmt.Sprintf(" [%d,%d) sum=%x", f.Offset, f.End, f.Sum)
	}
	return s + fmt.Sprintf(" run=%d at %s", f.Run, seconds(f.At))
}

// Fault is one interval during which something was broken on purpose.
type Fault struct {
	Kind  string `json:"kind"`         // as in unavail_<kind>: lower-case letters, digits and "-"
	Key   Key    `json:"key,omitzero"` // the partition that it hit; zero: any
	From  int64  `json:"from"`         // ns
	Until int64  `json:"until"`        // ns; when it was healed, not when its effects ended
}

// Header says where a history comes from.
type Header struct {
	Version int    `json:"version"`
	Suite   string `json:"suite"` // one word
	Seed    uint64 `json:"seed"`
}

// version is that of the history format.
const version = 1

// History is all that a run has recorded. Operations and facts stand in the order in which they were
// recorded, which decides between those with equal times of one process or replica.
type History struct {
	Header
	Ops    []Op
	Facts  []Fact
	Faults []Fault
	// Saw counts what else the run came across, for Require.
	Saw map[string]int64
	// Dropped is how much a Recorder had no room for. Such a history proves nothing.
	Dropped int64
}
