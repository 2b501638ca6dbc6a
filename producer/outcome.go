package producer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/proto/errs"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// unknownTopicTries is how often a partition may be unknown before its records
// fail: a broker that starts, or was told of the topic a moment ago, answers so too.
const unknownTopicTries = 8

func (p *Producer) answered(b *batch, res *tidemarkv1.ProduceResponse, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answeredLocked(b, res, err)
}

// answered decides what becomes of a batch after an attempt.
func (p *Producer) answeredLocked(b *batch, res *tidemarkv1.ProduceResponse, err error) {
	t := b.part
	t.inFlight--
	defer p.enqueueLocked(t)
	if b.state == finished {
		return // given up while it travelled
	}
	b.state, b.lastErr = waiting, err
	b.maybe = b.maybe || errs.OutcomeUnknown(err)
	switch {
	case tooLarge(errs.CodeOf(err)) && p.splitLocked(b):
	case err == nil:
		t.attempts = 0
		t.known = t.known || b.numbered && b.pid == t.pid
		b.take(res)
		p.finishLocked(b, nil)
	case p.cfg.idempotent:
		p.judgeNumberedLocked(b, err)
	case errs.OutcomeUnknown(err) || !p.again(b, err):
		p.finishLocked(b, err)
	default:
		p.retryLocked(b, err)
	}
}

// judgeNumbered decides for idempotent producers, who may always send again
// with the same number.
func (p *Producer) judgeNumberedLocked(b *batch, err error) {
	t := b.part
	switch code := errs.CodeOf(err); {
	case code == errs.DuplicateSequenceNumber:
		b.result.Duplicate = true
		p.finishLocked(b, nil)
	case code == errs.OutOfOrderSequenceNumber && t.behind(b) && !t.reset:
		p.retryLocked(b, err) // its turn comes after the batches before it
	case lostIdentity(code) && !b.maybe:
		t.reset = true
		p.retryLocked(b, err)
	case lostIdentity(code):
		p.giveUpLocked(b, client.WithOutcome(err, "an earlier attempt was not answered, and the broker does not remember this producer"))
	case errs.OutcomeUnknown(err), p.again(b, err):
		p.retryLocked(b, err)
	case b.maybe:
		p.giveUpLocked(b, client.WithOutcome(err, "an earlier attempt was not answered"))
	default:
		p.giveUpLocked(b, err)
	}
}

// tooLarge tells that smaller batches may pass: the topic's limit of a batch, or of a segment.
func tooLarge(code errs.Code) bool {
	return code == errs.MessageTooLarge || code == errs.RecordListTooLarge
}

// lostIdentity tells that the broker does not take the next number of this producer.
func lostIdentity(code errs.Code) bool {
	return slices.Contains([]errs.Code{errs.OutOfOrderSequenceNumber, errs.UnknownProducerID, errs.InvalidProducerEpoch, errs.ProducerFenced, errs.InvalidProducerIDMapping}, code)
}

func (p *Producer) again(b *batch, err error) bool {
	if errs.CodeOf(err) == errs.UnknownTopicOrPartition {
		b.unknownTopic++
		return b.unknownTopic < unknownTopicTries
	}
	return errs.Retriable(err)
}

// retry leaves b in its place in the queue, to be sent again after a pause.
func (p *Producer) retryLocked(b *batch, err error) {
	t := b.part
	t.draining = true
	var led *client.LeaderError
	if !errors.As(err, &led) || !p.client.LearnLeader(t.topic, t.number, led) {
		p.refresh.Trigger()
	}
	if t.delayed {
		return
	}
	t.delayed = true
	pause := p.cfg.client.Backoff.Delay(t.attempts)
	t.attempts++
	wake := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		t.delayed = false
		p.enqueueLocked(t)
	}
	if t.retry == nil {
		t.retry = time.AfterFunc(pause, wake)
		return
	}
	t.retry.Reset(pause)
}

// giveUp fails a batch that may hold a number.
func (p *Producer) giveUpLocked(b *batch, err error) {
	b.part.unnumberLocked(b)
	p.finishLocked(b, err)
}

// finish gives b its result, and delivers results in the order of the queue.
func (p *Producer) finishLocked(b *batch, err error) {
	t := b.part
	if b == t.open {
		p.sealLocked(t)
	}
	b.state, b.err = finished, err
	for len(t.queue) > 0 && t.queue[0].state == finished {
		p.settled = append(p.settled, t.queue[0])
		t.queue[0] = nil
		t.queue = t.queue[1:]
	}
	select {
	case p.results <- struct{}{}:
	default:
	}
}

// settle runs callbacks and resolves futures.
func (p *Producer) settle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.results:
			p.settleAll()
		}
	}
}

func (p *Producer) settleAll() {
	for {
		p.mu.Lock()
		if len(p.settled) == 0 {
			p.mu.Unlock()
			return
		}
		b := p.settled[0]
		p.mu.Unlock()
		if b.callbacks {
			for i, r := range b.records {
				if r.done != nil {
					r.done(b.resultOf(int32(i), r.timestamp))
				}
			}
		}
		p.mu.Lock()
		p.settled[0] = nil
		p.settled = p.settled[1:]
		p.releaseLocked(b)
		p.mu.Unlock()
		for ; b != nil; b = b.parent {
			close(b.done)
		}
	}
}

// expire fails records whose delivery timeout has passed, and ends streams
// whose broker does not answer.
func (p *Producer) expire(ctx context.Context) {
	tick := time.NewTicker(max(min(p.cfg.deliveryTimeout/8, 500*time.Millisecond), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		for _, t := range p.parts {
			p.expirePartLocked(t)
		}
		stuck := p.stuckLocked()
		p.mu.Unlock()
		for _, s := range stuck {
			s.fail(ctx, errs.Unknown(errs.RequestTimedOut, fmt.Sprintf("the broker did not answer within %v", p.cfg.client.RequestTimeout)))
		}
	}
}

func (p *Producer) expirePartLocked(t *part) {
	for _, b := range slices.Clone(t.queue) {
		if b.state == finished {
			continue
		}
		if clock.Since(b.started) < p.cfg.deliveryTimeout {
			return
		}
		code, why := p.whyLateLocked(b)
		p.abandonLocked(b, code, fmt.Sprintf("not delivered to %s/%d within %v%s", t.topic, t.number, p.cfg.deliveryTimeout, why))
		p.enqueueLocked(t) // what is behind it may go now
	}
}

// whyLateLocked tells what kept b from being delivered, where it is known: a batch that had nobody to
// travel to has no last error, and whoever reads of a mere timeout looks at the network.
func (p *Producer) whyLateLocked(b *batch) (errs.Code, string) {
	if code := errs.CodeOf(b.lastErr); code == errs.ReplicaQuarantined || code == errs.LeaderNotAvailable {
		return code, "" // the last error says it
	}
	id, _ := p.client.LeaderOf(b.part.topic, b.part.number)
	if id >= 0 || b.state == inFlight || p.client.Known(b.part.topic) == nil {
		return errs.RequestTimedOut, ""
	}
	return errs.LeaderNotAvailable, ": the partition has no leader, because its replica is starting, or is quarantined for damage"
}

// abandon fails a batch with a reason of our own.
func (p *Producer) abandonLocked(b *batch, code errs.Code, why string) {
	b.maybe = b.maybe || b.state == inFlight
	if b.lastErr != nil {
		why += "; last error: " + b.lastErr.Error()
	}
	if b.maybe {
		p.giveUpLocked(b, errs.Unknown(code, why+"; it may have been appended"))
		return
	}
	p.giveUpLocked(b, errs.New(code, why+"; it was not appended"))
}

func (p *Producer) stuckLocked() (stuck []*stream) {
	for _, l := range p.links {
		if s := l.stream; s != nil && len(s.unanswered) > 0 && clock.Since(s.unanswered[0].at) > p.cfg.client.RequestTimeout {
			stuck = append(stuck, s)
		}
	}
	return stuck
}

// abort fails everything that is left, at Close.
func (p *Producer) abortLocked() {
	for _, t := range p.parts {
		for _, timer := range []*time.Timer{t.linger, t.retry} {
			if timer != nil {
				timer.Stop()
			}
		}
		for _, b := range slices.Clone(t.queue) {
			switch {
			case b.state == finished:
			case b.state == waiting && !b.maybe:
				p.giveUpLocked(b, ErrClosed)
			default:
				p.abandonLocked(b, errs.RequestTimedOut, "the producer was closed before the answer came")
			}
		}
	}
}

func (p *Producer) topicNames() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.topics))
	for name := range p.topics {
		names = append(names, name)
	}
	return names
}

// refreshed looks again at what waits for a leader.
func (p *Producer) refreshed(err error) {
	if err != nil {
		p.refresh.Trigger()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, top := range p.topics {
		found := p.client.Known(name)
		if found != nil {
			p.growLocked(found)
		}
		for _, t := range top.parts {
			p.lookLocked(t, found != nil)
		}
	}
}

func (p *Producer) lookLocked(t *part, known bool) {
	if known {
		t.missing = 0
	} else if t.missing++; t.missing >= unknownTopicTries && len(t.queue) > 0 {
		for _, b := range slices.Clone(t.queue) {
			if b.state == waiting {
				p.abandonLocked(b, errs.UnknownTopicOrPartition, fmt.Sprintf("topic %q does not exist any more", t.topic))
			}
		}
	}
	p.enqueueLocked(t)
}

// identify gets producer ids from the cluster, when one is wanted.
func (p *Producer) identify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wantID:
		}
		var res *tidemarkv1.InitProducerResponse
		err := p.client.Any(ctx, "get a producer id", client.Ask, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
			res, err = tidemarkv1.NewLogClient(conn).InitProducer(ctx, &tidemarkv1.InitProducerRequest{})
			return err
		})
		p.mu.Lock()
		p.identifiedLocked(res, err)
		p.mu.Unlock()
	}
}

func (p *Producer) identifiedLocked(res *tidemarkv1.InitProducerResponse, err error) {
	if err == nil {
		p.id.ok, p.id.pid, p.id.epoch = true, res.GetProducerId(), int16(res.GetProducerEpoch())
	}
	for _, t := range p.parts {
		b := t.firstWaiting()
		if b == nil {
			continue
		}
		if err != nil {
			b.lastErr = err
			if !errs.Retriable(err) && !b.numbered {
				p.giveUpLocked(b, err)
			}
		}
		p.enqueueLocked(t)
	}
}

// identify gives t an identity that it has not used; false, and asks for one, where there is none.
func (p *Producer) identifyLocked(t *part) bool {
	if p.id.ok && (!t.hadID || p.id.pid != t.pid) {
		t.hasID, t.hadID, t.pid, t.epoch, t.nextSeq = true, true, p.id.pid, p.id.epoch, 0
		t.known = false
		return true
	}
	p.id.ok = false
	select {
	case p.wantID <- struct{}{}:
	default:
	}
	return false
}
