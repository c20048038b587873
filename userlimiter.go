package aiguard

import (
	"context"
	"time"

	"github.com/aiguard-go/aiguard/internal/provider"
)

// askLimiter asks the user's Limiter to admit a call. The call's route must be open before, and still be open when
// the Limiter admits the call.
func (c *call) askLimiter(ctx context.Context) error {
	for {
		if err := c.passRoute(ctx); err != nil {
			return err
		}
		if err := c.acquire(ctx); err != nil {
			c.free()
			return err
		}
		if c.limiter.stillOpen(c) {
			return nil
		}
		c.free()
	}
}

// passRoute waits until the call's route has room.
func (c *call) passRoute(ctx context.Context) (err error) {
	if err = c.limiter.enter(ctx, c, c.now()); err != errQueue {
		return err
	}
	if c.waiter.byTotal {
		err = c.waitWithinTotal(ctx)
	} else {
		err = c.limiter.wait(ctx, c)
	}
	c.limiter.waiters.Put(c.waiter)
	c.waiter = nil
	return err
}

// acquire waits in the user's Limiter.
func (c *call) acquire(ctx context.Context) error {
	wctx, cancel, why := c.bound(ctx, ErrOverloaded, timeBound{PhaseQueue, c.cfg.QueueTimeout})
	defer cancel()
	release, err := c.limiter.ask(wctx, c)
	switch {
	case err == nil:
		c.permit.release = release
		return nil
	case wctx.Err() != nil:
		err = c.ended(ctx, wctx, why)
		if e, ok := err.(*Error); ok && e.Kind == ErrOverloaded {
			e.RetryAfter = c.limiter.retryAfterOf(c)
		}
		return err
	case KindOf(err) != "":
		return c.explain(err)
	}
	return &Error{Kind: ErrOverloaded, Phase: PhaseQueue, Err: err}
}

// ask calls the user's Limiter, unless too many calls already wait in it.
func (l *limiter) ask(ctx context.Context, c *call) (release func(), err error) {
	if e := l.beginAsking(c); e != nil {
		return nil, e
	}
	defer l.endAsking(c)
	return l.custom.Acquire(ctx, c.Call)
}

func (l *limiter) beginAsking(c *call) *Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.maxQueue != Off && l.asking >= l.maxQueue {
		return l.queueFull(c.permit.route, c.Weight, l.now(), c.permit.tenant, c.Priority)
	}
	l.asking++
	l.waiting.Add(1)
	return nil
}

// endAsking starts the time for which a slot is held.
func (l *limiter) endAsking(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asking--
	l.waiting.Add(-1)
	c.permit.sending.At = provider.Instant(l.now())
}

// stillOpen reports whether the call's route has stayed open since the call passed it.
func (l *limiter) stillOpen(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &c.permit.route.state
	return s.PausedUntil(provider.Instant(l.now())) == 0 && s.DownSince() == 0 || c.permit.sending.Probe
}

func (l *limiter) retryAfterOf(c *call) (d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retryAfter(c.permit.route, c.Weight, l.now(), c.permit.tenant, c.Priority)
}
