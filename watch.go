package aiguard

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

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
