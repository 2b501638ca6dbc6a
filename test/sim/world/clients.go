package world

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tidemarkhq/tidemark/internal/check"
	"github.com/tidemarkhq/tidemark/internal/run"
	"github.com/tidemarkhq/tidemark/partition"
	"github.com/tidemarkhq/tidemark/proto/record"
)

// callTime is how long a client waits for an answer before it asks again, or gives up.
const callTime = 2 * time.Second

// client is one process outside of the cluster, on a host of its own.
type client struct {
	world *World
	name  string
	host  caller
	rng   *rand.Rand
	key   check.Key
	lost  bool // the last call had no answer, or not from a leader: ask somebody else
	next  int  // the next value
}

// clients are all of them.
type clients struct {
	world *World
	runs  *run.Group
	all   []func(context.Context)
}

func newClients(w *World) *clients {
	c := &clients{world: w, runs: run.Owned("clients")}
	for p := range int32(w.options.Partitions) {
		for i := range 2 {
			c.add((&idempotent{late: -1, client: w.newClient(fmt.Sprintf("i%d.%d", p, i), p), id: int64(p)*100 + int64(i)}).run)
		}
		for i, acks := range []partition.Acks{partition.AcksAll, partition.AcksQuorum} {
			c.add((&plain{w.newClient(fmt.Sprintf("p%d.%d", p, i), p), acks}).run)
		}
		if w.topic.Retention.Age >= 0 {
			c.add((&trimmer{w.newClient(fmt.Sprintf("t%d", p), p)}).run)
		}
		c.add((&conditional{w.newClient(fmt.Sprintf("e%d", p), p)}).run)
		c.add((&reader{client: w.newClient(fmt.Sprintf("r%d", p), p)}).run)
		c.add((&reader{client: w.newClient(fmt.Sprintf("f%d", p), p), anywhere: true}).run)
	}
	for i := range 3 {
		c.add((&member{client: w.newClient(fmt.Sprintf("g%d", i), 0)}).run)
	}
	return c
}

func (c *clients) add(f func(context.Context)) { c.all = append(c.all, f) }

func (c *clients) start() {
	for _, f := range c.all {
		c.runs.Go("client", f)
	}
}

// stop ends all clients. What they had under way stays unknown.
func (c *clients) stop() { c.runs.Stop() }

func (w *World) newClient(name string, p int32) *client {
	return &client{world: w, name: name, host: w.net.client(name), rng: source(w.options.Seed, name), key: check.Key{Topic: topicName, Partition: p}}
}

// ask asks the leader, as far as the client can tell who that is. Without an answer it returns nil.
func (c *client) ask(ctx context.Context, q *request) *answer {
	n := c.world.leader(c.key.Partition)
	if c.lost && c.rng.IntN(3) == 0 {
		members := c.world.members(c.key.Partition)
		n = c.world.nodes[members[c.rng.IntN(len(members))]]
	}
	a := c.askNode(ctx, n, q)
	c.lost = a == nil || a.err != nil
	return a
}

// produce appends one batch.
func (c *client) produce(ctx context.Context, q *request) *answer {
	q.verb = verbProduce
	a := c.ask(ctx, q)
	if a != nil && a.err == nil {
		a = a.each[0]
		c.lost = a.err != nil
	}
	return a
}

func (c *client) askNode(ctx context.Context, n *node, q *request) *answer {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	q.partition = c.key.Partition
	a, err := c.host.call(ctx, n.name, q)
	if err != nil {
		return nil
	}
	return a
}

// rest waits a random while, up to d.
func (c *client) rest(ctx context.Context, d time.Duration) bool {
	return pause(ctx, time.Duration(c.rng.Int64N(int64(d)))) == nil
}

// values makes n values that were never sent before.
func (c *client) values(n int) []check.Record {
	list := make([]check.Record, n)
	for i := range list {
		list[i] = check.Record{Offset: check.NoOffset, Value: fmt.Sprintf("%s-%d", c.name, c.next)}
		c.next++
	}
	return list
}

// batch is a batch of plain records.
func (c *client) batch(records []check.Record) record.Raw {
	b := record.NewBuilder(record.BuilderConfig{})
	for _, r := range records {
		b.Append(record.Record{Timestamp: now(), Value: []byte(r.Value)})
	}
	raw, err := b.Build()
	if err != nil {
		panic(err) // a few short values
	}
	return raw
}

// placed gives the records the offsets from base on.
func placed(records []check.Record, base record.Offset) []check.Record {
	out := make([]check.Record, len(records))
	for i, r := range records {
		out[i] = check.Record{Offset: int64(base) + int64(i), Value: r.Value}
	}
	return out
}

// op begins an operation of the client.
func (c *client) op(kind check.Kind) check.Op {
	return check.Op{Kind: kind, Process: c.name, Key: c.key, Invoke: c.world.stamp(), Offset: check.NoOffset}
}

// done ends an operation.
func (c *client) done(t check.Ticket, op check.Op, outcome check.Outcome, a *answer) {
	op.Outcome, op.Complete = outcome, c.world.stamp()
	if a != nil {
		op.Epoch = int32(a.epoch)
		if a.err != nil {
			op.Error = a.err.Error()
		}
	}
	c.world.history.End(t, op)
}

// outcome is what an answer says about an append.
func outcome(a *answer) check.Outcome {
	switch {
	case a == nil || a.unknown():
		return check.Unknown
	case a.err != nil:
		return check.Fail
	default:
		return check.OK
	}
}

// plain appends without a producer id, and never sends anything twice.
type plain struct {
	*client
	acks partition.Acks
}

func (p *plain) run(ctx context.Context) {
	for p.rest(ctx, 200*time.Millisecond) {
		records := p.values(1 + p.rng.IntN(3))
		op := p.op(check.Send)
		op.Records = records
		op.Producer = &check.Producer{ID: -1, Seq: -1}
		t := p.world.history.Begin(op)
		a := p.produce(ctx, &request{nonce: p.rng.Uint64(), acks: p.acks, batches: []record.Raw{p.batch(records)}})
		result := outcome(a)
		if result == check.OK {
			op.Records = placed(records, a.base)
			p.world.acked(p.name, op, a)
		}
		p.done(t, op, result, a)
		if result != check.OK {
			p.world.trace.say(p.name, "send %s: %s", records[0].Value, why(a))
			p.rest(ctx, 200*time.Millisecond)
		}
	}
}

func why(a *answer) string {
	if a == nil {
		return "no answer"
	}
	return a.err.Error()
}

// conditional asks where the partition ends, and appends only there.
type conditional struct{ *client }

func (e *conditional) run(ctx context.Context) {
	for e.rest(ctx, 300*time.Millisecond) {
		at, ok := e.end(ctx)
		if !ok {
			e.rest(ctx, 200*time.Millisecond)
			continue
		}
		records := e.values(1)
		op := e.op(check.Send)
		op.Records = records
		op.Producer = &check.Producer{ID: -1, Seq: -1}
		t := e.world.history.Begin(op)
		a := e.produce(ctx, &request{nonce: e.rng.Uint64(), batches: []record.Raw{e.batch(records)}, conditional: true, offset: at})
		result := outcome(a)
		if result == check.OK {
			op.Records = placed(records, a.base)
			e.world.acked(e.name, op, a)
			if a.base != at {
				e.world.trace.violation(e.name, "expectation: appended at %d, the append expected %d", a.base, at)
			}
		}
		e.done(t, op, result, a)
	}
}

// end is a linearizable read of the partition's end.
func (c *client) end(ctx context.Context) (record.Offset, bool) {
	op := c.op(check.Latest)
	a := c.ask(ctx, &request{verb: verbEnd})
	if a == nil || a.err != nil {
		return 0, false
	}
	op.Offset, op.Epoch, op.Outcome, op.Complete = int64(a.end), int32(a.epoch), check.OK, c.world.stamp()
	c.world.history.Add(op)
	return a.end, true
}
