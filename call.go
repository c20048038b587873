package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: one call from entry to result.

import (
	"context"
	"sync/atomic"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// call is one call from admission to result:
//
//	begin → for each attempt: enter, queue → the attempt → again → finish
//
// begin registers the call, so that Close can cancel it and Shutdown can wait for it. enter asks the budget and
// admits the call, and queue waits if enter cannot. The attempt is made by Do or the transport. again decides about
// another attempt and waits for it. A call belongs to one goroutine, except for cancel and the ring (guarded by
// ring.mu) and the permit (which any goroutine may release).
type call struct {
	history       // for events, the log and the error
	outer   *call // the Do or RunTask around this call, of any Guard

	permit  permit
	verdict provider.Outcome // what the attempt says about its provider
	place   *inLine          // in line; kept for the next wait

	encloses atomic.Int64 // latest end of the attempt of a Do; 0: never
	reserved reserved     // by the attempt, in Config.Budget
	last     *Error       // why the previous attempt failed
	wire     *wire        // nil for a Do

	skipped int32 // attempts that failed without being sent, because the route was closed
	waits   bool  // in line
	denied  bool  // the attempt was not admitted
	stale   bool  // the retry without backoff has been used
	over    bool  // finished, or handed over to a stream
	task    bool  // a RunTask
	gone    bool  // out of the ring, with nothing left to release
	lost    bool  // lost to another attempt of its request
	billed  bool  // the attempt may be billed
	private bool  // a Do whose call nobody else holds, so that another Do may reuse it

	next, prev *call
	work       killer // the current work of the call; nil: none
}

func (g *Guard) newCall(ctx context.Context, s *settings) *call {
	c := new(call)
	c.init(ctx, g.core, s)
	return c
}

func (c *call) init(ctx context.Context, core *core, s *settings) {
	c.core, c.settings, c.start = core, s, core.now()
	c.outer, _ = ctx.Value(callctx.Key{}).(*call)
	for c.outer != nil && !c.outer.around(ctx) {
		c.outer = c.outer.outer
	}
	c.nested = c.shared() != nil
	if !c.silent() {
		c.trail = core.newTrail(c.outer)
	}
	if total := s.total(); total != Off {
		c.deadline = c.start.add(total)
	}
}

// around reports whether ctx ends with this call, a Do or RunTask. A context that does not (context.WithoutCancel)
// may outlive the call and must not use its slot.
func (c *call) around(ctx context.Context) bool {
	if ctx.Done() == nil {
		return false
	}
	end := instant(c.encloses.Load())
	if end == 0 {
		return true
	}
	d, ok := ctx.Deadline()
	return ok && !d.After(c.time(end))
}

// shared returns the Do of the same Guard around this call that holds a slot for it, or nil.
func (c *call) shared() *call {
	for o := c.outer; o != nil; o = o.outer {
		if o.core == c.core && o.permit.held.Load() {
			return o
		}
	}
	return nil
}

// HoldsSlot implements callctx: it reports whether calls made in c use its slot, or the slot of a Do around it.
func (c *call) HoldsSlot() bool { return c.permit.held.Load() || c.shared() != nil }

// begin counts the call. The call is registered when it is admitted or put in line.
func (c *call) begin(ctx context.Context) error {
	if !c.nested {
		c.calls.Add(1)
	}
	if ctx.Err() != nil {
		return c.finish(ctx, callctx.Err(ctx))
	}
	if c.ring.closing.Load() && !c.ring.add(c) {
		return c.finish(ctx, &Error{Kind: ErrClosed})
	}
	return nil
}

// judge records what the end of an attempt says about its provider. free updates the route while the call still has
// its slot, so that the next call to get the slot sees the new limit.
func (c *call) judge(ctx context.Context, err error) {
	c.verdict = provider.Outcome{}
	if err == nil {
		c.verdict = provider.Outcome{Answered: true, Found: true}
		return
	}
	e := ownError(ctx, err)
	if e == nil {
		return // the caller canceled, or fn failed for its own reason
	}
	if !e.judged { // else a nested call has updated its own route
		c.verdict = c.outcome(e, c.cfg.Retry.pauseAfter(e, c.attempts))
	}
	if c.permit.route != &c.limiter.routes.nameless {
		e.judged = true
	}
	if c.wire != nil {
		e.MayBeBilled = c.billed
	} else {
		c.billed = e.MayBeBilled // as fn's error says
	}
}

// answered updates the route at once, because a stream keeps its slot long after the provider's first answer.
func (c *call) answered() {
	c.transition = c.permit.judge(provider.Outcome{Answered: true, Found: true})
}

// free releases an attempt's slot. A second call does nothing.
func (c *call) free() { c.giveBack(false) }

// giveBack implements free. If the attempt is the last, it also takes the call out of the ring. It reports whether it
// did.
func (c *call) giveBack(last bool) bool {
	if c.accountable() {
		return c.giveBackAndAccount(last)
	}
	return c.release(last)
}

// accountable reports whether the attempt has a reservation or an observer.
func (c *call) accountable() bool {
	return c.reserved.Load() != nil || c.wire != nil && c.billed && c.cfg.OnEvent != nil
}

// giveBackAndAccount is giveBack for an accountable attempt. It settles the reservation when the
// slot is free. It is not inlined into giveBack, because the frame of giveBack is on the stack while the next call is
// admitted, and the 2 KiB with which a goroutine starts should suffice.
//
//go:noinline
func (c *call) giveBackAndAccount(last bool) bool {
	granted, used := c.account()
	defer granted.pay(used)
	return c.release(last)
}

// account takes the attempt's reservation and returns it with the usage to settle it with.
func (c *call) account() (granted *reservation, used Usage) {
	granted = c.reserved.Swap(nil)
	if c.billed {
		used = c.wire.used(c.permit.route, granted, c.settings)
	}
	c.trail.note(used)
	return granted, used
}

// release is giveBack without the account of what was used.
func (c *call) release(last bool) bool {
	c.mayBill, c.billed = c.mayBill || c.billed, false
	used, more := int64(0), 0.
	if w := c.wire; w != nil {
		used, more = w.takeUsage()
	}
	next, ok := c.limiter.finish(c, used, more, last)
	if !ok {
		return false
	}
	next.leave()
	c.verdict, c.admitted = provider.Outcome{}, 0
	if release := c.permit.releaser(); release != nil {
		release()
	}
	return last
}

// releaser takes the function that gives the slot back to the user's Limiter; nil: none.
func (p *permit) releaser() (release func()) {
	release, p.release = p.release, nil
	return release
}

// succeed ends the call with an answer.
func (c *call) succeed(ctx context.Context) {
	c.over = true
	c.letGo()
	c.tell(ctx, nil)
}

// finish ends the call with err and returns err with the facts filled in. It is not inlined into do, because the frame
// of do stays on the stack of a waiting call.
//
//go:noinline
func (c *call) finish(ctx context.Context, err error) error {
	c.over = true
	c.letGo()
	c.explainEnd(ctx, err)
	c.tell(ctx, err)
	c.checkSpike(ctx, c.wire)
	return err
}

// explainEnd fills the facts into the error that ends the call.
func (c *call) explainEnd(ctx context.Context, err error) {
	if e := ownError(ctx, err); e != nil {
		c.fill(e)
	}
}

// letGo releases the slot and the places in line and in the ring, even if the user's Limiter panics.
func (c *call) letGo() {
	if c.gone {
		return
	}
	defer c.ring.remove(c)
	if c.waits {
		c.place.abandon()
		c.waits = false
	}
	c.free()
}

// ownError returns err if it is the *Error of a call made with ctx, and nil if it is the caller's, such as the deadline
// of a Do or RunTask around the call.
func ownError(ctx context.Context, err error) *Error {
	e, ok := err.(*Error)
	if !ok || ctx.Err() != nil && err == context.Cause(ctx) {
		return nil
	}
	return e
}

// end cleans up after a panic or Goexit. A call that is over may be reused.
func (c *call) end(ctx context.Context) {
	if c.over {
		if c.private {
			pool := &c.reuse
			*c = call{place: c.place}
			pool.Put(c)
		}
		return
	}
	c.letGo()
	if !c.nested {
		c.failed.Add(1)
	}
	if c.trail != nil {
		c.unwound(ctx)
	}
}
