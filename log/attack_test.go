package log

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tidemarkhq/tidemark/internal/fsx/sim"
)

// The logs of a broker take each other's tail memory back at any moment, also between the moment
// in which one got it and its first write into it.
func TestManyLogsShareABudgetThatIsFarTooSmall(t *testing.T) {
	fs := sim.New()
	budget := NewBudget(1)
	var all sync.WaitGroup
	for k := range 8 {
		all.Go(func() {
			cfg := testConfig(filepath.Join("/data", fmt.Sprint(k)))
			cfg.FS, cfg.Budget = fs, budget
			l, _, err := Open(cfg)
			if err != nil {
				t.Error(err)
				return
			}
			a := &appender{t: t, next: 1, term: 1}
			for i := range 300 {
				if err := l.Write([]Entry{a.accepted(1, 100, 1000)}, 0); err != nil {
					t.Error(err)
					return
				}
				if _, err := l.Entry(Index(i + 1)); err != nil {
					t.Error(err)
					return
				}
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
