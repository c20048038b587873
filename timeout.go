package aiguard

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// timeBound is a bound of time as an Error tells of it.
type timeBound struct {
	phase string
	limit time.Duration // Off: none
}

// timeoutError is the failure of the call at b.
func (c *call) timeoutError(b timeBound) *Error {
	e := &Error{Kind: ErrTimeout, Op: c.Op, Model: c.Model, Phase: b.phase, Limit: b.limit}
	switch b.phase {
	case PhaseCall, PhaseFirstEvent:
		e.setting = c.source
	case PhaseTotal:
		e.setting = "TotalTimeout"
	}
	return e
}

// earlier is what ends first, b from now on or the total, and when; 0: neither.
func (c *call) earlier(now instant, b timeBound) (instant, timeBound) {
	deadline := now.add(b.limit)
	switch {
	case c.deadline != 0 && (b.limit == Off || c.deadline < deadline):
		return c.deadline, timeBound{PhaseTotal, c.total(c.settings)}
	case b.limit == Off:
		return 0, b
	}
	return deadline, b
}

// bound derives a context that ends at b or when the call's TotalTimeout is over, whichever comes first. Its cause then is why:
// the total's time-out, or an error of the kind given.
func (c *call) bound(ctx context.Context, kind Kind, b timeBound) (bctx context.Context, cancel context.CancelFunc, why *Error) {
	deadline, first := c.earlier(c.now(), b)
	if deadline == 0 {
		bctx, cancel = context.WithCancel(ctx)
	} else {
		why = c.timeoutError(first)
		if first == b {
			why.Kind = kind
		}
		bctx, cancel = context.WithDeadlineCause(ctx, c.time(deadline), why)
	}
	c.onKill(cancel)
	return bctx, cancel, why
}

// ended says why a context that was derived from the caller's ctx with the cause why is over: one of our deadlines, the
// caller's own end, or Close.
func (c *call) ended(ctx, bctx context.Context, why *Error) error {
	if why != nil && context.Cause(bctx) == error(why) {
		e := *why
		return &e
	}
	if ctx.Err() != nil {
		return callctx.Err(ctx)
	}
	return &Error{Kind: ErrClosed}
}

// sleep waits for d, or until the caller leaves or the guard is closed.
func (c *call) sleep(ctx context.Context, d time.Duration) error {
	sctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	c.onKill(cancel)
	<-sctx.Done()
	if ctx.Err() == nil && errors.Is(sctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	return c.ended(ctx, sctx, nil)
}

// notEcho is err unless it only repeats that we cancelled, for the reason why: the caller has not.
func notEcho(err error, why *Error) error {
	if errtree.Is(err, context.Canceled) || why != nil && errtree.Is(err, why) {
		return nil
	}
	return err
}

// attemptContext is the context that Do gives to fn. It makes its timer and registers with the caller's context only when
// fn, or what fn calls, asks for them: most of the cost of a short call would be there.
type attemptContext struct {
	context.Context // the caller's
	call            *call
	deadline        instant // 0: none

	mu     sync.Mutex
	armed  context.Context
	cancel context.CancelFunc
	why    *Error // of armed's end
	over   bool
}

func (a *attemptContext) begin(ctx context.Context, c *call) {
	a.Context, a.call = ctx, c
	a.deadline, _ = c.attemptDeadline(PhaseCall)
	c.encloses.Store(int64(a.deadline))
}

// attemptDeadline is when the attempt that has just been admitted must be over, and by which bound; 0: never.
func (c *call) attemptDeadline(phase string) (instant, timeBound) {
	limit := c.timeout()
	if c.planB && c.permit.sending.Probe && c.cfg.Retry.Patience != Off && (limit == Off || limit > c.cfg.Retry.Patience) {
		limit = c.cfg.Retry.Patience // another alternative is there: it does not wait for a provider that may be down
	}
	return c.earlier(c.admitted, timeBound{phase, limit})
}

// Deadline returns the attempt's deadline, or the caller's if that is earlier.
func (a *attemptContext) Deadline() (time.Time, bool) {
	d, ok := a.Context.Deadline()
	if a.deadline != 0 {
		if own := a.call.time(a.deadline); !ok || own.Before(d) {
			return own, true
		}
	}
	return d, ok
}

func (a *attemptContext) Done() <-chan struct{} { return a.arm().Done() }

func (a *attemptContext) Err() error { return a.arm().Err() }

// Value finds the call itself, so that calls in fn know where they are. Other keys go to the armed context: package
// context looks there for the parent of what it derives.
func (a *attemptContext) Value(key any) any {
	if key == (callctx.Key{}) {
		return a.call
	}
	return a.arm().Value(key)
}

func (a *attemptContext) arm() context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.armed != nil {
		return a.armed
	}
	if a.over { // fn left something behind that still asks
		a.armed, a.cancel = context.WithCancel(a.Context)
		a.cancel()
		return a.armed
	}
	if deadline, b := a.call.attemptDeadline(PhaseCall); deadline == 0 {
		a.armed, a.cancel = context.WithCancel(a.Context)
	} else {
		a.why = a.call.timeoutError(b)
		a.armed, a.cancel = context.WithDeadlineCause(a.Context, a.call.time(a.deadline), a.why)
	}
	a.call.onKill(a.cancel)
	return a.armed
}

// end releases what arm made; later users of the context find it cancelled.
func (a *attemptContext) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.cancel != nil {
		a.cancel()
	}
}

// explain classifies the error of fn: the end of its context, if that is what it speaks of, or what it says.
func (a *attemptContext) explain(err error) error {
	a.mu.Lock()
	armed, why := a.armed, a.why
	a.mu.Unlock()
	if armed == nil || armed.Err() == nil {
		return a.call.explain(err)
	}
	switch k := KindOf(err); {
	case a.Context.Err() != nil:
		if k == "" {
			return err // the caller's own, with fn's words around it
		}
		return a.call.explain(err)
	case k != "" && k != ErrTimeout && k != ErrTruncated && k != ErrUnavailable, k == "" && !aboutContext(err):
		return a.call.explain(err) // failed for a reason of its own
	}
	end := a.call.ended(a.Context, armed, why)
	if e, ok := end.(*Error); ok {
		e.Err, e.MayBeBilled = notEcho(err, why), true
	}
	return end
}

// RunTask runs fn, a background operation that may make many calls, under TaskTimeout (or Call.Timeout, from With). fn's
// context carries the values of ctx and ends with it, or when the task's time is over: then RunTask returns an *Error of
// kind ErrTimeout and phase "task", once fn has returned, whatever fn returned, and logs it. Other errors of fn are returned
// as they are. The task holds no slot; its calls do. Shutdown waits for it, and lets it finish its calls. To start a
// task that outlives a request, pass context.WithoutCancel(ctx). RunTask panics if ctx, g or fn is nil, and passes on
// fn's panic.
func (g *Guard) RunTask(ctx context.Context, fn func(context.Context) error) error {
	g.must("RunTask")
	mustContext("RunTask", ctx)
	if fn == nil {
		panic("aiguard: RunTask: nil fn")
	}
	c := g.newCall(ctx, &g.call)
	c.task, c.deadline = true, 0 // TotalTimeout is for calls
	if !c.register() {
		return &Error{Kind: ErrClosed, Op: c.Op, Model: c.Model, Phase: PhaseTask}
	}
	defer c.unregister()
	limit := g.own.Timeout
	if limit == 0 {
		limit = g.cfg.TaskTimeout
	}
	tctx, cancel, why := c.bound(ctx, ErrTimeout, timeBound{PhaseTask, limit})
	defer cancel()
	err := fn(context.WithValue(tctx, callctx.Key{}, c))
	if tctx.Err() != nil && ctx.Err() == nil || why != nil && context.Cause(tctx) == error(why) {
		if end, ok := c.ended(ctx, tctx, why).(*Error); ok && (err != nil || end.Kind == ErrTimeout) {
			end.InFlight = c.since(c.start)
			end.Err = notEcho(err, why)
			if end.Kind == ErrTimeout {
				g.timeouts.Add(1)
			}
			g.log(ctx, EventTask, end, append(c.identity(), slog.Duration("elapsed", end.InFlight))...)
			err = end
		}
	}
	c.emit(ctx, EventTask, err)
	return err
}

// watch is the clock of an attempt over HTTP: a context, cancelled with the bound that ran out as its cause. Unlike a
// deadline it can be set anew, which a stream needs: to its first event, between two, and in all.
type watch struct {
	context.Context
	cancel context.CancelCauseFunc
	caller context.Context
	call   *call

	mu    sync.Mutex // the end of the context stops the timers in another goroutine
	timer *time.Timer
	bound timeBound // of timer
	idle  *time.Timer
}

// watch starts the clock of an attempt that has just been admitted.
func (c *call) watch(ctx context.Context, phase string) *watch {
	w := &watch{caller: ctx, call: c}
	w.Context, w.cancel = context.WithCancelCause(ctx)
	c.onKill(func() { w.cancel(&Error{Kind: ErrClosed}) })
	if deadline, b := c.attemptDeadline(phase); deadline != 0 {
		w.start(-c.since(deadline), b)
	}
	return w
}

func (w *watch) start(d time.Duration, b timeBound) {
	w.bound, w.timer = b, time.AfterFunc(max(d, 1), func() { w.cancel(w.call.timeoutError(b)) })
}

// limit replaces the bound by one that ends d from now (Off: none). If the old one has run out it is returned: the
// context may not know yet.
func (w *watch) limit(d time.Duration, b timeBound) (ranOut *Error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil && !w.timer.Stop() {
		return w.call.timeoutError(w.bound)
	}
	w.timer = nil
	if d != Off {
		w.start(d, b)
	}
	return nil
}

// wait arms the idle bound while the caller waits for the next event, until arrived.
func (w *watch) wait() {
	d := w.call.idleTimeout(w.call.settings)
	if d == Off {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle == nil {
		w.idle = time.AfterFunc(d, func() { w.cancel(&Error{Kind: ErrTimeout, Phase: PhaseStreamIdle, Limit: d}) })
		return
	}
	w.idle.Reset(d)
}

func (w *watch) arrived() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle != nil {
		w.idle.Stop()
	}
}

// stop ends the watch and with it the exchange, unless that is over.
func (w *watch) stop() {
	w.arrived()
	w.mu.Lock()
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	w.cancel(nil)
}

// failure says why the exchange failed with err: the bound that ran out, the caller's end, or nil where err speaks for
// itself.
func (w *watch) failure(err error) error {
	if w.Err() == nil {
		return nil
	}
	if e, ok := context.Cause(w).(*Error); ok && error(e) != context.Cause(w.caller) {
		copied := *e
		copied.Err = notEcho(err, e)
		return &copied
	}
	if w.caller.Err() != nil {
		return callctx.Err(w.caller)
	}
	return nil
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

// left is what the attempt has left of its time; ok is false if it has no bound.
func (c *call) left(ctx context.Context) (left time.Duration, ok bool) {
	end, _ := c.attemptDeadline(PhaseCall)
	if last := c.ends(ctx); last != 0 && (end == 0 || last < end) {
		end = last
	}
	return -c.since(end), end != 0
}
