package aiguard

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/errtree"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// call is one call from admission to result:
//
//	begin → for each attempt: enter, queue → the attempt → again → finish
//
// begin registers it, so that Close can cancel it and Shutdown wait for it; enter admits it, and queue waits for that if
// enter cannot; the attempt is Do's or the transport's own; again decides about a further one and waits for it. It belongs
// to one goroutine, but for cancel and the ring, which core.mu guards, and the permit, which any goroutine may give back.
type call struct {
	*core
	*settings
	outer *call // the Do or RunTask that this call is made in, of any Guard

	start    instant
	deadline instant // TotalTimeout; 0: none
	admitted instant // begin of the attempt; 0: none is under way
	permit   permit
	verdict  provider.Outcome // what the attempt says about its provider
	waiter   *inLine          // in line

	encloses atomic.Int64 // when the attempt of a Do ends at the latest; 0: never

	attempts int32
	skipped  int32 // attempts in whose stead the guard has answered
	turned   turn  // of the route, to be told
	denied   bool  // the attempt was not admitted
	stale    bool  // has had its retry without backoff
	over     bool  // finished, or handed over to a stream
	nested   bool  // part of a Do, which counts
	lost     bool  // to another attempt of its request

	queued, backoff, inFlight time.Duration
	last                      *Error // why the attempt before failed

	heap int64 // live bytes at the first attempt
	wire *wire // nil: a Do's

	next, prev *call
	cancel     context.CancelFunc // ends what the call is in right now
}

// wire is what is known besides of a call over HTTP.
type wire struct {
	tokens         float64 // that a request is expected to take
	used           int64   // tokens of the answer
	prompt, answer int64   // bytes sent and received by the last attempt
	race           *race   // that the attempt takes part in; nil: none
}

// tokens is what a request of the call is expected to take.
func (c *call) tokens() float64 {
	if c.wire == nil {
		return 0
	}
	return c.wire.tokens
}

func (g *Guard) newCall(ctx context.Context, s *settings) *call {
	c := &call{core: g.core, settings: s, start: g.now()}
	c.outer, _ = ctx.Value(callctx.Key{}).(*call)
	for c.outer != nil && !c.outer.around(ctx) {
		c.outer = c.outer.outer
	}
	c.nested = c.shared() != nil
	if total := g.total(s); total != Off {
		c.deadline = c.start.add(total)
	}
	return c
}

// around reports whether ctx ends with this call, a Do or RunTask: one that does not (context.WithoutCancel) may outlive
// it, and must not use its slot.
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

// HoldsSlot is for callctx: calls made in c use its slot, or that of a Do around it.
func (c *call) HoldsSlot() bool { return c.permit.held.Load() || c.shared() != nil }

// wrap runs last inside the middleware.
func (c *core) wrap(ctx context.Context, settings Call, last func(context.Context) error) error {
	called, succeeded := false, false
	inner := last
	last = func(ctx context.Context) error {
		if called {
			return errors.New("aiguard: a Middleware called next more than once")
		}
		called = true
		err := inner(ctx)
		succeeded = err == nil
		return err
	}
	for i := len(c.cfg.Middleware) - 1; i >= 0; i-- {
		m, next := c.cfg.Middleware[i], last
		last = func(ctx context.Context) error { return m(ctx, settings, next) }
	}
	if err := last(ctx); err != nil || succeeded {
		return err
	}
	return errors.New("aiguard: a Middleware returned nil, but the call did not succeed")
}

// refuseIfCrowded refuses before anything is made of a call that would only find the queue full: under overload that
// is most of what a guard does.
func (g *Guard) refuseIfCrowded(ctx context.Context, s *settings) error {
	l := g.limiter
	if l.maxQueue == Off || l.waiting.Load() < int64(l.maxQueue) {
		return nil
	}
	return g.refuseInCrowd(ctx, s)
}

// refuseInCrowd is the rest of refuseIfCrowded. Its frame must not be below a call that waits.
//
//go:noinline
func (g *Guard) refuseInCrowd(ctx context.Context, s *settings) error {
	l := g.limiter
	if l.fits(s.Weight) != nil || callctx.HoldsSlot(ctx) || ctx.Err() != nil || g.closing.Load() {
		return nil // or for a reason of its own
	}
	e := l.crowded(s)
	if e == nil {
		return nil
	}
	if !g.silent() {
		return g.refuse(ctx, s, e)
	}
	g.calls.Add(1)
	g.refused.Add(1)
	e.Op, e.Model = s.Op, s.Model
	return e
}

// refuse counts and tells what never became a call.
func (g *Guard) refuse(ctx context.Context, s *settings, err error) error {
	c := g.newCall(ctx, s)
	c.count()
	return c.finish(ctx, err)
}

// begin registers the call.
func (c *call) begin(ctx context.Context) error {
	c.count()
	if ctx.Err() != nil {
		return c.finish(ctx, callctx.Err(ctx))
	}
	if !c.register() {
		return c.finish(ctx, &Error{Kind: ErrClosed})
	}
	return nil
}

func (c *call) count() {
	if !c.nested {
		c.calls.Add(1)
	}
}

// register enters the call into the ring. While the guard shuts down, only calls inside a Do or RunTask that is still
// in the ring are let in, so that the ring stays empty once it is.
func (c *call) register() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.killed || c.closing.Load() && !c.inside() {
		return false
	}
	head := &c.active
	c.prev, c.next = head.prev, head
	c.prev.next, head.prev = c, c
	return true
}

// inside reports whether a Do or RunTask of the same Guard that is in the ring is around the call.
func (c *call) inside() bool {
	for o := c.outer; o != nil; o = o.outer {
		if o.core == c.core {
			return o.next != nil
		}
	}
	return false
}

func (c *call) unregister() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		return
	}
	c.prev.next, c.next.prev = c.next, c.prev
	c.next, c.prev, c.cancel = nil, nil, nil
	if c.closing.Load() && c.active.next == &c.active {
		close(c.idle)
	}
}

// onKill has Close call cancel from now on; a guard already closed calls it at once. So does lose.
func (c *call) onKill(cancel context.CancelFunc) {
	c.mu.Lock()
	killed := c.killed || c.lost
	if c.next != nil {
		c.cancel = cancel
	}
	c.mu.Unlock()
	if killed && cancel != nil {
		cancel()
	}
}

// errQueue is enter's: the call has to wait.
var errQueue = errors.New("aiguard: no slot is free")

// enter begins an attempt if a slot is free, or with that of the Do around it.
func (c *call) enter(ctx context.Context) error {
	now := c.arrival()
	var err error
	if c.shared() != nil {
		err = c.limiter.enterNested(c, now)
	} else if e := c.unfit(ctx); e != nil {
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

// arrival is now, when an attempt is wanted: for the first one, when the call began, which spares a look at the clock.
func (c *call) arrival() instant {
	if c.attempts == 0 && c.queued == 0 && c.skipped == 0 {
		return c.start
	}
	return c.now()
}

// unfit refuses a call that can never be admitted, or must not be now.
func (c *call) unfit(ctx context.Context) *Error {
	if c.attempts > 0 {
		return nil
	}
	if e := c.limiter.fits(c.Weight); e != nil {
		return e
	}
	e, crossed := c.memory.check()
	if crossed {
		c.report(ctx, EventMemorySpike, e, 0)
	}
	return e
}

// queue waits to be admitted, in line or in Config.Limiter, and begins an attempt. A call that waits here should need no
// more stack than the 2 KiB that a goroutine begins with, so the frames above and below are few and small.
func (c *call) queue(ctx context.Context) error {
	if c.cfg.OnEvent != nil {
		c.emit(ctx, EventQueued, nil)
	}
	if c.waiter == nil {
		joined := c.arrival()
		return c.dequeued(ctx, joined, c.askLimiter(ctx))
	}
	joined := c.waiter.joined
	if c.boundByTotal(joined) {
		return c.dequeued(ctx, joined, c.waitWithinTotal(ctx))
	}
	return c.dequeued(ctx, joined, c.limiter.wait(ctx, c))
}

// dequeued ends a wait, and begins the attempt if err is nil.
//
//go:noinline
func (c *call) dequeued(ctx context.Context, joined instant, err error) error {
	now := c.now()
	c.waiter = nil
	c.waited(time.Duration(now - joined))
	if err == nil {
		c.begun(ctx, now)
	}
	c.denied = err != nil
	return err
}

// waited counts a wait to be admitted.
func (c *call) waited(d time.Duration) {
	c.queued += d
	c.limiter.waitCount.Add(1)
	c.limiter.waitTime.Add(int64(d))
}

// boundByTotal reports whether the total is over before the wait in line is.
func (c *call) boundByTotal(joined instant) bool {
	return c.deadline != 0 && (c.cfg.QueueTimeout == Off || c.deadline < joined.add(c.cfg.QueueTimeout))
}

// waitWithinTotal waits in line with a timer of its own.
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

// begun notes that an attempt is under way.
func (c *call) begun(ctx context.Context, now instant) {
	c.admitted = now
	if c.attempts == 0 && !c.silent() { // for leap
		c.heap = c.memory.sample(now, memorySample)
	}
	c.attempts++
	c.emit(ctx, EventAdmitted, nil)
}

// ends is when the call must be over: the total's end or the caller's; 0: neither has one.
func (c *call) ends(ctx context.Context) instant {
	end := c.deadline
	if d, ok := ctx.Deadline(); ok {
		if own := c.instant(d); end == 0 || own < end {
			end = own
		}
	}
	return end
}

// admission returns the latest time at which a call that starts to wait now may be admitted; 0: no limit.
func (c *call) admission(ctx context.Context, now instant) instant {
	end := c.ends(ctx)
	if c.cfg.QueueTimeout != Off {
		if until := now.add(c.cfg.QueueTimeout); end == 0 || until < end {
			end = until
		}
	}
	return end
}

// left is what the attempt has left of its time; ok is false if it has no bound.
func (c *call) left(ctx context.Context) (left time.Duration, ok bool) {
	end, _ := c.attemptDeadline(phaseCall)
	if last := c.ends(ctx); last != 0 && (end == 0 || last < end) {
		end = last
	}
	return -c.since(end), end != 0
}

// fits reports whether a delay from now on ends before the call must, and before a call with a plan B gives up.
func (c *call) fits(ctx context.Context, d time.Duration) bool {
	end := c.ends(ctx)
	if c.planB && c.cfg.Retry.Patience != Off {
		if until := c.start.add(c.cfg.Retry.Patience); end == 0 || until < end {
			end = until
		}
	}
	return end == 0 || c.now().add(d) < end
}

// judge notes what the end of an attempt says about its provider. free tells the route, while the call still has its slot,
// so that the next to get that finds the new limit.
func (c *call) judge(ctx context.Context, err error) {
	c.verdict = c.outcome(ctx, err)
	if e := c.own(ctx, err); e != nil && c.permit.route != &c.limiter.routes.nameless {
		e.judged = true
	}
}

// answered tells the route at once that the provider has answered: a stream keeps its slot for longer.
func (c *call) answered() {
	c.turned = c.limiter.judge(&c.permit, provider.Outcome{Answered: true, Found: true})
}

// free ends an attempt's hold on its slot; it does nothing the second time.
func (c *call) free() {
	used, more := int64(0), 0.
	if w := c.wire; w != nil && w.used > 0 {
		used, more = w.used, float64(w.used)-w.tokens
		w.used = 0
	}
	took, turned, ok := c.limiter.finish(&c.permit, c.Priority.line(), c.verdict, used, more)
	if !ok {
		return
	}
	c.verdict, c.admitted = provider.Outcome{}, 0
	c.inFlight += took
	if turned != noTurn {
		c.turned = turned
	}
	if release := c.permit.release; release != nil {
		c.permit.release = nil
		release()
	}
}

// again decides, after an attempt that failed or was not admitted, about a further one and waits until it may begin; it
// returns nil to go on, or the call's final error.
func (c *call) again(ctx context.Context, err error) error {
	denied := c.denied
	c.denied = false
	c.tellTurn(ctx, err)
	if ctx.Err() != nil {
		if !errtree.Is(err, ctx.Err()) {
			err = callctx.Err(ctx)
		}
		return c.finish(ctx, err)
	}
	e, ok := err.(*Error)
	switch {
	case !ok:
		return c.finish(ctx, err)
	case denied && e.Phase != phaseOutage:
		return c.finish(ctx, c.lastFailure(e))
	case denied:
		c.skipped++ // what the guard has said in the provider's stead counts as an attempt
	case e.Kind == ErrRateLimited && e.route == nil:
		c.report(ctx, EventPaused, e, c.pauseAfter(e))
	}
	delay, ok := c.plan(ctx, e)
	if !ok {
		return c.finish(ctx, e)
	}
	c.last = e
	c.retries.Add(1)
	c.report(ctx, EventRetry, e, delay)
	if err := c.backOff(ctx, e.route, delay); err != nil {
		return c.finish(ctx, c.lastFailure(err))
	}
	return nil
}

// backOff waits before the next attempt. If that is for the pause of a route that a call inside this Do has met, the Do
// counts among those who wait there.
func (c *call) backOff(ctx context.Context, paused *route, delay time.Duration) error {
	if paused != nil && paused.limiter == c.limiter {
		if !c.limiter.linger(paused) {
			return c.last
		}
		defer c.limiter.endLinger(paused)
	}
	before := c.now()
	err := c.sleep(ctx, delay)
	c.backoff += c.since(before)
	return err
}

// lastFailure is what a call ends with that could not be repeated because of err: the failure before, the last real
// one. The caller's own error and a closed guard come first.
func (c *call) lastFailure(err error) error {
	e, ok := err.(*Error)
	if c.last == nil || !ok {
		return err
	}
	if e.Kind == ErrClosed {
		e.Err = c.last
		return e
	}
	return c.last
}

// succeed ends the call with an answer.
func (c *call) succeed(ctx context.Context, u Usage) {
	if c.wire != nil {
		c.wire.used = u.Input + u.Output
	}
	_ = c.finishWith(ctx, nil, u)
}

// returned ends a Do whose fn has succeeded. It is not part of do, whose frame is below a call that waits.
//
//go:noinline
func (c *call) returned(ctx context.Context) {
	_ = c.finishWith(ctx, nil, Usage{})
	c.leap(ctx)
}

// finish ends the call with err, which it returns with the facts filled in.
func (c *call) finish(ctx context.Context, err error) error {
	_ = c.finishWith(ctx, err, Usage{})
	c.leap(ctx)
	return err
}

func (c *call) finishWith(ctx context.Context, err error, u Usage) error {
	c.over = true
	c.settle(ctx, err)
	c.tellTurn(ctx, err)
	c.tell(ctx, err, u)
	return err
}

// settle gives back what the call holds and fills the facts into its error.
func (c *call) settle(ctx context.Context, err error) {
	c.letGo()
	if e := c.own(ctx, err); e != nil {
		c.fill(e)
	}
}

// letGo gives back the slot and the places in line and in the ring, whatever happens in the user's Limiter.
func (c *call) letGo() {
	defer c.unregister()
	if c.waiter != nil {
		c.limiter.abandon(c.waiter)
		c.waiter = nil
	}
	c.free()
}

// own is err if it is this call's *Error, and not the caller's: the deadline of a Do or RunTask around it, say.
func (c *call) own(ctx context.Context, err error) *Error {
	e, ok := err.(*Error)
	if !ok || ctx.Err() != nil && err == context.Cause(ctx) {
		return nil
	}
	return e
}

// end cleans up after a panic or Goexit; for a call that has ended it does nothing.
func (c *call) end() {
	if !c.over {
		c.letGo()
		if !c.nested {
			c.failed.Add(1)
		}
	}
}

func (c *call) maxAttempts() int {
	if c.Attempts != 0 {
		return c.Attempts
	}
	return c.cfg.Retry.MaxAttempts
}

// do is Do, or, inside its middleware, the rest of it.
func do[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error), inside bool) (v T, err error) {
	g.must("Do")
	mustContext("Do", ctx)
	if fn == nil {
		panic("aiguard: Do: nil fn")
	}
	if len(g.cfg.Middleware) > 0 && !inside {
		return wrapped(ctx, g, fn)
	}
	s := g.do(ctx)
	if err := g.refuseIfCrowded(ctx, s); err != nil {
		return v, err
	}
	c := g.newCall(ctx, s)
	if err := c.begin(ctx); err != nil {
		return v, err
	}
	defer c.end()
	for {
		if err = c.enter(ctx); err == errQueue {
			err = c.queue(ctx)
		}
		if err == nil {
			if v, err = attempt(ctx, c, fn); err == nil {
				c.returned(ctx)
				return v, nil
			}
		}
		if err := c.again(ctx, err); err != nil {
			return v, err
		}
	}
}

// wrapped is do inside the middleware.
//
//go:noinline
func wrapped[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error)) (v T, err error) {
	err = g.wrap(ctx, g.do(ctx).Call, func(ctx context.Context) (err error) {
		v, err = do(ctx, g, fn, true)
		return err
	})
	return v, err
}

func attempt[T any](ctx context.Context, c *call, fn func(context.Context) (T, error)) (v T, err error) {
	defer c.free()
	actx := c.attemptContext(ctx)
	defer actx.end()
	if v, err = fn(actx); err != nil {
		err = actx.explain(err)
	}
	c.judge(ctx, err)
	return v, err
}

// explain makes an *Error of an error that has a Kind; others stay as they are. The attempts of a nested call count
// as this one's.
func (c *call) explain(err error) error {
	k, by, _ := classify(err)
	if inner, ok := by.(*Error); ok {
		e := *inner
		e.Op, e.Model = "", "" // fill prefers the call's own
		if c.Op == "" {
			e.Op = inner.Op
		}
		if c.Model == "" {
			e.Model = inner.Model
		}
		if error(inner) != err {
			e.Err = err // the words fn put around it
		}
		c.attempts += int32(max(inner.Attempts-1, 0))
		return &e
	}
	if k != "" {
		return Explain(err)
	}
	if _, ok := err.(*Error); ok {
		return errors.New("aiguard: a nil *Error was returned as an error")
	}
	return err
}

// aboutContext reports whether err may be no more than a context's end.
func aboutContext(err error) bool {
	return errtree.Is(err, context.Canceled) || errtree.Is(err, context.DeadlineExceeded) || errtree.Is(err, os.ErrDeadlineExceeded) ||
		errtree.Is(err, net.ErrClosed) || errtree.Is(err, io.ErrUnexpectedEOF) || errtree.Has[net.Error](err)
}
