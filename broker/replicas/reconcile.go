package replicas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/log"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	// stopTimeout bounds the stop of one replica that left this broker.
	stopTimeout = 10 * time.Second
)

// reconcile makes what runs follow the metadata, until the manager is closed.
func (m *Manager) reconcile(ctx context.Context) {
	defer m.meta.Notify(m.wake)()
	m.warnAboutStrangers()
	retry := time.Duration(0)
	for first := true; ; first = false {
		err := m.pass(ctx)
		if first {
			close(m.ready)
		}
		if ctx.Err() != nil {
			return
		}
		if retry = nextRetry(retry, err); err != nil {
			m.cfg.Logger.Warn("replicas do not follow the metadata yet; trying again", "err", err, "retry_after", retry)
		}
		if !m.await(ctx, retry) {
			return
		}
	}
}

func nextRetry(last time.Duration, err error) time.Duration {
	if err == nil {
		return 0
	}
	return min(max(2*last, firstRetry), lastRetry)
}

// await waits for something to do, or for the retry; false says that it is over.
func (m *Manager) await(ctx context.Context, retry time.Duration) bool {
	var due <-chan time.Time
	if retry > 0 {
		timer := time.NewTimer(retry/2 + rand.N(retry))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-m.wake:
	case <-due:
	case <-ctx.Done():
		return false
	}
	return true
}

// pass looks at everything once. Its parts are independent: an error of one
// keeps no other from being tried.
func (m *Manager) pass(ctx context.Context) error {
	m.retire(ctx)
	m.renew(ctx)
	buried := m.bury(ctx)
	topics := m.meta.Topics() // after the burials: what was buried must not be opened again
	m.openAssigned(ctx, topics)
	m.publish(topics)
	formed := m.form(ctx)
	m.configure(topics)
	return errors.Join(buried, formed, m.report(ctx))
}

// openAssigned opens what is assigned here and not open yet.
func (m *Manager) openAssigned(ctx context.Context, topics []controller.Topic) {
	type job struct {
		h      *hosted
		voters []raft.Server
	}
	var jobs []job
	m.mu.Lock()
	for _, t := range topics {
		for _, p := range t.Partitions {
			for _, r := range p.Replicas {
				if r.Broker != m.meta.BrokerID() || m.hosted[r.UUID] != nil {
					continue
				}
				h := &hosted{topic: t.ID, name: t.Name, partition: p.Partition, id: r.UUID, dir: m.replicaDir(t.ID, p.Partition), config: m.meta.ReplicaConfig(t), epoch: record.Epoch(p.LeaderEpoch)}
				m.hosted[r.UUID] = h
				var voters []raft.Server
				if r.State == controller.ReplicaNew {
					voters = members(p.Replicas)
				}
				jobs = append(jobs, job{h, voters})
			}
		}
	}
	m.mu.Unlock()
	if len(jobs) == 0 {
		return
	}
	m.publish(topics)
	m.inParallel(ctx, len(jobs), func(i int) {
		if ctx.Err() == nil { // a broker that stops recovers nothing any more
			m.openOne(jobs[i].h, jobs[i].voters, jobs[i].voters == nil)
		}
	})
	poke(m.flushers)
}

func members(replicas []controller.Replica) []raft.Server {
	var list []raft.Server
	for _, r := range replicas {
		id := serverID(r)
		list = append(list, raft.Server{Suffrage: raft.Voter, ID: id, Address: raft.ServerAddress(id)})
	}
	return list
}

// serverID names a replica in its group. Neither part is ever used again.
func serverID(r controller.Replica) raft.ServerID {
	return raft.ServerID(strconv.Itoa(int(r.Broker)) + "/" + r.UUID.String())
}

func (m *Manager) openOne(h *hosted, voters []raft.Server, formed bool) {
	r, err := m.tryOpen(h, voters)
	switch {
	case err == nil && !formed:
		h.runs(r, unformed)
	case err == nil:
		h.runs(r, serving)
	case errors.Is(err, errLost):
		h.become(lost, err)
		m.cfg.Logger.Error("replica is lost", "topic", h.name, "partition", h.partition, "dir", h.dir, "err", err)
	case damaged(err):
		h.become(quarantined, err)
		m.cfg.Logger.Error("replica is quarantined: acknowledged data is damaged; its files are kept", "topic", h.name, "partition", h.partition, "dir", h.dir, "err", err)
	default:
		h.become(failed, err)
		m.cfg.Logger.Error("replica cannot be opened", "topic", h.name, "partition", h.partition, "dir", h.dir, "err", err)
	}
}

var errLost = errors.New("a part of the replica is missing, and it is not made again")

func (m *Manager) tryOpen(h *hosted, voters []raft.Server) (replica, error) {
	if err := m.prepareDir(h, voters != nil); err != nil {
		return nil, err
	}
	if voters == nil && !m.stable.Known(h.id) {
		// A replica that forgot its vote could give it twice.
		return nil, fmt.Errorf("%w: its vote is not in the stable store", errLost)
	}
	slot, err := m.stable.Slot(h.id)
	if err != nil {
		return nil, fmt.Errorf("vote slot: %w", err)
	}
	r, err := m.open(partition.Config{
		Dir: h.dir, Topic: log.UUID(h.topic), TopicName: h.name, Partition: h.partition,
		ID: serverID(controller.Replica{Broker: m.meta.BrokerID(), UUID: h.id}), Voters: voters, TopicConfig: h.config,
	}, partition.Deps{
		Stable:       slot,
		Logger:       m.cfg.Logger,
		OnLeadership: func(epoch record.Epoch, leads bool) { h.led(epoch, leads); poke(m.wake) },
		OnFatal:      func(err error) { m.lostTrust(h, err) },
		OnReset:      func() { h.reset(); poke(m.wake) },
	})
	if err != nil {
		return nil, err
	}
	if err := r.Start(); err != nil {
		ctx, cancel := context.WithTimeout(m.tasks.Context(), stopTimeout)
		defer cancel()
		return nil, errors.Join(err, r.Stop(ctx))
	}
	return r, nil
}

// lostTrust is told by a replica that it must not go on. Damage concerns this
// replica alone, and the others go on; anything else is the disk, and the process ends.
func (m *Manager) lostTrust(h *hosted, err error) {
	if !damaged(err) {
		m.cfg.OnFatal(fmt.Errorf("replica %s: %w", h, err))
		return
	}
	h.become(quarantined, err)
	m.cfg.Logger.Error("replica is quarantined: acknowledged data is damaged; its files are kept", "topic", h.name, "partition", h.partition, "dir", h.dir, "err", err)
	poke(m.wake)
}

// damaged tells whether acknowledged data is damaged. The log has left its marker then.
func damaged(err error) bool { return errs.CodeOf(err) == errs.ReplicaQuarantined }

// retire stops what is quarantined: it was fenced when the damage was found.
func (m *Manager) retire(ctx context.Context) {
	m.each(func(h *hosted) {
		r := h.discard()
		if r == nil {
			return
		}
		stopCtx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		if err := r.Stop(stopCtx); err != nil && stopCtx.Err() != nil && ctx.Err() == nil {
			m.cfg.OnFatal(fmt.Errorf("replica %s is damaged and does not stop: %w", h, err))
		}
	})
}

// renew stops and opens again what was reset by its leader: after a long absence that may be all that is here.
func (m *Manager) renew(ctx context.Context) {
	var reset []*hosted
	m.each(func(h *hosted) {
		if h.is() == resetting {
			reset = append(reset, h)
		}
	})
	if len(reset) > 0 {
		m.inParallel(ctx, len(reset), func(i int) { m.renewOne(ctx, reset[i]) })
	}
}

func (m *Manager) renewOne(ctx context.Context, h *hosted) {
	r, formed := h.renew()
	if r == nil {
		return
	}
	// The manager's own end does not cut this short: nobody else would stop it.
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := r.Stop(stopCtx); err != nil {
		h.become(failed, err)
		m.cfg.OnFatal(fmt.Errorf("replica %s was reset and does not stop: %w", h, err))
		return
	}
	if ctx.Err() == nil {
		m.openOne(h, nil, formed)
	}
}

// publish makes the replicas findable by name.
func (m *Manager) publish(topics []controller.Topic) {
	me := m.meta.BrokerID()
	next := &index{topics: make(map[string][]*hosted, len(topics))}
	m.mu.Lock()
	for _, t := range topics {
		list := make([]*hosted, len(t.Partitions))
		for i, p := range t.Partitions {
			for _, r := range p.Replicas {
				if r.Broker == me {
					list[i] = m.hosted[r.UUID]
				}
			}
		}
		next.topics[t.Name] = list
	}
	m.mu.Unlock()
	m.index.Store(next)
}

// form tells the metadata which new replicas were formed; only then do they serve.
// A crash between the two leaves them new, and they are formed again: nothing
// was appended to them.
func (m *Manager) form(ctx context.Context) error {
	var waiting []*hosted
	var list []controller.FormedReplica
	m.each(func(h *hosted) {
		if h.is() == unformed {
			waiting = append(waiting, h)
			list = append(list, controller.FormedReplica{Topic: h.topic, Partition: h.partition, Replica: h.id})
		}
	})
	if len(list) == 0 {
		return nil
	}
	if err := m.meta.Formed(ctx, list); err != nil {
		return fmt.Errorf("report formed replicas: %w", err)
	}
	for _, h := range waiting {
		h.promote()
	}
	poke(m.flushers) // they flush what serves, and may have looked before it did
	return nil
}

// configure hands changed settings to the replicas.
func (m *Manager) configure(topics []controller.Topic) {
	configs := make(map[controller.UUID]partition.TopicConfig, len(topics))
	for _, t := range topics {
		configs[t.ID] = m.meta.ReplicaConfig(t)
	}
	changed := false
	m.each(func(h *hosted) {
		c, ok := configs[h.topic]
		if !ok {
			return
		}
		if r := h.reconfigure(c); r != nil {
			r.Configure(c)
			changed = true
		}
	})
	if changed {
		poke(m.flushers)
	}
}

// report tells the metadata who leads, in one command for all changes.
func (m *Manager) report(ctx context.Context) error {
	me := m.meta.BrokerID()
	var said []*hosted
	var list []controller.Leadership
	m.each(func(h *hosted) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.unsaid || h.condition == unformed || h.condition == starting || h.condition == stopped {
			return
		}
		l := controller.Leadership{Topic: h.topic, Partition: h.partition, Leader: -1, Epoch: int32(h.epoch)}
		if h.leads {
			l.Leader, l.ISR = me, []int32{me}
		}
		h.unsaid = false
		said, list = append(said, h), append(list, l)
	})
	if len(list) == 0 {
		return nil
	}
	if err := m.meta.Report(ctx, list); err != nil {
		for _, h := range said {
			h.mu.Lock()
			h.unsaid = true
			h.mu.Unlock()
		}
		return fmt.Errorf("report leaders: %w", err)
	}
	return nil
}

// bury stops the replicas of deleted topics and moves their directories to the trash.
func (m *Manager) bury(ctx context.Context) error {
	var all error
	me := m.meta.BrokerID()
	for _, grave := range m.meta.Tombstones() {
		for _, b := range grave.Brokers {
			if b == me {
				all = errors.Join(all, m.buryTopic(ctx, grave))
			}
		}
	}
	return all
}

func (m *Manager) buryTopic(ctx context.Context, grave controller.Tombstone) error {
	var mine []*hosted
	m.each(func(h *hosted) {
		if h.topic == grave.Topic {
			mine = append(mine, h)
		}
	})
	for _, h := range mine {
		stopCtx, cancel := context.WithTimeout(ctx, stopTimeout)
		err := h.stop(stopCtx)
		cancel()
		if err != nil && ctx.Err() != nil {
			return err // the broker stops; the tombstone stays
		}
		if err != nil {
			m.cfg.OnFatal(fmt.Errorf("replica %s of a deleted topic does not stop: %w", h, err))
			return err
		}
	}
	if err := m.moveToTrash(grave.Topic); err != nil {
		return fmt.Errorf("topic %q was deleted, and its directory stays: %w", grave.Name, err)
	}
	for _, h := range mine {
		if err := m.stable.Forget(h.id); err != nil {
			return fmt.Errorf("vote slot of %s: %w", h, err)
		}
		m.mu.Lock()
		delete(m.hosted, h.id)
		m.mu.Unlock()
	}
	poke(m.recycle)
	return m.meta.Trashed(ctx, grave.Topic)
}

// each calls f for every hosted replica, without the manager's lock.
func (m *Manager) each(f func(*hosted)) {
	m.mu.Lock()
	all := make([]*hosted, 0, len(m.hosted))
	for _, h := range m.hosted {
		all = append(all, h)
	}
	m.mu.Unlock()
	for _, h := range all {
		f(h)
	}
}

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
