package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the place in line of a call that waits, and how its wait ends.

import (
	"context"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/line"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// inLine is a call's place in line.
type inLine struct {
	line.Waiter[*inLine]
	call   *call
	joined instant
	until  instant // latest time of admission; 0: no limit

	// patience is the QueueTimeout when the call joined, or a shorter one since. So the waiters at a route reach it in
	// order of arrival.
	patience time.Duration
	byTotal  bool          // TotalTimeout ends the wait first
	over     chan struct{} // receives when fate is set
	fate     fate
	most     int64 // for the fate tooHeavy: the capacity
}

type fate int8

const (
	admitted fate = iota
	waitedTooLong
	displaced // a call with a higher claim took the place
	hopeless  // too many newer calls are served first
	routePaused
	routeDown
	shutOut
	tooHeavy // for a capacity that Update has lowered
)

// newPlace returns a place in line for the call. A call keeps it for its next wait.
func (c *call) newPlace() *inLine {
	if c.place == nil {
		c.place = &inLine{over: make(chan struct{}, 1)}
	}
	w := c.place
	*w = inLine{call: c, over: w.over}
	w.Value = w
	return w
}

// leave ends the wait of a call that is out of the line. Do not use w afterwards, because the call may reuse it.
func (w *inLine) leave() {
	if w != nil {
		w.over <- struct{}{}
	}
}

// wait waits in line for a slot. Its frame is small; see call.queue.
func (w *inLine) wait(ctx context.Context) error {
	select {
	case <-w.over:
	case <-ctx.Done():
		w.abandon()
		return callctx.Err(ctx)
	}
	if w.fate != admitted {
		return w.denied()
	}
	if ctx.Err() != nil { // canceled at the same moment: do not start work
		return callctx.Err(ctx)
	}
	return nil
}

// abandon takes a canceled call out of the line. If the call was admitted at the same moment, its permit holds the
// slot.
func (w *inLine) abandon() {
	if !w.call.limiter.drop(w) {
		<-w.over // now or soon
	}
}

// drop is abandon with the lock held. It reports false if the wait is already over.
func (l *limiter) drop(w *inLine) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.call.permit.held.Load() || w.fate != admitted {
		return false
	}
	now := l.now()
	l.line.Leave(&w.Waiter)
	l.endWait(w.call, now)
	w.call.permit.route.refresh(now) // the next one may be smaller
	l.next(now).leave()              // the call may have been too heavy and in the way of others
	return true
}

// dismiss ends a wait without admission.
func (w *inLine) dismiss(f fate) {
	l := w.call.limiter
	w.fate = f
	l.line.Leave(&w.Waiter)
	l.endWait(w.call, l.now())
	if f != shutOut {
		l.countRefusal(w.call.permit.tenant, w.call.Priority.line())
	}
	w.leave()
}

// denied returns the reason why a waiting call was not admitted.
func (w *inLine) denied() *Error {
	if w.fate == shutOut {
		return &Error{Kind: ErrClosed}
	}
	c := w.call
	l := c.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	p := &c.permit
	e := &Error{Kind: ErrOverloaded, Phase: PhaseQueue}
	switch w.fate {
	case routeDown:
		return p.route.down(now)
	case routePaused:
		until := p.route.state.PausedUntil(provider.Instant(now))
		return p.route.notYet(provider.Paused, max(time.Duration(instant(until)-now), 0))
	case waitedTooLong:
		e.Limit, e.setting = w.patience, "QueueTimeout"
	case tooHeavy:
		e.Phase, e.Size, e.Max, e.setting = PhaseWeight, c.Weight, w.most, "MaxConcurrent"
		return e
	case displaced:
		e.Size, e.Max, e.setting = int64(l.maxQueue), int64(l.maxQueue), "MaxQueue"
	case hopeless:
		e.hopeless = true
	}
	e.RetryAfter = p.route.retryAfter(c.demand(), now, p.tenant)
	return e
}

// waitWithinTotal waits in line with its own timer.
func (w *inLine) waitWithinTotal(ctx context.Context) error {
	c := w.call
	wctx, cancel, why := c.bound(ctx, ErrTimeout, timeBound{limit: Off})
	defer cancel()
	err := w.wait(wctx)
	if err != nil && wctx.Err() != nil {
		if _, ok := err.(*Error); !ok || error(why) == err {
			return ended(ctx, wctx, why)
		}
	}
	return err
}

// shorten applies a new QueueTimeout to a call that waits, unless it is longer.
func (w *inLine) shorten(patience time.Duration) {
	if patience == Off || w.patience != Off && w.patience <= patience {
		return
	}
	w.patience = patience
	if end := w.joined.add(patience); w.until == 0 || end < w.until {
		w.until = end
	}
}
