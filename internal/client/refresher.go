package client

import (
	"context"
	"time"
)

// Refresher keeps the metadata of some topics fresh: at once when Trigger is
// called (but not more often than the backoff allows), and now and then anyway.
type Refresher struct {
	client *Client
	topics func() []string // what to ask about
	done   func(error)     // called after each refresh
	wake   chan struct{}
}

// NewRefresher returns a refresher. Its owner runs Run in a goroutine.
func NewRefresher(c *Client, topics func() []string, done func(error)) *Refresher {
	return &Refresher{client: c, topics: topics, done: done, wake: make(chan struct{}, 1)}
}

// Trigger asks for a refresh soon. It never blocks.
func (r *Refresher) Trigger() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// quietAfter is how long no trigger must come until the pause starts small again.
const quietAfter = 2 * time.Second

// Run refreshes until ctx ends.
func (r *Refresher) Run(ctx context.Context) {
	aged := time.NewTicker(r.client.cfg.MetadataMaxAge)
	defer aged.Stop()
	quiet := time.NewTimer(quietAfter)
	defer quiet.Stop()
	tries := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-quiet.C:
			tries = 0
			continue
		case <-aged.C:
		case <-r.wake:
			if tries > 0 && Sleep(ctx, r.client.cfg.Backoff.Delay(tries-1)) != nil {
				return
			}
			tries++
			quiet.Reset(quietAfter)
		}
		if topics := r.topics(); len(topics) > 0 {
			r.done(r.client.Refresh(ctx, topics...))
		} else {
			r.done(r.client.RefreshBrokers(ctx))
		}
	}
}
