package aiguard

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/panics"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// Hedge starts a second attempt beside a slow one. The first attempt to make progress wins, and the other is
// canceled. The zero Hedge is off.
//
// Only HTTP requests that are safe to repeat are hedged, at most once, and not inside a Do. An attempt is slow when
// its first event, or its whole JSON answer, takes longer than a quantile of the route's last 128 times. Hedging
// starts when 20 times are known.
//
// The second attempt needs a free slot while no call waits, a route without pause, outage or recent failure, and a
// token of Retry.Budget. It counts as a retry: in Stats.Retries, in Error.Attempts, and against the call's attempts.
// If one attempt fails, the call waits for the other. If both fail, the call continues with the failure of the first.
// Both end at the timeout of the first. The provider may charge for both.
//
// The call waits until the RoundTrip of the loser has returned, so a base transport must honor the context of a
// request. The body is copied, because the second attempt may begin while the first one sends it. For the second
// attempt OnEvent is called in another goroutine, but never for both attempts at once.
type Hedge struct {
	// Quantile is the fraction of attempts that are fast enough, such as 0.95. The rest, about 5%, is hedged. It
	// cannot be combined with Config.Limiter. 0: off
	Quantile float64
}

// send makes an attempt, and a second one if the first is slow.
func (x *exchange) send(ctx context.Context) (*http.Response, error) {
	if x.settings.cfg.Hedge.Quantile != 0 && x.mayHedge() {
		if late := x.call.permit.lateAfter(x.form()); late != 0 {
			if r := x.newRace(ctx); r != nil {
				return r.run(ctx, late)
			}
		}
	}
	return x.attempt(ctx)
}

func (x *exchange) mayHedge() bool {
	c := &x.call
	return c.attempts == 1 && c.maxAttempts(&c.cfg.Retry) > 1 && !c.nested && x.safe && x.replayable
}

func (x *exchange) form() provider.Form {
	if x.json {
		return provider.Whole
	}
	return provider.Start
}

// race runs an attempt and possibly a second one beside it. The first runs in the goroutine of the call, the second
// in that of a timer. Each has its own exchange and call. The winner's call continues. The loser's call ends without
// events.
type race struct {
	first, second *exchange
	timer         *time.Timer // starts the second
	began         instant

	winner     atomic.Pointer[call] // the first to make progress
	won        chan struct{}        // closed when the second attempt wins
	firstOver  chan struct{}
	secondOver chan struct{}

	returned bool           // the first returned, without a panic or Goexit
	resp     *http.Response // of the second attempt, if it won
	unwound  bool           // a panic or Goexit ended the second attempt
	panicked any            // nil: Goexit
}

// newRace prepares the second attempt before the first begins. A base may change the headers of a request, and the
// body from GetBody may share its bytes with the first body. newRace returns nil if a second attempt is impossible.
func (x *exchange) newRace(ctx context.Context) *race {
	c := &x.call
	y := &exchange{outgoing: x.outgoing, wire: x.wire}
	y.req = x.req.Clone(ctx)
	if x.req.GetBody != nil {
		body, ok := x.copyBody(ctx)
		if !ok {
			return nil
		}
		y.req.Body, y.seen = nil, true
		y.req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	r := &race{first: x, second: y, began: c.admitted,
		won: make(chan struct{}), firstOver: make(chan struct{}), secondOver: make(chan struct{})}
	end, _ := c.attemptDeadline(PhaseCall)
	y.call.history = history{timing: timing{core: c.core, settings: c.settings, start: c.start, deadline: end},
		attempts: c.attempts, queued: c.queued, backoff: c.backoff}
	y.call.outer, y.call.skipped, y.call.wire = c.outer, c.skipped, &y.wire
	if c.trail != nil {
		second := *c.trail
		second.attempt = 0
		y.call.trail = &second
	}
	y.wire.race, x.wire.race = r, r
	if y.wire.unread != nil {
		y.wire.unread = &y.outgoing
	}
	return r
}

// run makes the first attempt, and starts the second one when the first takes longer than late.
func (r *race) run(ctx context.Context, late time.Duration) (*http.Response, error) {
	late -= r.first.call.since(r.began)
	r.timer = time.AfterFunc(late+1, func() { r.runSecond(ctx) })
	defer r.end(ctx)
	resp, err := r.runFirst(ctx)
	if err == nil {
		return resp, nil
	}
	<-r.secondOver
	r.rethrow()
	if r.resp != nil {
		return r.resp, nil
	}
	return nil, err
}

// runFirst makes the first attempt. If it fails, runFirst waits until the second attempt, if there is one, wins or
// ends.
func (r *race) runFirst(ctx context.Context) (*http.Response, error) {
	defer close(r.firstOver)
	c := &r.first.call
	resp, err := r.first.attempt(ctx)
	if err == nil {
		r.returned = true
		return resp, nil
	}
	failed := c.now()
	r.cancelTimer()
	select {
	case <-r.won:
		c.attemptDone(ctx, err)
		c.tellFailure(ctx, err)
		c.over = true // the second attempt's call ends both
		c.letGo()
	case <-r.secondOver:
		c.attemptDone(ctx, err)
		c.attempts = r.second.call.attempts
		c.mayBill = c.mayBill || r.second.call.mayBill
		c.inFlight += c.since(failed)
	}
	c.wire.race = nil
	r.returned = true
	return nil, err
}

// runSecond makes the second attempt, if it does not take a slot from another call.
func (r *race) runSecond(ctx context.Context) {
	y := r.second
	c := &y.call
	returned := false
	defer close(r.secondOver)
	defer func() {
		if !c.over {
			c.letGo()
		}
		if !returned { // the call's goroutine continues with the panic or Goexit
			r.unwound, r.panicked = true, panics.WithStack(recover())
			if r.winner.CompareAndSwap(nil, c) {
				c.ring.lose(&r.first.call)
			}
		}
	}()
	if now, ok := r.enterSecond(ctx); ok {
		c.inFlight = time.Duration(now - r.began)
		c.retries.Add(1)
		c.emit(ctx, EventHedge, nil)
		c.begun(ctx, now)
		resp, err := y.attempt(ctx)
		if err != nil {
			c.attemptDone(ctx, err)
			c.tellFailure(ctx, err)
		}
		r.resp = resp
	}
	returned = true
}

// enterSecond begins the second attempt, unless it is refused or would take a slot from another call.
func (r *race) enterSecond(ctx context.Context) (now instant, ok bool) {
	c := &r.second.call
	if r.winner.Load() != nil || ctx.Err() != nil || !c.ring.add(c) {
		return 0, false
	}
	if c.cfg.Budget != nil && c.reserve(ctx) != nil {
		return 0, false
	}
	now = c.now()
	return now, c.limiter.enterSecond(c, now)
}

// cancelTimer prevents the second attempt from starting.
func (r *race) cancelTimer() {
	if r.timer.Stop() {
		close(r.secondOver)
	}
}

// end cleans up after a panic or Goexit in an attempt.
func (r *race) end(ctx context.Context) {
	r.cancelTimer()
	if !r.returned {
		r.first.call.ring.lose(&r.second.call)
	}
	<-r.secondOver
	if !r.returned || r.unwound { // the events that follow end the call
		r.first.call.attempts = r.second.call.attempts
		r.second.call.attemptDone(ctx, ErrUnwound)
	}
}

// rethrow repeats a panic or Goexit of the second attempt in the goroutine of the call.
func (r *race) rethrow() {
	switch {
	case r.panicked != nil:
		panic(r.panicked)
	case r.unwound:
		runtime.Goexit()
	}
}

// claim is called by an attempt that makes progress. If another attempt has claimed the request before, it returns an
// error. Otherwise it cancels the other attempt.
func (x *exchange) claim() error {
	c, r := &x.call, x.wire.race
	if r == nil {
		return nil
	}
	x.wire.race = nil
	if !r.winner.CompareAndSwap(nil, c) {
		return &Error{Kind: ErrClosed}
	}
	if c == &r.second.call {
		close(r.won)
		c.ring.lose(&r.first.call)
		<-r.firstOver
		if !r.returned { // the call's goroutine is gone
			return &Error{Kind: ErrClosed}
		}
		c.mayBill = c.mayBill || r.first.call.mayBill
		return nil
	}
	r.cancelTimer()
	c.ring.lose(&r.second.call)
	<-r.secondOver
	r.rethrow()
	c.attempts = r.second.call.attempts
	c.mayBill = c.mayBill || r.second.call.mayBill
	return nil
}

// tellFailure reports what the failure of one of two attempts means for the route.
func (h *history) tellFailure(ctx context.Context, err error) {
	h.tellTransition(ctx, err)
	if e := ownError(ctx, err); e != nil && e.Kind == ErrRateLimited {
		h.report(ctx, EventPaused, e, h.cfg.Retry.pauseAfter(e, h.attempts))
	}
}

// lateAfter returns the time after its admission at which an attempt counts as slow; 0: unknown. The attempt's own
// time counts for later attempts.
func (p *permit) lateAfter(f provider.Form) time.Duration {
	l := p.route.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.route.state.Late(&p.sending, f)
}

// enterSecond admits a second attempt beside another one.
func (l *limiter) enterSecond(c *call, now instant) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, t := l.find(c, now)
	p := c.Priority.line()
	switch {
	case !r.state.Healthy(provider.Instant(now)):
		return false
	case l.line.Ready() > 0 || r.line.Waiting()+r.lingering > 0:
		return false
	case !l.line.Takes(&r.line, p, c.Weight) || !r.takeRetry(now):
		return false
	}
	l.line.Take(&r.line, &t.line, p, c.Weight, r.cost(c.Weight), int64(now))
	l.grant(c, now)
	return true
}
