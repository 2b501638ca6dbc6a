// Package session holds session tokens: what a caller has written and read so far.
//
// A token maps a partition to the first offset that its holder has not seen.
// Tokens only grow: Merge keeps the later position of each partition, so a token
// that travels with a request makes everything its senders saw visible to the
// reader that waits for it. A Token is not safe for concurrent use.
package session

import (
	"encoding/base64"
	"encoding/hex"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// maxTokenBytes and maxPositions bound what ParseToken takes from outside.
const (
	maxTokenBytes = 1 << 20
	maxPositions  = 10_000
)

// Partition names one partition of one topic. The topic's id, not its name, is
// what counts: a topic that was deleted and created again is another topic.
type Partition struct {
	TopicID   [16]byte
	Partition int32
}

// Position is a point in the history of one partition: everything below Offset
// has been seen, under the leader epoch Epoch.
type Position struct {
	Epoch  record.Epoch
	Offset record.Offset
}

// Token is a set of positions. The zero Token has seen nothing.
type Token struct {
	positions map[Partition]Position
}

// IsZero tells whether the token has seen nothing.
func (t Token) IsZero() bool { return len(t.positions) == 0 }

// Len is the number of partitions that the token knows.
func (t Token) Len() int { return len(t.positions) }

// Position finds what the token has seen of a partition.
func (t Token) Position(p Partition) (Position, bool) {
	at, ok := t.positions[p]
	return at, ok
}

// Advance notes that everything below at has been seen of p. It never goes back.
func (t *Token) Advance(p Partition, at Position) {
	if old, ok := t.positions[p]; ok && !later(at, old) {
		return
	}
	if t.positions == nil {
		t.positions = make(map[Partition]Position)
	}
	t.positions[p] = at
}

// later orders positions: of two leader epochs the higher one is the later
// history, even where its offset is lower.
func later(a, b Position) bool {
	if a.Epoch != b.Epoch {
		return a.Epoch > b.Epoch
	}
	return a.Offset > b.Offset
}

// Merge adds what other has seen.
func (t *Token) Merge(other Token) {
	for p, at := range other.positions {
		t.Advance(p, at)
	}
}

// Clone returns a token of its own.
func (t Token) Clone() Token { return Token{maps.Clone(t.positions)} }

// AdvanceTo is Advance for a position as it stands in a response; nil is ignored.
func (t *Token) AdvanceTo(p *tidemarkv1.Position) {
	if p == nil || len(p.GetTopicId()) != 16 {
		return
	}
	t.Advance(Partition{[16]byte(p.GetTopicId()), p.GetPartition()},
		Position{record.Epoch(p.GetLeaderEpoch()), record.Offset(p.GetOffset())})
}

// ForPartition is the token's position of a partition as a request carries it, or nil.
func (t Token) ForPartition(p Partition) *tidemarkv1.Position {
	at, ok := t.positions[p]
	if !ok {
		return nil
	}
	return &tidemarkv1.Position{TopicId: p.TopicID[:], Partition: p.Partition, LeaderEpoch: int32(at.Epoch), Offset: int64(at.Offset)}
}

// String encodes the token for a header or a URL; ParseToken reads it.
func (t Token) String() string {
	keys := slices.SortedFunc(maps.Keys(t.positions), func(a, b Partition) int {
		if c := slices.Compare(a.TopicID[:], b.TopicID[:]); c != 0 {
			return c
		}
		return int(a.Partition) - int(b.Partition)
	})
	var buf []byte
	for _, p := range keys {
		b, err := proto.Marshal(t.ForPartition(p))
		if err != nil || len(b) > 255 {
			panic("session: a position does not encode") // five small fields always do
		}
		buf = append(append(buf, byte(len(b))), b...)
	}
	return base64.RawURLEncoding.EncodeToString(buf)
}

// MarshalText implements encoding.TextMarshaler.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Token) UnmarshalText(b []byte) error {
	parsed, err := ParseToken(string(b))
	if err == nil {
		*t = parsed
	}
	return err
}

// ParseToken reads what String wrote.
func ParseToken(s string) (Token, error) {
	if len(s) > maxTokenBytes {
		return Token{}, errs.Errorf(errs.InvalidRequest, "a session token of %d characters is longer than any we write (%d)", len(s), maxTokenBytes)
	}
	buf, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return Token{}, errs.Errorf(errs.InvalidRequest, "session token: %w", err)
	}
	var t Token
	for len(buf) > 0 {
		n := int(buf[0])
		if n > len(buf)-1 || t.Len() >= maxPositions {
			return Token{}, errs.Errorf(errs.InvalidRequest, "session token %s… is cut short or too long", hex.EncodeToString(buf[:min(4, len(buf))]))
		}
		var p tidemarkv1.Position
		if err := proto.Unmarshal(buf[1:1+n], &p); err != nil {
			return Token{}, errs.Errorf(errs.InvalidRequest, "session token: %w", err)
		}
		if len(p.GetTopicId()) != 16 {
			return Token{}, errs.Errorf(errs.InvalidRequest, "session token: a topic id has 16 bytes, not %d", len(p.GetTopicId()))
		}
		t.AdvanceTo(&p)
		buf = buf[1+n:]
	}
	return t, nil
}
