package replicas

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// leaderTick is how often AwaitLeaders looks.
const leaderTick = 2 * time.Millisecond

// condition is how a hosted replica is.
type condition uint8

const (
	starting    condition = iota
	unformed              // runs, and the metadata does not know yet that it was formed
	serving               // runs
	resetting             // runs no more: its leader has reset it, and it is about to be opened again
	quarantined           // damaged: its data stays, it serves nothing
	lost                  // formed once, and its directory is not there
	failed                // could not be opened for another reason
	stopped
)

var conditionNames = [...]string{"starting", "starting", "serving", "resetting", "quarantined", "lost", "failed", "stopped"}

func (c condition) String() string { return conditionNames[c] }

// hosted is one replica of this broker.
type hosted struct {
	topic     controller.UUID
	name      string
	partition int32
	id        controller.UUID // of the replica
	dir       string

	mu        sync.Mutex
	config    partition.TopicConfig // last applied; guarded by mu
	condition condition             // guarded by mu
	why       error                 // of quarantined and failed; guarded by mu
	replica   replica               // nil while there is none; guarded by mu
	epoch     record.Epoch          // of the last change of leadership; guarded by mu
	leads     bool                  // guarded by mu
	unsaid    bool                  // leadership not reported yet; guarded by mu
	formed    bool                  // the metadata knows that it was formed; guarded by mu
}

func (h *hosted) String() string { return fmt.Sprintf("%s/%d", h.name, h.partition) }

// serving returns the replica, or why there is none.
func (h *hosted) serving() (replica, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.condition {
	case serving:
		return h.replica, nil
	case quarantined:
		return nil, errs.Errorf(errs.ReplicaQuarantined, "%s is quarantined on this broker because acknowledged data is damaged: its files are kept; look into the broker's log and run tidemark verify: %w", h, uncoded{h.why})
	case lost:
		return nil, errs.Errorf(errs.KafkaStorageError, "%s is lost on this broker: put its directory %s back and restart the broker, or delete the topic: %w", h, h.dir, uncoded{h.why})
	case failed:
		return nil, errs.Errorf(errs.KafkaStorageError, "%s could not be opened on this broker; look into the broker's log: %w", h, uncoded{h.why})
	case resetting:
		return nil, errs.Errorf(errs.NotLeaderOrFollower, "%s starts anew on this broker where the leader's log begins: ask for the metadata again", h)
	case stopped:
		return nil, errs.Errorf(errs.NotLeaderOrFollower, "%s is stopping on this broker: ask for the metadata again", h)
	default:
		return nil, errs.Errorf(errs.LeaderNotAvailable, "%s is starting: try again", h)
	}
}

// uncoded keeps the text of an error and hides its code behind the one around it.
type uncoded struct{ err error }

func (u uncoded) Error() string { return fmt.Sprint(u.err) }

// running returns the replica while it runs, serving or not.
func (h *hosted) running() replica {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.condition == serving || h.condition == unformed {
		return h.replica
	}
	return nil
}

// flushEvery is how often the replica wants to be flushed; nil where never.
func (h *hosted) flushEvery() (time.Duration, replica) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.condition != serving || h.config.Flush != "interval" {
		return 0, nil
	}
	return max(h.config.FlushInterval, time.Millisecond), h.replica
}

// reconfigure tells whether c is news, and to whom.
func (h *hosted) reconfigure(c partition.TopicConfig) replica {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.config == c || h.condition != serving && h.condition != unformed {
		return nil
	}
	h.config = c
	return h.replica
}

func (h *hosted) is() condition {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.condition
}

// runs puts a started replica in its place. It may have found damage since.
func (h *hosted) runs(r replica, c condition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.replica = r
	h.formed = h.formed || c == serving
	if h.condition == starting {
		h.condition = c
	}
}

// reset takes a replica out of service that its leader has reset.
func (h *hosted) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.condition <= serving {
		h.condition = resetting
		h.leads, h.unsaid = false, true
	}
}

// renew hands over a replica that was reset and not stopped yet. It may still be on its way into its place.
func (h *hosted) renew() (r replica, formed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.condition != resetting || h.replica == nil {
		return nil, false
	}
	r = h.replica
	h.replica, h.condition = nil, starting
	return r, h.formed
}

// promote lets a formed replica serve.
func (h *hosted) promote() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.formed = true
	if h.condition == unformed {
		h.condition = serving
	}
}

// become takes the replica out of service.
func (h *hosted) become(c condition, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.condition, h.why = c, why
	// The metadata may hold this replica for a leader, from an earlier life.
	h.leads, h.unsaid = false, true
}

// led records a change of leadership. Reports of an older epoch come late and say nothing new.
func (h *hosted) led(epoch record.Epoch, leads bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if epoch < h.epoch || h.condition > serving {
		return
	}
	h.epoch, h.leads, h.unsaid = epoch, leads, true
}

// discard hands over a replica that is quarantined and was not stopped yet.
func (h *hosted) discard() replica {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.condition != quarantined {
		return nil
	}
	r := h.replica
	h.replica = nil
	return r
}

// stop takes the replica out of service; the error says that it did not stop in time.
func (h *hosted) stop(ctx context.Context) error {
	h.mu.Lock()
	r := h.replica
	h.replica = nil
	if h.condition <= resetting {
		h.condition = stopped
	}
	h.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.Stop(ctx)
}

// AwaitLeaders waits until the replicas that run lead, or ctx is done. It is for
// a broker that is alone in its cluster.
func (m *Manager) AwaitLeaders(ctx context.Context) {
	tick := time.NewTicker(leaderTick)
	defer tick.Stop()
	for {
		following := false
		m.each(func(h *hosted) {
			if r := h.running(); r != nil && !following {
				following = !r.View().Leader
			}
		})
		if !following {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Trouble names the replicas of this broker that serve nothing; nil where all serve.
func (m *Manager) Trouble() error {
	const named = 5
	var text []string
	n := 0
	m.each(func(h *hosted) {
		if c := h.is(); c != serving && c != stopped {
			if n++; n <= named {
				text = append(text, fmt.Sprintf("%s is %s", h, c))
			}
		}
	})
	if n == 0 {
		return nil
	}
	slices.Sort(text)
	if n > named {
		text = append(text, fmt.Sprintf("and %d more", n-named))
	}
	return errors.New(strings.Join(text, ", "))
}
