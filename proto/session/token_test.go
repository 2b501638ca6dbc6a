package session_test

import (
	"strings"
	"testing"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	"github.com/tidemarkhq/tidemark/proto/session"
)

func at(epoch, offset int) session.Position {
	return session.Position{Epoch: record.Epoch(epoch), Offset: record.Offset(offset)}
}

var (
	p0 = session.Partition{TopicID: [16]byte{1}}
	p1 = session.Partition{TopicID: [16]byte{1}, Partition: 1}
)

func TestTokensOnlyGrow(t *testing.T) {
	var a session.Token
	for _, step := range []struct{ see, want session.Position }{
		{at(1, 10), at(1, 10)},
		{at(1, 5), at(1, 10)},
		{at(2, 7), at(2, 7)}, // a later history, even though it is shorter
		{at(1, 99), at(2, 7)},
		{at(2, 8), at(2, 8)},
	} {
		a.Advance(p0, step.see)
		if got, _ := a.Position(p0); got != step.want {
			t.Errorf("after %+v: %+v, want %+v", step.see, got, step.want)
		}
	}
}

func TestMergeKeepsTheLaterOfEach(t *testing.T) {
	var a, b session.Token
	a.Advance(p0, at(1, 10))
	b.Advance(p0, at(1, 12))
	b.Advance(p1, at(1, 3))
	c := a.Clone()
	c.Merge(b)
	if x, _ := c.Position(p0); x != at(1, 12) {
		t.Errorf("%+v", x)
	}
	if x, _ := c.Position(p1); x != at(1, 3) || c.Len() != 2 {
		t.Errorf("%+v", x)
	}
	if x, _ := a.Position(p0); x != at(1, 10) || a.Len() != 1 {
		t.Errorf("the clone changed its origin: %+v", x)
	}
	back, err := session.ParseToken(c.String())
	if err != nil || back.String() != c.String() || back.Len() != 2 {
		t.Errorf("%v, %v", back, err)
	}
}

func TestBadTokensAreRefused(t *testing.T) {
	for _, s := range []string{"%", "AQ", "BQAAAAAA", strings.Repeat("A", 2<<20)} {
		if _, err := session.ParseToken(s); errs.CodeOf(err) != errs.InvalidRequest {
			t.Errorf("%.20q: %v", s, err)
		}
	}
	if z, err := session.ParseToken(""); err != nil || !z.IsZero() {
		t.Errorf("%v, %v", z, err)
	}
}

func FuzzParseToken(f *testing.F) {
	var a session.Token
	a.Advance(p0, at(1, 10))
	a.Advance(p1, at(3, 1<<40))
	f.Add(a.String())
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := session.ParseToken(s)
		if err != nil {
			return
		}
		again, err := session.ParseToken(token.String())
		if err != nil || again.String() != token.String() {
			t.Fatalf("%q: %q, then %q, %v", s, token, again, err)
		}
	})
}
