package group

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
)

// shard is one state group: its state machine, and what only its leader knows.
// It is also the StateMachine that the state group applies commands to.
type shard struct {
	cfg      Config
	clock    clock.Clock
	metadata Metadata
	logger   *slog.Logger
	metrics  *metrics
	sg       StateGroup // set by Attach, before Start
	patterns patterns
	poke     chan struct{} // capacity 1: the timers have something to do

	mu      sync.Mutex
	machine *machine               // guarded by mu
	term    uint64                 // guarded by mu; the term in which live was begun, 0 when this is not the leader
	live    liveGroups             // guarded by mu
	next    time.Time              // guarded by mu; when the timers run next, zero: not at all
	sweep   time.Time              // guarded by mu; when retention and topics are looked at next
	missing map[[16]byte]time.Time // guarded by mu; topics that have offsets and are not known, since when
	stopped bool                   // guarded by mu
}

type liveGroups map[string]*liveGroup

// liveGroup is what the leader knows about a group and does not replicate.
type liveGroup struct {
	members map[string]*liveMember
	// Classic: member ids handed out and not joined with yet, with the end of their time.
	pending map[string]time.Time
	// phase and generation are those that the deadline below is for.
	phase      phase
	generation int32
	deadline   time.Time // of the join phase, or for syncing
	// remaining bounds what newcomers can add to the initial delay.
	remaining time.Duration
	newcomer  bool
	unsynced  map[string]bool // members that have yet to ask for their assignment in this generation
}

type liveMember struct {
	incarnation uint64
	epoch       int32
	session     time.Time // when it ends
	heard       time.Time // last sign of life
	parked      int       // requests held: the member is alive
	revoke      time.Time // end of the time for giving up partitions; zero: nothing to give up
	owned       []Assignment
	wake        chan struct{} // closed when something changed for the member
}

// now reads the monotonic clock, in the form that deadlines have.
func now() time.Time { return clock.Deadline(0) }

// Apply implements StateMachine.
func (s *shard) Apply(_ uint64, command []byte) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd, o := s.machine.apply(command)
	if cmd == nil {
		s.logger.Error("group command not understood", "err", o.text)
		return o
	}
	if s.term != 0 && cmd.body.kind() != kindCommit { // commits change no member, and are many
		s.follow(cmd.group)
		s.metrics.rebalanced(o.rebalance)
	}
	return o
}

// Snapshot implements StateMachine.
func (s *shard) Snapshot() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machine.snapshot(), nil
}

// Restore implements StateMachine.
func (s *shard) Restore(snapshot []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.machine.restore(snapshot); err != nil {
		return err
	}
	s.abdicate()
	return nil
}

// lead locks the shard and finds out whether it leads; when it does not it
// unlocks and returns an error. A new leader begins with full time for everybody.
func (s *shard) lead() error {
	term, ok := s.sg.Leading()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return errs.New(errs.ShuttingDown, "this broker is stopping; ask another one")
	}
	if !ok {
		s.abdicate()
		s.mu.Unlock()
		return errNotCoordinator
	}
	if term != s.term {
		s.accede(term)
	}
	return nil
}

var errNotCoordinator = errs.New(errs.NotCoordinator, "the group is coordinated elsewhere; ask for its coordinator again")

var errUnknownNotCoordinator = errs.Unknown(errs.NotCoordinator, "this broker lost the group before the change was confirmed; it may have taken effect")

func (s *shard) accede(term uint64) {
	s.abdicate()
	s.term = term
	s.live = liveGroups{}
	s.missing = map[[16]byte]time.Time{}
	s.sweep = now()
	for name := range s.machine.groups {
		s.follow(name)
	}
	s.wakeTimers(now())
}

// abdicate forgets what only a leader knows; those that wait find out that they wait in the wrong place.
func (s *shard) abdicate() {
	for _, lg := range s.live {
		lg.wakeAll()
	}
	s.term, s.live, s.next = 0, nil, time.Time{}
}

// propose replicates a command and returns what it came to.
func (s *shard) propose(ctx context.Context, group string, b body) (outcome, error) {
	cmd := command{group: group, at: s.clock.Now().UnixMilli(), body: b}
	encoded := cmd.encode()
	if len(encoded) > maxCommandBytes {
		return outcome{}, errs.Errorf(errs.InvalidRequest, "a change of group %q takes %d bytes, %d are allowed; split the request", group, len(encoded), maxCommandBytes)
	}
	result, err := s.sg.Propose(ctx, encoded)
	if err != nil {
		switch {
		case errs.CodeOf(err) == errs.NotLeaderOrFollower && errs.OutcomeUnknown(err):
			return outcome{}, errors.Join(errUnknownNotCoordinator, err)
		case errs.CodeOf(err) == errs.NotLeaderOrFollower:
			return outcome{}, errNotCoordinator
		}
		return outcome{}, fmt.Errorf("replicate a change of group %q: %w", group, coded(err))
	}
	o, ok := result.(outcome)
	if !ok {
		return outcome{}, fmt.Errorf("change of group %q: state machine answered %T", group, result)
	}
	return o, o.err()
}

// coded gives a code to a context that ended while a command was under way: nobody knows what became of it.
func coded(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		if errs.CodeOf(err) == errs.UnknownServerError {
			return errors.Join(errs.Unknown(errs.RequestTimedOut, "gave up waiting; it may have taken effect"), err)
		}
	}
	return err
}

// follow brings what the leader remembers of a group in line with its state.
func (s *shard) follow(name string) {
	g, lg := s.machine.groups[name], s.live[name]
	if g == nil && (lg == nil || len(lg.pending) == 0) {
		if lg != nil {
			lg.wakeAll()
			delete(s.live, name)
		}
		return
	}
	lg = s.liveGroup(name)
	if g == nil {
		g = newGroup()
	}
	at := now()
	for id, lm := range lg.members {
		if m := g.members[id]; m == nil || m.incarnation != lm.incarnation {
			lm.signal()
			delete(lg.members, id)
		}
	}
	for id, m := range g.members {
		lm := lg.members[id]
		if lm == nil {
			lm = &liveMember{incarnation: m.incarnation, epoch: m.epoch, heard: at, wake: make(chan struct{})}
			lm.session = at.Add(millis(m.sessionMillis))
			lg.members[id] = lm
			lg.newcomer = lg.newcomer || lg.phase == phasePreparing
			s.wakeTimers(lm.session)
		}
		s.followMember(m, lm, at)
	}
	s.followPhase(g, lg, at)
}

func (s *shard) followMember(m *member, lm *liveMember, at time.Time) {
	if lm.epoch != m.epoch {
		lm.epoch = m.epoch
		lm.signal()
	}
	revoking := false
	for _, h := range m.held {
		revoking = revoking || h.revoking
	}
	switch {
	case !revoking:
		lm.revoke = time.Time{}
	case lm.revoke.IsZero():
		lm.revoke = at.Add(millis(m.rebalanceMillis))
		s.wakeTimers(lm.revoke)
	}
}

// followPhase starts the clock of each phase of a classic group.
func (s *shard) followPhase(g *groupState, lg *liveGroup, at time.Time) {
	if g.protocol != ProtocolClassic {
		lg.phase = phaseEmpty
		return
	}
	if lg.phase != g.phase || lg.generation != g.generation {
		began := lg.phase != g.phase
		lg.phase, lg.generation = g.phase, g.generation
		lg.wakeAll()
		switch {
		case g.phase == phasePreparing && began:
			clear(lg.unsynced)
			s.startJoining(g, lg, at)
		case g.phase == phaseCompleting:
			for id := range g.members {
				lg.unsynced[id] = true
			}
			lg.deadline = at.Add(g.longestRebalance())
		}
	}
	if g.phase == phasePreparing && g.allJoined() && !g.initial && len(lg.pending) == 0 {
		s.wakeTimers(at)
	}
	if g.phase != phaseEmpty && !lg.deadline.IsZero() {
		s.wakeTimers(lg.deadline)
	}
}

// startJoining sets how long members may take to join. The first members of an
// empty group wait a little for others instead, so that they do not rebalance once for each.
func (s *shard) startJoining(g *groupState, lg *liveGroup, at time.Time) {
	lg.deadline = at.Add(g.longestRebalance())
	if !g.initial {
		return
	}
	delay := min(s.cfg.InitialRebalanceDelay, g.longestRebalance())
	lg.remaining = g.longestRebalance() - delay
	lg.deadline = at.Add(delay)
	lg.newcomer = false
}

func (g *groupState) longestRebalance() time.Duration {
	var d time.Duration
	for _, m := range g.members {
		d = max(d, millis(m.rebalanceMillis))
	}
	return d
}

func (g *groupState) allJoined() bool {
	for _, m := range g.members {
		if !m.joined {
			return false
		}
	}
	return true
}

func (s *shard) liveGroup(name string) *liveGroup {
	lg := s.live[name]
	if lg == nil {
		lg = &liveGroup{members: map[string]*liveMember{}, pending: map[string]time.Time{}, unsynced: map[string]bool{}}
		s.live[name] = lg
	}
	return lg
}

// renew takes a sign of life.
func (s *shard) renew(m *member, lm *liveMember) {
	lm.heard = now()
	lm.session = lm.heard.Add(millis(m.sessionMillis))
}

func (lg *liveGroup) wakeAll() {
	for _, lm := range lg.members {
		lm.signal()
	}
}

func (lm *liveMember) signal() {
	close(lm.wake)
	lm.wake = make(chan struct{})
}

// find returns a member and what is known of it; both or neither.
func (s *shard) find(group, id string) (*groupState, *member, *liveMember) {
	g := s.machine.groups[group]
	if g == nil || s.live[group] == nil {
		return g, nil, nil
	}
	m, lm := g.members[id], s.live[group].members[id]
	if m == nil || lm == nil {
		return g, nil, nil
	}
	return g, m, lm
}

// park waits, with the shard unlocked, until something changes for the member.
// The member is alive meanwhile. It returns false when ctx ended first. The shard is locked
// again afterwards, and everything may have changed.
func (s *shard) park(ctx context.Context, lm *liveMember) bool {
	wake := lm.wake
	lm.parked++
	s.mu.Unlock()
	woken := true
	select {
	case <-wake:
	case <-ctx.Done():
		woken = false
	}
	s.mu.Lock()
	lm.parked--
	return woken
}

func millis(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }
