package group

import (
	"fmt"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// commandVersion is the first byte of every command. A new version is written
// only once every replica understands it (the cluster's feature level).
const commandVersion = 1

// maxCommandBytes keeps one command from holding up the shard, and below what a log entry takes.
const maxCommandBytes = 8 << 20

// kind is the second byte of a command. Numbers are never reused.
type kind uint8

const (
	kindNativeJoin      kind = 1
	kindNativeRelease   kind = 2
	kindTopics          kind = 3
	kindNativeLeave     kind = 4
	kindExpire          kind = 5
	kindCommit          kind = 6
	kindDeleteOffsets   kind = 7
	kindDeleteGroup     kind = 8
	kindPurge           kind = 9
	kindClassicJoin     kind = 10
	kindClassicComplete kind = 11
	kindClassicSync     kind = 12
	kindClassicLeave    kind = 13
)

// command is one entry of the log: a header, then what the kind says.
type command struct {
	group string
	at    int64 // the proposer's wall clock in ms; recorded, never compared to order anything
	body  body
}

type body interface {
	kind() kind
	fields(c *codec)
	apply(m *machine, cmd *command) outcome
}

// outcome is what Apply returns. A refusal is an outcome, not a failure: every replica comes to the same one.
type outcome struct {
	code errs.Code
	text string
	// partitions holds one code per partition of the command, where any differs from none.
	partitions []errs.Code
	join       joined // classic join
	rebalance  string // why a rebalance began, if one did
}

func (o outcome) err() error {
	if o.code == errs.None {
		return nil
	}
	return errs.New(o.code, o.text)
}

func refuse(code errs.Code, format string, args ...any) outcome {
	return outcome{code: code, text: fmt.Sprintf(format, args...)}
}

func newBody(k kind) body {
	switch k {
	case kindNativeJoin:
		return &nativeJoin{}
	case kindNativeRelease:
		return &nativeRelease{}
	case kindTopics:
		return &setTopics{}
	case kindNativeLeave:
		return &nativeLeave{}
	case kindExpire:
		return &expire{}
	case kindCommit:
		return &commit{}
	case kindDeleteOffsets:
		return &deleteOffsets{}
	case kindDeleteGroup:
		return &deleteGroup{}
	case kindPurge:
		return &purge{}
	case kindClassicJoin:
		return &classicJoin{}
	case kindClassicComplete:
		return &classicComplete{}
	case kindClassicSync:
		return &classicSync{}
	case kindClassicLeave:
		return &classicLeave{}
	}
	return nil
}

func (cmd *command) encode() []byte {
	c := &codec{}
	version, k := uint8(commandVersion), uint8(cmd.body.kind())
	c.u8(&version)
	c.u8(&k)
	c.str(&cmd.group)
	c.i64(&cmd.at)
	cmd.body.fields(c)
	return c.b
}

func decodeCommand(b []byte) (*command, error) {
	c := &codec{b: b, reading: true}
	var version, k uint8
	c.u8(&version)
	c.u8(&k)
	if c.err == nil && version != commandVersion {
		return nil, fmt.Errorf("version %d of a group command is not known here", version)
	}
	cmd := &command{body: newBody(kind(k))}
	if cmd.body == nil {
		return nil, fmt.Errorf("kind %d of a group command is not known here", k)
	}
	c.str(&cmd.group)
	c.i64(&cmd.at)
	cmd.body.fields(c)
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("group command of kind %d: %w", k, err)
	}
	if cmd.group == "" {
		return nil, fmt.Errorf("group command of kind %d without a group", k)
	}
	return cmd, nil
}
