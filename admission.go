package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: how a call gets through line and route.

import (
	"context"
	"errors"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/line"
	"github.com/aiguard-go/aiguard/internal/provider"
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

// crowded returns an error if the call would find the queue full, else nil. It does not make a route or tenant,
// because rejecting is most of a guard's work under overload. If no call will be made for it, silently is true.
func (l *limiter) crowded(s *settings, silently bool) *Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, r, t := l.now(), l.routes.peek(s), l.tenants.peek(s.Tenant)
	if l.fits(s.Weight) != nil {
		return nil // rejected for another reason
	}
	if r.state.DownSince() != 0 || !r.full() || l.line.Displaced(&r.line, &t.line, s.Priority.line(), int64(now)) != nil {
		return nil
	}
	if silently {
		l.uncalled++
	}
	d := demand{priority: s.Priority, weight: s.Weight}
	return l.refuse(r, t, s.Priority.line(), now, r.queueFull(d, now, t))
}

// fits rejects a call that can never be admitted.
func (l *limiter) fits(weight int64) *Error {
	if l.custom == nil && l.line.Capacity != Off && weight > l.line.Capacity {
		return &Error{Kind: ErrOverloaded, Phase: PhaseWeight, Size: weight, Max: l.line.Capacity, setting: "MaxConcurrent"}
	}
	return nil
}

// full reports whether a new call would find no place: at the route if that has no room, else in line.
func (r *route) full() bool {
	l := r.limiter
	switch {
	case l.maxQueue == Off:
		return false
	case r.line.Room() <= 0:
		return r.line.Waiting()+r.lingering >= l.maxQueue
	}
	return l.line.Ready() >= l.maxQueue
}

func (r *route) queueFull(d demand, now instant, t *tenant) *Error {
	most := int64(r.limiter.maxQueue)
	return &Error{Kind: ErrOverloaded, Phase: PhaseQueue, Size: most, Max: most, RetryAfter: r.retryAfter(d, now, t), setting: "MaxQueue"}
}

// find returns the call's route and tenant.
func (l *limiter) find(c *call, now instant) (*route, *tenant) {
	r := &l.routes.nameless
	if c.hasRoute() {
		r = l.routes.get(c.settings)
	}
	p := &c.permit
	if p.tenant == nil {
		p.tenant = l.tenants.get(c.Tenant)
	}
	p.route = r
	r.refreshFor(now, c.wire.expected())
	return r, p.tenant
}

// enter admits a call if none is before it. Otherwise it puts the call in line and returns errQueue. Any other error
// rejects the call. It is a single function, because the goroutine of a waiting call keeps the stack that this
// needed.
func (l *limiter) enter(ctx context.Context, c *call, now instant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || !c.ring.enlist(c) {
		return &Error{Kind: ErrClosed}
	}
	if e := l.fits(c.Weight); e != nil {
		return e
	}
	r, t := l.find(c, now)
	if e := r.closed(ctx, c, now); e != nil {
		return e
	}
	p := c.Priority.line()
	if l.line.Take(&r.line, &t.line, p, c.Weight, r.cost(c.Weight), int64(now)) {
		l.grant(c, now)
		return nil
	}
	var gone *inLine
	if r.full() {
		d := l.line.Displaced(&r.line, &t.line, p, int64(now))
		if d == nil {
			return l.refuse(r, t, p, now, r.queueFull(c.demand(), now, t))
		}
		gone = d.Value
	}
	if e := r.late(ctx, c, t, now); e != nil {
		return l.refuse(r, t, p, now, e)
	}
	if gone != nil {
		gone.dismiss(displaced)
	}
	w := c.newPlace()
	w.joined, w.until, w.Weight = now, c.admission(ctx, now), c.Weight
	w.patience, w.byTotal = l.patience, c.boundByTotal(now, l.patience)
	l.addWaiting(1)
	r.tokens += c.wire.expected()
	for n := l.line.Join(&w.Waiter, &r.line, &t.line, p, int64(now), r.slots()); n > 0; n-- {
		w.Eldest().Value.dismiss(hopeless)
	}
	r.refresh(now)
	l.next(now).leave()
	if c.permit.held.Load() {
		<-w.over
		return nil
	}
	if l.patience != Off {
		l.wake(now.add(l.patience))
	}
	c.waits = true
	return errQueue
}

// enterNested admits a call inside a Do at its route. The call uses the Do's slot. It must not hold the slot during a
// pause, and must not wait for a call that waits for the slot. So it fails at once, and the Do waits without its
// slot.
func (l *limiter) enterNested(c *call, now instant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.ring.enlist(c) {
		return &Error{Kind: ErrClosed}
	}
	r, _ := l.find(c, now)
	switch state, until := r.state.State(provider.Instant(now), c.wire.expected()); state {
	case provider.Down:
		return r.down(now)
	case provider.Paused, provider.Paced:
		return r.notYet(state, time.Duration(instant(until)-now))
	}
	c.permit.nested = true
	l.grant(c, now)
	return nil
}

// grant records that the line has admitted the call.
func (l *limiter) grant(c *call, now instant) {
	p := &c.permit
	r := p.route
	if r != &l.routes.nameless {
		p.sending = r.state.Send(provider.Instant(now), c.Weight, c.wire.expected())
	} else {
		p.sending = provider.Sending{At: provider.Instant(now), Weight: c.Weight}
	}
	if !p.nested {
		p.tenant.inFlight += c.Weight
		l.inFlight[c.Priority.line()] += c.Weight
		p.cost = r.cost(c.Weight)
	}
	if p.nested || l.custom == nil {
		l.pay(c)
	}
	p.held.Store(true)
	r.refresh(now)
}

// refuse counts the rejection of a call that was not in line, and returns e.
func (l *limiter) refuse(r *route, t *tenant, p line.Priority, now instant, e *Error) *Error {
	l.countRefusal(t, p)
	l.line.Refuse(&r.line, &t.line, p, int64(now))
	return e
}

func (l *limiter) countRefusal(t *tenant, p line.Priority) {
	l.refused[p]++
	t.refused++
}
