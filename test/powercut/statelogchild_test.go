package powercut

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/fsx"
	"github.com/tidemarkhq/tidemark/log/statelog"
)

// stateWriter is a child at work on a state log.
type stateWriter struct {
	profile
	log  *statelog.Log
	term uint64
	next uint64
	said lines
}

func runStatelog(p profile) error {
	l, found, err := statelog.Open(statelog.Config{Dir: filepath.Join(p.dir, "state"), FS: fsx.OS(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	w := &stateWriter{profile: p, log: l, term: 1, next: l.Last() + 1}
	w.said.add("have %d %d 0", l.First(), l.Last())
	for i := max(1, l.First()); i <= l.Last(); i++ {
		e, err := l.Entry(i)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		w.term = e.Term + 1
		w.said.add("e %d %d %d", i, e.Term, sum(e.Data, e.Extensions))
	}
	w.said.add("ready %v", found.CutBytes > 0)
	w.said.say()
	for {
		if err := w.step(); err != nil {
			return errors.Join(err, w.poisoned())
		}
	}
}

// poisoned is an error when the log goes on after a failure.
func (w *stateWriter) poisoned() error {
	if err := w.log.Append([]statelog.Entry{{Index: w.log.Last() + 1, Term: w.term}}); err != nil {
		return nil
	}
	say("n sync after a failure: done")
	return errors.New("an append after a failure")
}

func (w *stateWriter) step() error {
	switch n := w.rng.IntN(100); {
	case n < 94:
		return w.append()
	case n < 97:
		return w.truncate()
	default:
		return w.compact()
	}
}

func (w *stateWriter) append() error {
	var batch []statelog.Entry
	for range 1 + w.rng.IntN(4) {
		size := w.rng.IntN(400)
		if w.rng.IntN(10) == 0 {
			size = w.rng.IntN(20_000)
		}
		data := make([]byte, size)
		for k := range data {
			data[k] = byte(w.rng.Uint32())
		}
		e := statelog.Entry{Index: w.next, Term: w.term, Data: data, Extensions: []byte{byte(w.next)}}
		batch = append(batch, e)
		w.said.add("w %d %d %d", e.Index, e.Term, sum(e.Data, e.Extensions))
		w.next++
	}
	w.said.say()
	if err := w.log.Append(batch); err != nil {
		return err
	}
	say("a %d", w.log.Last())
	return nil
}

func (w *stateWriter) truncate() error {
	first, last := w.log.First(), w.log.Last()
	if last == 0 || first == last {
		return nil
	}
	i := max(first+1, last-min(last, w.rng.Uint64N(10)))
	say("t %d", i)
	if err := w.log.DeleteRange(i, last); err != nil {
		return err
	}
	w.next, w.term = i, w.term+1
	say("td\nn truncate")
	return nil
}

func (w *stateWriter) compact() error {
	first, last := w.log.First(), w.log.Last()
	if last-first < 50 {
		return nil
	}
	i := first + w.rng.Uint64N(last-first)
	say("r %d", i)
	if err := w.log.DeleteRange(first, i); err != nil {
		return err
	}
	say("rd %d", w.log.First())
	say("n retain")
	return nil
}
