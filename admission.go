package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: how a call gets through line and route.

import (
	"context"
	"errors"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// refuseIfCrowded rejects a call that would find the queue full, before a call is made. Rejecting is most of a
// guard's work under overload.
func (g *Guard) refuseIfCrowded(ctx context.Context, s *settings) error {
	l := g.limiter
	if s.cfg.MaxQueue == Off || l.waiting.Load() < int64(s.cfg.MaxQueue) {
		return nil
	}
	return g.refuseInCrowd(ctx, s)
}

// refuseInCrowd is the slow path of refuseIfCrowded. It is not inlined, to keep its frame off the stack of a waiting
// call.
//
//go:noinline
func (g *Guard) refuseInCrowd(ctx context.Context, s *settings) error {
	l := g.limiter
	if callctx.HoldsSlot(ctx) || ctx.Err() != nil || g.closing.Load() {
		return nil // rejected for another reason
	}
	e := l.crowded(s)
	if e == nil {
		return nil
	}
	if !s.silent() || g.recent.on.Load() {
		return g.refuse(ctx, s, e)
	}
	g.calls.Add(1)
	g.refused.Add(1)
	e.Op, e.Model = s.Op, s.Model
	return e
}

// refuse counts and reports a rejection for which no call was made.
func (g *Guard) refuse(ctx context.Context, s *settings, err error) error {
	c := g.newCall(ctx, s)
	c.count()
	return c.finish(ctx, err)
}

// errQueue is returned by enter when the call has to wait.
var errQueue = errors.New("aiguard: no slot is free")

// enter begins an attempt if a slot is free, or uses the slot of the Do around the call.
func (c *call) enter(ctx context.Context) error {
	now := c.arrival()
	if c.cfg.Budget != nil {
		if err := c.reserve(ctx); err != nil {
			c.denied = true
			return err
		}
		now = c.now()
	}
	var err error
	if c.shared() != nil {
		err = c.limiter.enterNested(c, now)
	} else if e := c.overMemory(ctx); e != nil {
		err = e
	} else if c.limiter.custom != nil {
		err = errQueue
	} else {
		err = c.limiter.enter(ctx, c, now)
	}
	if err == nil {
		c.begun(ctx, now)
	}
	c.denied = err != nil
	return err
}

// arrival returns the time at which the attempt was requested. For the first attempt that is the start of the call,
// which saves a reading of the clock.
func (c *call) arrival() instant {
	if c.attempts == 0 && c.queued == 0 && c.skipped == 0 {
		return c.start
	}
	return c.now()
}

// overMemory rejects a new call while the heap is over its limit.
func (c *call) overMemory(ctx context.Context) *Error {
	if c.attempts > 0 {
		return nil
	}
	e, crossed := c.memory.check()
	if crossed {
		c.report(ctx, EventMemorySpike, e, 0)
	}
	return e
}

// queue waits for admission, in line or in Config.Limiter, and begins an attempt. A waiting call should fit in the 2
// KiB stack with which a goroutine starts, so the frames above and below are few and small.
func (c *call) queue(ctx context.Context) error {
	if c.cfg.OnEvent != nil {
		c.emit(ctx, EventQueued, nil)
	}
	if c.waiter == nil {
		joined := c.arrival()
		return c.dequeued(ctx, joined, c.askLimiter(ctx))
	}
	joined := c.waiter.joined
	if c.waiter.byTotal {
		return c.dequeued(ctx, joined, c.waitWithinTotal(ctx))
	}
	return c.dequeued(ctx, joined, c.limiter.wait(ctx, c))
}

// dequeued ends a wait, and begins the attempt if err is nil.
//
//go:noinline
func (c *call) dequeued(ctx context.Context, joined instant, err error) error {
	if c.waiter != nil {
		c.limiter.waiters.Put(c.waiter)
		c.waiter = nil
	}
	now := instant(c.permit.sending.At) // the time of admission, which saves a reading of the clock
	if err != nil {
		now = c.now()
	}
	c.waited(time.Duration(now - joined))
	if err == nil {
		c.begun(ctx, now)
	}
	c.denied = err != nil
	return err
}

// waited adds to the time spent waiting for admission.
func (c *call) waited(d time.Duration) {
	c.queued += d
	c.limiter.waitCount.Add(1)
	c.limiter.waitTime.Add(int64(d))
}

// waitWithinTotal waits in line with its own timer.
func (c *call) waitWithinTotal(ctx context.Context) error {
	wctx, cancel, why := c.bound(ctx, ErrTimeout, timeBound{limit: Off})
	defer cancel()
	err := c.limiter.wait(wctx, c)
	if err != nil && wctx.Err() != nil {
		if _, ok := err.(*Error); !ok || error(why) == err {
			return c.ended(ctx, wctx, why)
		}
	}
	return err
}

// begun records the start of an attempt.
func (c *call) begun(ctx context.Context, now instant) {
	c.admitted = now
	c.attempts++
	if c.trail != nil {
		c.attemptBegun(c.attempts, now)
	}
	c.emit(ctx, EventAdmitted, nil)
}

// admission returns the latest time at which a call that starts to wait now may be admitted; 0: no limit. The caller
// holds the limiter's lock.
func (c *call) admission(ctx context.Context, now instant) instant {
	end := c.ends(ctx)
	if patience := c.limiter.patience; patience != Off {
		if until := now.add(patience); end == 0 || until < end {
			end = until
		}
	}
	return end
}
