package controller

import "context"

// producerBlock is how many ids a broker takes at once. After a crash the rest of the block
// is never used.
const producerBlock = 1000

// producerIDs is this broker's block.
type producerIDs struct {
	turn chan struct{} // holding its one token is holding the block
	next int64
	left int
}

func newProducerIDs() producerIDs {
	return producerIDs{turn: make(chan struct{}, 1)}
}

// InitProducer hands out a producer id that nobody had before, at epoch 0.
func (c *Controller) InitProducer(ctx context.Context) (id int64, epoch int16, err error) {
	p := &c.producers
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return 0, 0, timedOut(ctx, "init producer: waiting for producer ids")
	}
	if p.left == 0 {
		first, err := c.propose(ctx, takeProducers{c.BrokerID(), producerBlock})
		if err != nil {
			return 0, 0, err
		}
		p.next, p.left = first.(int64), producerBlock
	}
	id = p.next
	p.next++
	p.left--
	return id, 0, nil
}
