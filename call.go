package aiguard

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// call is one call from admission to result:
//
//	begin → for each attempt: enter, queue → the attempt → again → finish
//
// begin registers it, so that Close can cancel it and Shutdown wait for it; queue waits for a slot if enter finds none; the
// attempt is Do's or the transport's own; again decides about a further one and waits for it. It belongs to one goroutine,
// but for cancel and the ring, which core.mu guards, and the slot, which any goroutine may release.
type call struct {
	*core
	*settings
	outer *call // the Do or RunTask of the same Guard that this call is made in

	start    instant
	deadline instant     // TotalTimeout; 0: none
	admitted instant     // begin of the attempt; 0: none is under way
	held     atomic.Bool // a slot
	release  func()      // of the user's Limiter
	gate     *gate       // the reopening route this attempt goes through

	attempts int32
	waiting  bool // in the queue
	stale    bool // has had its retry without backoff
	over     bool // finished, or handed over to a stream
	nested   bool // part of a Do, which counts

	queued, backoff, inFlight time.Duration
	last                      *Error // why the attempt before failed

	heap, prompt, answer int64 // bytes: live at the first attempt, sent and received by the last

	next, prev *call
	cancel     context.CancelFunc // ends what the call is in right now
}

// settings are what is known of a call before it begins. Calls may share them.
type settings struct {
	Call
	host string // of the route; "": a Do's, which its Op names
}

func (g *Guard) newCall(ctx context.Context, s *settings) *call {
	c := &call{core: g.core, settings: s, start: g.now()}
	if outer, _ := ctx.Value(callctx.Key{}).(*call); outer != nil && outer.core == g.core {
		c.outer = outer
		c.nested = c.shared() != nil
	}
	if g.cfg.TotalTimeout != Off {
		c.deadline = c.start.add(g.cfg.TotalTimeout)
	}
	return c
}

// request returns the settings of a call that a request makes: With may rename it, but its model is a fact.
func (g *Guard) request(op, model, host string) settings {
	s := settings{Call{Op: op}.over(g.call.Call), host}
	if model != "" {
		s.Model = model
	}
	return s
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
		if o.held.Load() {
			return o
		}
	}
	return nil
}

// HoldsSlot is for callctx: calls made in c use its slot, or that of a Do around it.
func (c *call) HoldsSlot() bool { return c.held.Load() || c.shared() != nil }

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

// refuseIfCrowded refuses before anything is made of a call that would only find the queue full: under overload that
// is most of what a guard does.
func (g *Guard) refuseIfCrowded(ctx context.Context, s *settings) error {
	if !g.slots.crowded() || g.slots.fits(s.Weight) != nil || callctx.HoldsSlot(ctx) || ctx.Err() != nil || g.closing.Load() {
		return nil // or for a reason of its own
	}
	e := g.slots.full()
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
	if c.killed || c.closing.Load() && (c.outer == nil || c.outer.next == nil) {
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
	if c.closing.Load() && c.active.next == &c.active {
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

// errQueue is enter's: the call has to queue.
var errQueue = errors.New("aiguard: no slot is free")

// enter begins an attempt if a slot is free, or with that of the Do around it.
func (c *call) enter(ctx context.Context) error {
	now, paused := c.arrival(), c.paused() != nil
	if c.shared() != nil {
		c.admitted = now
		if paused {
			if err := c.passShared(); err != nil {
				return c.finish(ctx, c.lastFailure(err))
			}
		}
		c.begun(ctx)
		return nil
	}
	if e := c.unfit(ctx); e != nil {
		return c.finish(ctx, e)
	}
	if paused || !c.slots.try(c.Weight) {
		return errQueue
	}
	c.take(now, nil)
	c.begun(ctx)
	return nil
}

// arrival is now, when an attempt is wanted: for the first one, when the call began, which spares a look at the clock.
func (c *call) arrival() instant {
	if c.attempts == 0 && c.queued == 0 {
		return c.start
	}
	return c.now()
}

// unfit refuses a call that can never be admitted, or must not be now.
func (c *call) unfit(ctx context.Context) *Error {
	if c.attempts > 0 {
		return nil
	}
	if e := c.slots.fits(c.Weight); e != nil {
		return e
	}
	e, crossed := c.memory.check()
	if crossed {
		c.report(ctx, EventMemorySpike, e, 0)
	}
	return e
}

// queue waits for a slot and begins an attempt. Who waits here should need no more stack than the 2 KiB that a goroutine
// begins with: the frames above and below it are few and small.
func (c *call) queue(ctx context.Context) error {
	if e := c.slots.join(); e != nil {
		return c.finish(ctx, c.lastFailure(e))
	}
	c.waiting = true // letGo leaves the queue if a callback panics
	joined := c.arrival()
	c.emit(ctx, EventQueued, nil)
	now := joined
	var err error
	for {
		if c.paused() != nil {
			if err = c.pass(ctx); err != nil {
				break
			}
			now = c.now()
		}
		if until, ok := c.patience(now); ok {
			err = c.taken(ctx, c.slots.acquire(ctx, c.Weight, until))
		} else {
			err = c.wait(ctx)
		}
		if g := c.paused(); err == nil && (g == nil || g == c.gate) {
			break
		}
		c.leaveGate()
		if err != nil {
			break
		}
		c.giveBack() // paused while it waited for the slot
	}
	if err != nil {
		c.leaveQueue(c.since(joined))
		return c.finish(ctx, c.lastFailure(err))
	}
	c.leaveQueue(time.Duration(c.admitted - joined))
	c.begun(ctx)
	return nil
}

// begun notes that an attempt is under way.
func (c *call) begun(ctx context.Context) {
	if c.attempts == 0 && !c.silent() { // for leap
		c.heap = c.memory.sample(c.time(c.admitted), memorySample)
	}
	c.attempts++
	c.emit(ctx, EventAdmitted, nil)
}

func (c *call) leaveQueue(waited time.Duration) {
	if c.waiting {
		c.waiting = false
		c.queued += waited
		c.slots.leave(waited)
	}
}

// paused is the gate of the call's route, if that is paused or reopening.
func (c *call) paused() *gate {
	if c.routes.count.Load() == 0 {
		return nil
	}
	g, _ := c.routes.find(c.route())
	return g
}

// take notes that the call has a slot.
func (c *call) take(now instant, release func()) {
	c.admitted = now
	c.release = release
	c.held.Store(true)
}

// patience is until when the call waits in line; 0: as long as its caller. It reports false if that is not the line's to
// bound: with a Limiter of the user's, or where the total is over first, while others in front may wait for longer.
func (c *call) patience(now instant) (until instant, ok bool) {
	if c.cfg.QueueTimeout != Off {
		until = now.add(c.cfg.QueueTimeout)
	}
	return until, c.slots.custom == nil && (c.deadline == 0 || until != 0 && until <= c.deadline)
}

// taken notes the slot that the call has got in line, or says why it has not.
func (c *call) taken(ctx context.Context, err error) error {
	switch err {
	case nil:
		c.take(c.now(), nil)
		return nil
	case ErrOverloaded:
		return &Error{Kind: ErrOverloaded, Phase: phaseQueue, Limit: c.cfg.QueueTimeout, RetryAfter: c.slots.retryAfter()}
	case ErrClosed:
		return &Error{Kind: ErrClosed}
	}
	return callctx.Err(ctx)
}

// wait takes a slot in turn, with a context of its own.
func (c *call) wait(ctx context.Context) error {
	wctx, cancel, why := c.bound(ctx, ErrOverloaded, timeBound{phaseQueue, c.cfg.QueueTimeout})
	defer cancel()
	var release func()
	var err error
	if c.slots.custom != nil {
		release, err = c.slots.ask(wctx, c.Call)
	} else {
		err = c.slots.acquire(wctx, c.Weight, 0)
	}
	switch {
	case err == nil:
		c.take(c.now(), release)
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
		wctx, cancel, why := c.bound(ctx, ErrTimeout, timeBound{limit: Off})
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
	if a == nil || !c.held.Load() {
		return
	}
	if err == nil {
		a.answered(c.Weight)
	} else if e := c.own(ctx, err); e != nil && dropped(e) {
		a.dropped(c.admitted)
	}
}

// free ends an attempt's hold on its slot; it does nothing the second time.
func (c *call) free() {
	if c.admitted == 0 {
		return
	}
	took := c.since(c.admitted)
	c.inFlight += took
	if c.held.Load() {
		c.slots.observe(took)
	}
	c.giveBack()
}

// giveBack gives back the slot, if it is the call's own.
func (c *call) giveBack() {
	c.admitted = 0
	if !c.held.CompareAndSwap(true, false) {
		return
	}
	if c.release != nil {
		c.release()
	}
	c.slots.release(c.Weight)
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
		d = c.cfg.Retry.delay(max(int(c.attempts), 1), 0)
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
	c.leaveQueue(0)
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
		c.emitWith(ctx, t, err, u)
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
	e.Attempts, e.Queued, e.Backoff, e.InFlight = int(c.attempts), c.queued, c.backoff, c.inFlight
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
	if err := g.refuseIfCrowded(ctx, &g.call); err != nil {
		return v, err
	}
	c := g.newCall(ctx, &g.call)
	if err := c.begin(ctx); err != nil {
		return v, err
	}
	defer c.end()
	for {
		if err = c.enter(ctx); err == errQueue {
			err = c.queue(ctx)
		}
		if err != nil {
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

func wrapped[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error)) (v T, err error) {
	err = g.wrap(ctx, g.call.Call, func(ctx context.Context) (err error) {
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
	return Event{Type: t, Call: c.Call, Attempt: int(c.attempts), Queued: c.queued, Backoff: c.backoff,
		InFlight: c.inFlight, Elapsed: c.since(c.start), Err: err}
}

// emit tells OnEvent alone. Where there is none it costs no stack, of which an Event takes much.
func (c *call) emit(ctx context.Context, t EventType, err error) {
	if c.cfg.OnEvent != nil {
		c.emitWith(ctx, t, err, Usage{})
	}
}

func (c *call) emitWith(ctx context.Context, t EventType, err error, u Usage) {
	ev := c.event(t, err)
	ev.Usage = u
	c.cfg.OnEvent(ctx, ev)
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
	case t == EventDone && (e.Kind == ErrUnauthorized || e.Kind == ErrMisconfigured || e.Kind == ErrQuota), t == EventTask:
		level = slog.LevelError
	}
	msg := map[EventType]string{
		EventRetry: "aiguard: retrying", EventPaused: "aiguard: route paused", EventRefused: "aiguard: call refused",
		EventDone: "aiguard: call failed", EventAbandoned: "aiguard: stream abandoned", EventTask: "aiguard: task stopped",
		EventMemorySpike: "aiguard: memory limit reached",
	}[t]
	c.cfg.Logger.LogAttrs(ctx, level, msg, append(e.attrs(), more...)...)
}
