package aiguard

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// call is one call from admission to result:
//
//	begin → for each attempt: admit → the attempt → again → finish
//
// begin registers it, so that Close can cancel it and Shutdown wait for it; admit waits for a slot; the attempt is
// Do's or the transport's own; again decides about a further one and waits for it. It belongs to one goroutine, but
// for cancel and the ring, which core.mu guards, and the slot, which any goroutine may release.
type call struct {
	*core
	Call
	host  string // of the route; "": a Do's, which its Op names
	outer *call  // the Do or RunTask of the same Guard that this call is made in

	start    instant
	deadline instant // TotalTimeout; 0: none
	admitted instant // begin of the attempt; 0: none is under way
	slot     slot
	gate     *gate // the reopening route this attempt goes through

	attempts                  int
	queued, backoff, inFlight time.Duration
	last                      *Error // why the attempt before failed
	stale                     bool   // has had its retry without backoff
	over                      bool   // finished, or handed over to a stream
	nested                    bool   // part of a Do, which counts

	heap, prompt, answer int64 // bytes: live at the first attempt, sent and received by the last

	next, prev *call
	cancel     context.CancelFunc // ends what the call is in right now
}

// instant is a moment on the guard's own clock, which is monotonic, cheap to read and a third of a time.Time: nanoseconds
// since the guard was made, and never 0.
type instant int64

func (c *core) now() instant { return instant(time.Since(c.born)) }

func (c *core) since(i instant) time.Duration { return time.Duration(c.now() - i) }

func (c *core) time(i instant) time.Time { return c.born.Add(time.Duration(i)) }

func (i instant) add(d time.Duration) instant { return i + instant(d) }

func (g *Guard) newCall(ctx context.Context, settings Call, host string) *call {
	if settings.Weight == 0 {
		settings.Weight = 1
	}
	c := &call{core: g.core, Call: settings, host: host, start: g.now()}
	if outer, _ := ctx.Value(callctx.Key{}).(*call); outer != nil && outer.core == g.core {
		c.outer = outer
		c.nested = c.shared() != nil
	}
	if g.cfg.TotalTimeout != Off {
		c.deadline = c.start.add(g.cfg.TotalTimeout)
	}
	return c
}

// settings are those of a call that a request makes: With may rename it, but its model is a fact.
func (g *Guard) settings(op, model string) Call {
	settings := Call{Op: op}.over(g.call)
	if model != "" {
		settings.Model = model
	}
	return settings
}

// route is where this call goes, for a 429 to speak of.
func (c *call) route() route {
	if c.host != "" {
		return route{host: c.host, model: c.Model}
	}
	return route{op: c.Op, model: c.Model}
}

// shared returns the Do around this call that holds a slot for it, or nil.
func (c *call) shared() *call {
	for o := c.outer; o != nil; o = o.outer {
		if o.slot.held.Load() {
			return o
		}
	}
	return nil
}

// HoldsSlot is for callctx: calls made in c use its slot, or that of a Do around it.
func (c *call) HoldsSlot() bool { return c.slot.held.Load() || c.shared() != nil }

// wrap runs last inside the middleware.
func (c *core) wrap(ctx context.Context, settings Call, last func(context.Context) error) error {
	called := false
	inner := last
	last = func(ctx context.Context) error {
		if called {
			return errors.New("aiguard: a Middleware called next more than once")
		}
		called = true
		return inner(ctx)
	}
	for i := len(c.cfg.Middleware) - 1; i >= 0; i-- {
		m, next := c.cfg.Middleware[i], last
		last = func(ctx context.Context) error { return m(ctx, settings, next) }
	}
	return last(ctx)
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
	if c.killed || c.closing && (c.outer == nil || c.outer.next == nil) {
		return false
	}
	head := &c.active
	c.prev, c.next = head.prev, head
	c.prev.next, head.prev = c, c
	return true
}

func (c *call) unregister() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		return
	}
	c.prev.next, c.next.prev = c.next, c.prev
	c.next, c.prev, c.cancel = nil, nil, nil
	if c.closing && c.active.next == &c.active {
		close(c.idle)
	}
}

// onKill has Close call cancel from now on; a guard already closed calls it at once.
func (c *call) onKill(cancel context.CancelFunc) {
	c.mu.Lock()
	killed := c.killed
	if c.next != nil {
		c.cancel = cancel
	}
	c.mu.Unlock()
	if killed && cancel != nil {
		cancel()
	}
}

// admit waits until an attempt may begin.
func (c *call) admit(ctx context.Context) error {
	if c.attempts == 0 && c.shared() == nil {
		if e := c.slots.fits(c.Weight); e != nil {
			return c.finish(ctx, e)
		}
		if e, crossed := c.memory.check(); e != nil {
			if crossed {
				c.report(ctx, EventMemorySpike, e, 0)
			}
			return c.finish(ctx, e)
		}
	}
	if err := c.enter(ctx); err != nil {
		return c.finish(ctx, c.lastFailure(err))
	}
	if c.attempts == 0 && !c.silent() { // for leap
		c.heap = c.memory.sample(c.time(c.admitted), memorySample)
	}
	c.attempts++
	c.emit(ctx, EventAdmitted, nil)
	return nil
}

func (c *call) enter(ctx context.Context) error {
	paused, _ := c.routes.find(c.route())
	if c.shared() != nil {
		c.admitted = c.now()
		if paused != nil {
			return c.passShared()
		}
		return nil
	}
	if paused == nil && c.slots.try(&c.slot, c.Weight, c.now()) {
		c.admitted = c.slot.since
		return nil
	}
	if e := c.slots.join(); e != nil {
		return e
	}
	joined := time.Now()
	defer func() {
		waited := time.Since(joined)
		c.queued += waited
		c.slots.leave(waited)
	}()
	c.emit(ctx, EventQueued, nil)
	for {
		if err := c.pass(ctx); err != nil {
			return err
		}
		if err := c.wait(ctx); err != nil {
			c.leaveGate()
			return err
		}
		if g, _ := c.routes.find(c.route()); g == nil || g == c.gate {
			c.admitted = c.slot.since
			return nil
		}
		c.slot.release(c.slot.since) // paused while it waited for the slot
		c.leaveGate()
	}
}

// wait takes a slot in turn.
func (c *call) wait(ctx context.Context) error {
	wctx, cancel, why := c.bound(ctx, c.cfg.QueueTimeout, &Error{Kind: ErrOverloaded, Phase: phaseQueue})
	defer cancel()
	err := c.slots.wait(wctx, &c.slot, c.Call, c.core)
	switch {
	case err == nil:
		return nil
	case wctx.Err() != nil:
		err = c.ended(ctx, wctx, why)
		if e, ok := err.(*Error); ok && e.Kind == ErrOverloaded {
			e.RetryAfter = c.slots.retryAfter()
		}
		return err
	case KindOf(err) != "":
		return c.explain(err)
	}
	return &Error{Kind: ErrOverloaded, Phase: phaseQueue, Err: err}
}

// pass waits out the pause of the call's route, if there is one, and then its turn in the reopening.
func (c *call) pass(ctx context.Context) error {
	for {
		g, until := c.routes.find(c.route())
		if g == nil {
			return nil
		}
		if d := time.Until(until); d > 0 {
			if !c.fits(ctx, until) {
				return pauseError(d)
			}
			if err := c.sleep(ctx, d); err != nil {
				return err
			}
			continue // the pause may have been extended
		}
		wctx, cancel, why := c.bound(ctx, Off, nil)
		err := g.open.Acquire(wctx, 1)
		if err != nil {
			err = c.ended(ctx, wctx, why)
		}
		cancel()
		if err != nil {
			return err
		}
		c.gate = g
		return nil
	}
}

// passShared is pass for a call that uses its Do's slot: it must neither hold that through a pause nor wait for somebody
// who waits for the slot. The Do waits instead, without it.
func (c *call) passShared() error {
	g, until := c.routes.find(c.route())
	switch d := time.Until(until); {
	case g == nil:
		return nil
	case d > 0:
		return pauseError(d)
	case !g.open.TryAcquire(1):
		return pauseError(g.retry)
	}
	c.gate = g
	return nil
}

func pauseError(d time.Duration) *Error {
	return &Error{Kind: ErrRateLimited, Phase: phasePause, RetryAfter: d}
}

func (c *call) leaveGate() {
	if c.gate != nil {
		c.gate.open.Release(1)
		c.gate = nil
	}
}

// fits reports whether something that ends at t ends before the call must.
func (c *call) fits(ctx context.Context, t time.Time) bool {
	d, ok := ctx.Deadline()
	return (!ok || t.Before(d)) && (c.deadline == 0 || t.Before(c.time(c.deadline)))
}

// judge tells the adaptive limit, if there is one, how an attempt ended: while it has its slot, so that the next
// to get that finds the new limit.
func (c *call) judge(ctx context.Context, err error) {
	a := c.slots.adaptive
	if a == nil || !c.slot.held.Load() {
		return
	}
	if err == nil {
		a.answered(c.Weight)
	} else if e := c.own(ctx, err); e != nil && dropped(e) {
		a.dropped(c.time(c.slot.since))
	}
}

// free ends an attempt's hold on its slot; it does nothing the second time.
func (c *call) free() {
	if c.admitted == 0 {
		c.slot.release(c.slot.since)
		return
	}
	now := c.now()
	c.inFlight += time.Duration(now - c.admitted)
	c.admitted = 0
	c.slot.release(now)
}

// again decides, after a failed attempt, about a further one and waits until it may begin; it returns nil to go on,
// or the call's final error.
func (c *call) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if !errors.Is(err, ctx.Err()) {
			err = callctx.Err(ctx)
		}
		return c.finish(ctx, err)
	}
	e, ok := err.(*Error)
	if !ok {
		return c.finish(ctx, err)
	}
	c.leaveGate()
	if e.Phase == phasePause && !c.nested {
		return c.sitOut(ctx, e)
	}
	if e.Kind == ErrRateLimited && e.Phase != phasePause {
		c.pause(ctx, e)
	}
	delay, ok := c.plan(ctx, e)
	if !ok {
		return c.finish(ctx, e)
	}
	c.last = e
	c.retries.Add(1)
	c.report(ctx, EventRetry, e, delay)
	before := time.Now()
	err = c.sleep(ctx, delay)
	c.backoff += time.Since(before)
	if err != nil {
		return c.finish(ctx, c.lastFailure(err))
	}
	return nil
}

// sitOut waits until the pause is over that a call inside this Do met. Nothing was sent: it is no attempt, and no retry.
func (c *call) sitOut(ctx context.Context, e *Error) error {
	c.attempts--
	d := e.RetryAfter + jitter(e.RetryAfter/4)
	if !c.fits(ctx, time.Now().Add(d)) {
		return c.finish(ctx, c.lastFailure(e))
	}
	err := c.sleep(ctx, d)
	c.queued += d
	if err != nil {
		return c.finish(ctx, c.lastFailure(err))
	}
	return nil
}

// pause closes the route that a 429 speaks of, for everybody.
func (c *call) pause(ctx context.Context, e *Error) {
	d := e.RetryAfter
	if d == 0 {
		d = c.cfg.Retry.delay(max(c.attempts, 1), 0)
	}
	if d = c.routes.pause(c.route(), d, time.Now()); d > 0 {
		c.report(ctx, EventPaused, e, d)
	}
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

// answered tells the reopening route, if there is one, that the provider answers again.
func (c *call) answered() {
	if c.gate != nil {
		c.routes.succeeded(c.route(), c.gate)
		c.leaveGate()
	}
}

// succeed ends the call with an answer.
func (c *call) succeed(ctx context.Context, u Usage) {
	c.answered()
	_ = c.finishWith(ctx, nil, u)
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

// letGo gives back the slot, the permit of a reopening route and the place in the ring.
func (c *call) letGo() {
	c.free()
	c.leaveGate()
	c.unregister()
}

// own is err if it is this call's *Error, and not the caller's: the deadline of a Do or RunTask around it, say.
func (c *call) own(ctx context.Context, err error) *Error {
	e, ok := err.(*Error)
	if !ok || ctx.Err() != nil && err == context.Cause(ctx) {
		return nil
	}
	return e
}

// tell counts the call's end, and tells OnEvent and the log.
func (c *call) tell(ctx context.Context, err error, u Usage) {
	e := c.own(ctx, err)
	t := EventDone
	if e != nil && c.attempts == 0 {
		t = EventRefused
	}
	if !c.nested {
		switch {
		case err == nil:
			c.succeeded.Add(1)
		case e == nil && (ctx.Err() != nil || err == errLeft): // the caller left
		case t == EventRefused:
			c.refused.Add(1)
		default:
			c.failed.Add(1)
			if e != nil && e.Kind == ErrTimeout {
				c.timeouts.Add(1)
			}
		}
	}
	if c.cfg.OnEvent != nil {
		ev := c.event(t, err)
		ev.Usage = u
		c.cfg.OnEvent(ctx, ev)
	}
	if e != nil && !c.nested { // the Do around it has the last word
		c.log(ctx, t, e)
	}
}

// fill gives e the facts of the call. It must be this call's own: ended and explain copy what others may hold.
func (c *call) fill(e *Error) {
	if e.Op == "" {
		e.Op = c.Op
	}
	if e.Model == "" {
		e.Model = c.Model
	}
	e.Attempts, e.Queued, e.Backoff, e.InFlight = c.attempts, c.queued, c.backoff, c.inFlight
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

// attempts is Do without its middleware.
func attempts[T any](ctx context.Context, c *call, fn func(context.Context) (T, error)) (v T, err error) {
	if err := c.begin(ctx); err != nil {
		return v, err
	}
	defer c.end()
	for {
		if err := c.admit(ctx); err != nil {
			return v, err
		}
		if v, err = attempt(ctx, c, fn); err == nil {
			c.succeed(ctx, Usage{})
			c.leap(ctx)
			return v, nil
		}
		if err := c.again(ctx, err); err != nil {
			return v, err
		}
	}
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
		c.attempts += max(inner.Attempts-1, 0)
		return &e
	}
	if k != "" {
		return &Error{Kind: k, StatusCode: providerStatus(by), Err: err}
	}
	return err
}

// aboutContext reports whether err may be no more than a context's end.
func aboutContext(err error) bool {
	var ne net.Error
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ne)
}

// event is this moment of the call.
func (c *call) event(t EventType, err error) Event {
	return Event{Type: t, Call: c.Call, Attempt: c.attempts, Queued: c.queued, Backoff: c.backoff,
		InFlight: c.inFlight, Elapsed: c.since(c.start), Err: err}
}

// emit tells OnEvent alone.
func (c *call) emit(ctx context.Context, t EventType, err error) {
	if c.cfg.OnEvent != nil {
		c.cfg.OnEvent(ctx, c.event(t, err))
	}
}

// report logs and emits what happens before the call is over: wait is the time until it goes on.
func (c *call) report(ctx context.Context, t EventType, e *Error, wait time.Duration) {
	if c.silent() {
		return
	}
	copied := *e
	e = &copied
	c.fill(e)
	if c.cfg.OnEvent != nil {
		ev := c.event(t, e)
		ev.Backoff = wait
		c.cfg.OnEvent(ctx, ev)
	}
	c.log(ctx, t, e, slog.Duration("wait", wait))
}

// silent reports whether nobody would hear what there is to tell.
func (c *core) silent() bool { return c.cfg.OnEvent == nil && c.cfg.Logger == nil }

// log writes one line about e. Failures that somebody must act on are errors, a retry is news, the rest warnings.
func (c *core) log(ctx context.Context, t EventType, e *Error, more ...slog.Attr) {
	if c.cfg.Logger == nil {
		return
	}
	level := slog.LevelWarn
	switch {
	case t == EventRetry:
		level = slog.LevelInfo
	case t == EventDone && (e.Kind == ErrUnauthorized || e.Kind == ErrQuota), t == EventTask:
		level = slog.LevelError
	}
	msg := map[EventType]string{
		EventRetry: "aiguard: retrying", EventPaused: "aiguard: route paused", EventRefused: "aiguard: call refused",
		EventDone: "aiguard: call failed", EventAbandoned: "aiguard: stream abandoned", EventTask: "aiguard: task stopped",
		EventMemorySpike: "aiguard: memory limit reached",
	}[t]
	c.cfg.Logger.LogAttrs(ctx, level, msg, append(e.attrs(), more...)...)
}
