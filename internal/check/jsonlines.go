package check

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// MaxLine bounds one line of a history, in bytes. A final read of more records than fit is
// recorded in pieces.
const MaxLine = 16 << 20

// line is one line of a history: exactly one of its members is set.
type line struct {
	Header *Header   `json:"history,omitempty"`
	Op     *Op       `json:"op,omitempty"`
	Fact   *Fact     `json:"fact,omitempty"`
	Fault  *Fault    `json:"fault,omitempty"`
	Saw    *sawLine  `json:"saw,omitempty"`
	Lost   *dropLine `json:"dropped,omitempty"`
	End    *endLine  `json:"end,omitempty"`
}

type sawLine struct {
	Name string `json:"name"`
	N    int64  `json:"n"`
}

type dropLine struct {
	N int64 `json:"n"`
}

// endLine is the last line: without it a history that was cut off would pass for a whole one.
type endLine struct {
	Lines int64 `json:"lines"`
}

// Encode writes h as JSON lines.
func Encode(w io.Writer, h *History) error {
	out := bufio.NewWriter(w)
	e := encoder{out: out}
	header := h.Header
	header.Version = version
	e.write(line{Header: &header})
	for i := range h.Ops {
		e.write(line{Op: &h.Ops[i]})
	}
	for i := range h.Facts {
		e.write(line{Fact: &h.Facts[i]})
	}
	for i := range h.Faults {
		e.write(line{Fault: &h.Faults[i]})
	}
	for _, name := range slices.Sorted(maps.Keys(h.Saw)) {
		e.write(line{Saw: &sawLine{name, h.Saw[name]}})
	}
	if h.Dropped > 0 {
		e.write(line{Lost: &dropLine{h.Dropped}})
	}
	e.write(line{End: &endLine{e.lines}})
	if e.err != nil {
		return fmt.Errorf("write history: %w", e.err)
	}
	return out.Flush()
}

type encoder struct {
	out   *bufio.Writer
	lines int64
	err   error
}

func (e *encoder) write(l line) {
	if e.err != nil {
		return
	}
	raw, err := json.Marshal(l)
	switch {
	case err != nil:
	case len(raw) >= MaxLine:
		err = fmt.Errorf("line %d has %d bytes, at most %d are read back; record it in pieces", e.lines+1, len(raw), MaxLine)
	default:
		_, err = e.out.Write(append(raw, '\n'))
	}
	e.err = err
	e.lines++
}

// Decode reads a whole history. A line longer than MaxLine, an unknown member or kind and a missing end
// are errors. What it returns takes memory in proportion to what r holds.
func Decode(r io.Reader) (*History, error) {
	h := &History{Saw: map[string]int64{}}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 64<<10), MaxLine)
	var lines int64
	for in.Scan() {
		var l line
		err := json.Unmarshal(in.Bytes(), &l)
		if err == nil {
			err = h.take(l, lines)
		}
		if err == errEnd {
			return h, nil
		}
		if err != nil {
			return nil, fmt.Errorf("history line %d: %w", lines+1, err)
		}
		lines++
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("history line %d: %w", lines+1, err)
	}
	return nil, fmt.Errorf("history ends after line %d without its end line: it was cut off", lines)
}

var errEnd = errors.New("end of history")

func (h *History) take(l line, before int64) error {
	switch {
	case (l.Header != nil) != (before == 0):
		return errors.New(`the first line, and no other, is {"history":…}`)
	case l.Header != nil:
		if l.Header.Version != version {
			return fmt.Errorf("format version %d; this program reads %d", l.Header.Version, version)
		}
		h.Header = *l.Header
	case l.Op != nil:
		if !kinds[l.Op.Kind] {
			return fmt.Errorf("operation of unknown kind %.40q", l.Op.Kind)
		}
		h.Ops = append(h.Ops, *l.Op)
	case l.Fact != nil:
		if !factKinds[l.Fact.Kind] {
			return fmt.Errorf("fact of unknown kind %.40q", l.Fact.Kind)
		}
		h.Facts = append(h.Facts, *l.Fact)
	case l.Fault != nil:
		h.Faults = append(h.Faults, *l.Fault)
	case l.Saw != nil:
		h.Saw[l.Saw.Name] += l.Saw.N
	case l.Lost != nil:
		h.Dropped += l.Lost.N
	case l.End != nil && l.End.Lines == before:
		return errEnd
	case l.End != nil:
		return fmt.Errorf("the end counts %d lines, %d were read", l.End.Lines, before)
	default:
		return errors.New("none of history, op, fact, fault, saw, dropped, end")
	}
	return nil
}
