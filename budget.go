package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: what an attempt may spend, and what it has spent.

import (
	"context"
	"sync/atomic"
)

// Budget limits what calls may spend. It must be safe for concurrent use. Package budget has one with prices, limits
// and runs.
type Budget interface {
	// Reserve is called before an attempt waits for a slot. most is the largest number of tokens that the attempt is
	// expected to use. An error rejects the attempt. An error with a Kind keeps it, and any other becomes ErrBudget.
	// Logs show only the type of the error, unless it or an error it wraps has a method LogText() string, whose
	// result they show. ctx is the caller's, and ends after QueueTimeout at the latest.
	//
	// settle is called once per reservation when the attempt ends, whatever its result. It is called with no lock
	// held, in any goroutine, and possibly after ctx has ended. used is one of these:
	//
	//	Usage{}                 no tokens: the attempt was not sent, or the provider refused it
	//	the answer's usage      the answer reported its usage
	//	Estimated is true       the answer did not report it, was truncated, timed out or was canceled: see Error.MayBeBilled
	//
	// An estimate has the input of most. It also has the output of most, unless the length of a complete stream gives
	// a better value. The input of most counts four bytes of prompt text as a token. Images, audio and files are not
	// included. The output of most is the output limit of the request, times the number of choices. Without a limit
	// it is the 95th percentile of the outputs on the route, or 1,000 tokens if no answer is known. For an endpoint
	// without a dialect there is an estimate only if its JSON names a model.
	//
	// A Do has no token counts. Its most is Usage{}, and an attempt that called fn is settled with Usage{Estimated:
	// true}. If fn makes a guarded call of the same Guard, the reservation of the Do is first settled with Usage{},
	// and then that of the call is made.
	Reserve(ctx context.Context, call Call, most Usage) (settle func(used Usage), err error)
}

// reservation is what Config.Budget has granted to an attempt.
type reservation struct {
	settle func(Usage)
	most   Usage
}

// reserve asks Config.Budget for the next attempt.
//
//go:noinline
func (c *call) reserve(ctx context.Context) error {
	if !c.ring.add(c) { // so that Close ends the wait
		return &Error{Kind: ErrClosed}
	}
	if o := c.shared(); o != nil {
		o.reserved.pay(Usage{}) // the calls inside have their own reservations
	}
	bctx, cancel, why := c.bound(ctx, ErrOverloaded, timeBound{PhaseBudget, c.cfg.QueueTimeout})
	defer cancel()
	r := &reservation{most: c.wire.most(c.limiter, c.settings)}
	settle, err := c.cfg.Budget.Reserve(bctx, c.Call, r.most)
	switch {
	case err == nil:
		if settle != nil {
			r.settle = settle
			c.reserved.Store(r)
		}
		return nil
	case bctx.Err() != nil:
		return ended(ctx, bctx, why)
	case KindOf(err) != "":
		return c.explain(err)
	}
	return &Error{Kind: ErrBudget, Phase: PhaseBudget, Err: err}
}

// reserved holds the reservation of an attempt, until it is settled; nil: none.
type reserved struct{ atomic.Pointer[reservation] }

// pay settles the reservation, once.
func (r *reserved) pay(used Usage) { r.Swap(nil).pay(used) }

// pay settles a reservation that was taken from the call; nil: there was none.
func (r *reservation) pay(used Usage) {
	if r != nil {
		r.settle(used)
	}
}

// estimate holds the token counts of a request that do not come from its answer.
type estimate struct {
	input    int64
	output   int64 // output limit of the request; 0: no limit
	guess    int32 // output without a limit and without known answers
	complete bool  // the answer is complete
	whole    bool  // the answer was read whole
}

const (
	outputGuess    = 1000 // tokens
	outputQuantile = 0.95
)

// most returns the largest usage expected of the next attempt. A Do has none.
func (w *wire) most(l *limiter, s *settings) Usage {
	if w == nil {
		return Usage{}
	}
	if w.unread != nil {
		w.estimate, w.unread = w.unread.estimateLate(w.estimate), nil
	}
	e := &w.estimate
	u := Usage{Input: e.input, Output: e.output, Estimated: true}
	if u.Output == 0 {
		if u.Output = l.usualOutput(s); u.Output == 0 {
			u.Output = int64(e.guess)
		}
	}
	return u
}

// used returns the usage of an attempt that may be billed. granted is its reservation, if it has one.
func (w *wire) used(r *route, granted *reservation, s *settings) Usage {
	if w == nil {
		return Usage{Estimated: true}
	}
	u, e := w.usage, &w.estimate
	if e.complete && !u.Estimated {
		r.learnOutput(u.Output)
		return u
	}
	var most Usage // expected
	if granted != nil {
		most = granted.most
	} else {
		most = w.most(r.limiter, s)
	}
	u.Estimated = true
	if u.Input == 0 {
		u.Input = most.Input
	}
	switch {
	case !e.complete || u.Output == 0:
		u.Output = max(u.Output, most.Output)
	case e.whole || e.output > 0: // JSON is longer than its text
		u.Output = min(u.Output, most.Output)
	default:
		r.learnOutput(u.Output)
	}
	return u
}

// usualOutput returns the 95th percentile of the output tokens of answers on the call's route; 0: unknown.
func (l *limiter) usualOutput(s *settings) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.routes.peek(s).state.Output.Quantile(outputQuantile)
}

// learnOutput records the output tokens of an answer.
func (r *route) learnOutput(tokens int64) {
	if tokens <= 0 {
		return
	}
	l := r.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if r != &l.routes.nameless {
		r.state.Output.Add(tokens)
	}
}

// billable reports whether a provider may charge for a response with this status. A timeout of a gateway says nothing
// about the provider behind it.
func billable(status int) bool {
	return status < 300 || status == 504 || status == 524
}

// mayBeBilled derives MayBeBilled from the other facts of a failure.
func mayBeBilled(e *Error) bool {
	switch {
	case e.StatusCode != 0:
		return billable(e.StatusCode)
	case e.Phase == PhaseConnect:
		return false
	}
	switch e.Kind {
	case ErrTimeout, ErrTruncated, ErrInvalidResponse, ErrResponseTooLarge:
		return true
	case ErrUnavailable:
		return !isDial(e.Err)
	}
	return false
}
