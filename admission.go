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
	if !g.limiter.full.Load() {
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
	if callctx.HoldsSlot(ctx) || ctx.Err() != nil || g.ring.closing.Load() {
		return nil // rejected for another reason
	}
	silently := s.silent() && !g.recent.on.Load()
	e := l.crowded(s, silently)
	if e == nil {
		return nil
	}
	if !silently {
		return g.refuse(ctx, s, e)
	}
	e.Op, e.Model = s.Op, s.Model
	return e
}

// refuse counts and reports a rejection for which no call was made.
func (g *Guard) refuse(ctx context.Context, s *settings, err error) error {
	c := g.newCall(ctx, s)
	if !c.nested {
		c.calls.Add(1)
	}
	return c.finish(ctx, err)
}

// errQueue is returned by enter when the call has to wait.
var errQueue = errors.New("aiguard: no slot is free")

// enter begins an attempt if a slot is free, or uses the slot of the Do around the call.
func (c *call) enter(ctx context.Context) error {
	now := c.start // for the first attempt, which saves a reading of the clock
	if c.attempts > 0 || c.queued > 0 || c.skipped > 0 {
		now = c.now()
	}
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

// overMemory rejects a new call while the heap is over its limit.
func (h *history) overMemory(ctx context.Context) *Error {
	if h.attempts > 0 {
		return nil
	}
	e, crossed := h.memory.check()
	if crossed {
		h.report(ctx, EventMemorySpike, e, 0)
	}
	return e
}

// queue waits for admission, in line or in Config.Limiter, and begins an attempt. A waiting call should fit in the 2
// KiB stack with which a goroutine starts, so the frames above and below are few and small.
func (c *call) queue(ctx context.Context) error {
	if c.cfg.OnEvent != nil {
		c.emit(ctx, EventQueued, nil)
	}
	if !c.waits {
		joined := c.now()
		return c.dequeued(ctx, joined, c.limiter.custom.admit(ctx, c))
	}
	joined := c.place.joined
	if c.place.byTotal {
		return c.dequeued(ctx, joined, c.place.waitWithinTotal(ctx))
	}
	return c.dequeued(ctx, joined, c.place.wait(ctx))
}

// dequeued ends a wait, and begins the attempt if err is nil.
//
//go:noinline
func (c *call) dequeued(ctx context.Context, joined instant, err error) error {
	c.waits = false
	now := instant(c.permit.sending.At) // the time of admission, which saves a reading of the clock
	if err != nil {
		now = c.now()
	}
	c.queued += time.Duration(now - joined)
	if l := c.limiter; l.custom != nil {
		l.custom.endWait(time.Duration(now - joined))
	}
	if err == nil {
		c.begun(ctx, now)
	}
	c.denied = err != nil
	return err
}

// begun records the start of an attempt.
func (h *history) begun(ctx context.Context, now instant) {
	h.admitted = now
	h.attempts++
	if h.trail != nil {
		h.trail.begin(h.attempts, now, h.memory)
	}
	h.emit(ctx, EventAdmitted, nil)
}
