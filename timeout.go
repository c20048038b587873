package aiguard

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// timeBound is a time limit and the phase that an Error reports for it.
type timeBound struct {
	phase string
	limit time.Duration // Off: none
}

// timeoutError returns the error for a call that reached b.
func (s *settings) timeoutError(b timeBound) *Error {
	e := &Error{Kind: ErrTimeout, Op: s.Op, Model: s.Model, Phase: b.phase, Limit: b.limit}
	switch b.phase {
	case PhaseCall, PhaseFirstEvent:
		e.setting = s.source
	case PhaseTotal:
		e.setting = "TotalTimeout"
	case PhaseQueue, PhaseBudget:
		e.setting = "QueueTimeout"
	case PhaseStream:
		e.setting = "StreamTimeout"
	case PhaseTask:
		if e.setting = "TaskTimeout"; s.source == "Call.Timeout" {
			e.setting = s.source
		}
	}
	return e
}

// bound derives a context that ends at b or at TotalTimeout, whichever is first. why is its cause then: the
// TotalTimeout error, or an error of the given kind.
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
	c.ring.onKill(c, killFunc(cancel))
	return bctx, cancel, why
}

// ended returns why a context derived from ctx with cause why is over: one of our deadlines, the caller's
// cancellation, or Close.
func ended(ctx, bctx context.Context, why *Error) error {
	if why != nil && context.Cause(bctx) == error(why) {
		e := *why
		return &e
	}
	if ctx.Err() != nil {
		return callctx.Err(ctx)
	}
	return &Error{Kind: ErrClosed}
}

// notEcho returns err, or nil if err only reports that we canceled with cause why.
func notEcho(err error, why *Error) error {
	if errtree.Is(err, context.Canceled) || why != nil && errtree.Is(err, why) {
		return nil
	}
	return err
}

// attemptContext is the context that Do passes to fn. It creates its timer and registers with the caller's context
// only when fn needs them, because both would dominate the cost of a short call.
type attemptContext struct {
	context.Context // the caller's context
	clock           *clock
	deadline        instant // 0: none

	mu    sync.Mutex
	call  *call // nil: the attempt is over, and the call may be reused
	armed *armed
	over  bool
}

// armed is the part of an attemptContext that ends.
type armed struct {
	context.Context
	cancel context.CancelFunc
	why    *Error // cause at the deadline; nil: no deadline
}

func newAttemptContext(ctx context.Context, c *call) *attemptContext {
	a := &attemptContext{Context: ctx, clock: &c.clock, call: c}
	a.deadline, _ = c.attemptDeadline(PhaseCall)
	c.encloses.Store(int64(a.deadline))
	return a
}

// attemptDeadline returns when an attempt that was just admitted must be over, and by which limit; 0: never.
func (c *call) attemptDeadline(phase string) (instant, timeBound) {
	limit := c.timeout()
	if c.planB && c.permit.sending.Probe && c.cfg.Retry.Patience != Off && (limit == Off || limit > c.cfg.Retry.Patience) {
		limit = c.cfg.Retry.Patience // a later alternative exists, so do not wait long for a provider that may be down
	}
	return c.earlier(c.admitted, timeBound{phase, limit})
}

// Deadline returns the earlier of the attempt's and the caller's deadlines.
func (a *attemptContext) Deadline() (time.Time, bool) {
	d, ok := a.Context.Deadline()
	if a.deadline != 0 {
		if own := a.clock.time(a.deadline); !ok || own.Before(d) {
			return own, true
		}
	}
	return d, ok
}

func (a *attemptContext) Done() <-chan struct{} { return a.arm().Done() }

func (a *attemptContext) Err() error { return a.arm().Err() }

// Value returns the call for callctx.Key, so that calls in fn find the call around them. Other keys go to the armed
// context, because package context looks there for the parent of a derived context.
func (a *attemptContext) Value(key any) any {
	if key == (callctx.Key{}) {
		if c := a.share(); c != nil {
			return c
		}
		return a.Context.Value(key)
	}
	return a.arm().Value(key)
}

// share returns the call, which is then never reused; nil: the attempt is over.
func (a *attemptContext) share() *call {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.call != nil && !a.over {
		a.call.private = false
	}
	return a.call
}

func (a *attemptContext) arm() *armed {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.armed != nil {
		return a.armed
	}
	a.armed = new(armed)
	if a.over { // fn left a goroutine behind that still uses the context
		a.armed.Context, a.armed.cancel = context.WithCancel(a.Context)
		a.armed.cancel()
		return a.armed
	}
	if deadline, b := a.call.attemptDeadline(PhaseCall); deadline == 0 {
		a.armed.Context, a.armed.cancel = context.WithCancel(a.Context)
	} else {
		a.armed.why = a.call.timeoutError(b)
		a.armed.Context, a.armed.cancel = context.WithDeadlineCause(a.Context, a.clock.time(a.deadline), a.armed.why)
	}
	a.call.ring.onKill(a.call, killFunc(a.armed.cancel))
	return a.armed
}

// end releases what arm created. Later users of the context find it canceled. Only the call's own goroutine calls end, so it
// may read over without the lock.
func (a *attemptContext) end() {
	if a.over {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.call.private {
		a.call = nil
	}
	if a.armed != nil {
		a.armed.cancel()
	}
}

// explain classifies the error of fn: as the end of its context if the error reports that, else by its content.
func (a *attemptContext) explain(err error) error {
	a.mu.Lock()
	c, armed := a.call, a.armed
	a.mu.Unlock()
	if armed == nil || armed.Err() == nil {
		return c.explain(err)
	}
	switch k := KindOf(err); {
	case a.Context.Err() != nil:
		if k == "" {
			return err // the caller's own error, wrapped by fn
		}
		return c.explain(err)
	case k != "" && k != ErrTimeout && k != ErrTruncated && k != ErrUnavailable, k == "" && !aboutContext(err):
		return c.explain(err) // failed for its own reason
	}
	end := ended(a.Context, armed, armed.why)
	if e, ok := end.(*Error); ok {
		e.Err, e.MayBeBilled = notEcho(err, armed.why), true
	}
	return end
}

// RunTask runs fn as a background task under TaskTimeout, or the Timeout given to With. fn may make many calls. Its
// context has the values of ctx, and ends with ctx or when the task's time is over. In the latter case RunTask waits
// for fn to return, logs the timeout, and returns an *Error of kind ErrTimeout and phase "task", whatever fn
// returned. Any other error of fn is returned unchanged.
//
// The task holds no slot, but its calls do. Shutdown waits for the task and lets it finish its calls. To start a task
// that outlives a request, pass context.WithoutCancel(ctx). RunTask panics if ctx, g or fn is nil. A panic in fn
// propagates to the caller.
func (g *Guard) RunTask(ctx context.Context, fn func(context.Context) error) error {
	g.must("RunTask")
	mustContext("RunTask", ctx)
	if fn == nil {
		panic("aiguard: RunTask: nil fn")
	}
	c := g.newCall(ctx, g.usual())
	c.task, c.deadline = true, 0 // TotalTimeout applies to calls only
	if !c.ring.add(c) {
		return &Error{Kind: ErrClosed, Op: c.Op, Model: c.Model, Phase: PhaseTask}
	}
	defer c.ring.remove(c)
	limit := g.own.Timeout
	if limit == 0 {
		limit = c.cfg.TaskTimeout
	}
	tctx, cancel, why := c.bound(ctx, ErrTimeout, timeBound{PhaseTask, limit})
	defer cancel()
	err := fn(context.WithValue(tctx, callctx.Key{}, c))
	if tctx.Err() != nil && ctx.Err() == nil || why != nil && context.Cause(tctx) == error(why) {
		if end, ok := ended(ctx, tctx, why).(*Error); ok && (err != nil || end.Kind == ErrTimeout) {
			end.InFlight = c.since(c.start)
			end.Err = notEcho(err, why)
			if end.Kind == ErrTimeout {
				g.timeouts.Add(1)
			}
			c.log(ctx, EventTask, end, append(c.identity(), slog.Duration("elapsed", end.InFlight))...)
			err = end
		}
	}
	c.emit(ctx, EventTask, err)
	return err
}

// watch is the clock of an attempt over HTTP. It is a context whose cause names the limit that expired. Its limit can
// be replaced, which a stream needs: first event, time between events, total time.
type watch struct {
	context.Context
	cancel context.CancelCauseFunc
	caller context.Context
	call   *call

	mu    sync.Mutex // guards the timers and trace, which other goroutines use
	timer *time.Timer
	bound timeBound // of timer
	idle  *time.Timer

	conn  connTrace
	trace *httptrace.ClientTrace // hooks of conn and of the caller; nil: nobody has asked for them
	req   http.Request           // as sent
}

// begin starts the clock of an attempt of c that was just admitted.
func (w *watch) begin(ctx context.Context, c *call, phase string) {
	w.caller, w.call = ctx, c
	w.Context, w.cancel = context.WithCancelCause(ctx)
	c.ring.onKill(c, w)
	if deadline, b := c.attemptDeadline(phase); deadline != 0 {
		w.mu.Lock() // the timer may fire at once
		defer w.mu.Unlock()
		w.start(-c.since(deadline), b)
	}
}

// kill ends the attempt because the guard was closed.
func (w *watch) kill() { w.cancel(&Error{Kind: ErrClosed}) }

// start starts the timer of b, with mu held.
func (w *watch) start(d time.Duration, b timeBound) {
	w.bound, w.timer = b, time.AfterFunc(max(d, 1), w.expire)
}

// expire ends the attempt because its limit has expired.
func (w *watch) expire() {
	w.mu.Lock()
	err := w.call.timeoutError(w.bound)
	w.mu.Unlock()
	w.cancel(err)
}

// limit replaces the current limit with one that ends after d (Off: none). It returns an error if the old limit has
// expired, because the context may not have ended yet.
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

// wait starts the idle limit while the caller waits for the next event; arrived stops it.
func (w *watch) wait() {
	d := w.call.idleTimeout()
	if d == Off {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle == nil {
		w.idle = time.AfterFunc(d, func() {
			w.cancel(&Error{Kind: ErrTimeout, Phase: PhaseStreamIdle, Limit: d, setting: "StreamIdleTimeout"})
		})
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

// stop ends the watch, and with it an exchange that is still open.
func (w *watch) stop() {
	w.arrived()
	w.mu.Lock()
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	w.cancel(nil)
}

// failure returns why the exchange failed with err: the limit that expired, the caller's cancellation, or nil if err
// itself is the reason.
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

// left returns the time left for the attempt; ok is false if it has no limit.
func (w *watch) left() (left time.Duration, ok bool) {
	c := w.call
	end, _ := c.attemptDeadline(PhaseCall)
	if last := c.ends(w.caller); last != 0 && (end == 0 || last < end) {
		end = last
	}
	return -c.since(end), end != 0
}
