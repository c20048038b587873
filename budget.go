package aiguard

import "context"

// Budget decides what calls may spend. It must be safe for concurrent use. Package budget has one with prices, limits and
// runs.
type Budget interface {
	// Reserve is asked before an attempt waits for a slot, with the most tokens that it is expected to use. An error refuses
	// the attempt: one with a Kind keeps it, any other is ErrBudget. Logs show its type alone, unless it or an error in it
	// has a method LogText() string, which returns what they may show. ctx is the caller's, and ends after QueueTimeout at
	// the latest.
	//
	// settle is called once for each reservation, with no lock held and at the end of the attempt: however that ends, in any
	// goroutine, and after ctx may have ended. used is one of these:
	//
	//	Usage{}                 nothing can have been used: the attempt was not sent, or the provider refused it
	//	as the answer says      the answer has told its usage
	//	Estimated is true       the answer has not told, or was cut, timed out or left: see Error.MayBeBilled
	//
	// An estimate has the input of most, and its output unless a complete stream says otherwise by its length. most counts the
	// texts of the prompt, four bytes to a token: images, sounds and files are not in it. Its output is the output limit of
	// the request, times the choices it asks for; without a limit it is the 95th percentile of what the route's answers had,
	// or 1,000 tokens where no answer is known. An endpoint without a dialect has an estimate only if its JSON names a model.
	//
	// A Do has no tokens: most is Usage{}, and an attempt that fn was called for is Usage{Estimated: true}. When a guarded
	// call of the same Guard is made inside, the Do's own reservation is settled with Usage{} before that of the call is made.
	Reserve(ctx context.Context, call Call, most Usage) (settle func(used Usage), err error)
}

// reservation is what Config.Budget has granted for an attempt.
type reservation struct {
	settle func(Usage)
	most   Usage
}

// reserve asks Config.Budget for the next attempt.
//
//go:noinline
func (c *call) reserve(ctx context.Context) error {
	if !c.register() { // so that Close ends the wait
		return &Error{Kind: ErrClosed}
	}
	if o := c.shared(); o != nil {
		o.pay(Usage{}) // the calls inside count for themselves
	}
	bctx, cancel, why := c.bound(ctx, ErrOverloaded, timeBound{PhaseBudget, c.cfg.QueueTimeout})
	defer cancel()
	r := &reservation{most: c.mostUsage()}
	settle, err := c.cfg.Budget.Reserve(bctx, c.Call, r.most)
	switch {
	case err == nil:
		if settle != nil {
			r.settle = settle
			c.reserved.Store(r)
		}
		return nil
	case bctx.Err() != nil:
		return c.ended(ctx, bctx, why)
	case KindOf(err) != "":
		return c.explain(err)
	}
	return &Error{Kind: ErrBudget, Phase: PhaseBudget, Err: err}
}

// pay settles the attempt's reservation, once.
func (c *call) pay(used Usage) {
	if r := c.reserved.Swap(nil); r != nil {
		r.settle(used)
	}
}

// estimate is what is known of a request's tokens beside the usage that its answer tells.
type estimate struct {
	input    int64
	output   int64 // that the request allows; 0: it has no limit
	guess    int64 // output where there is no limit and no answer is known
	complete bool  // the answer is
	whole    bool  // and was read whole
	seen     int64 // output of a complete answer, by its length
}

const (
	outputGuess    = 1000 // tokens
	outputQuantile = 0.95
)

// mostUsage is what the next attempt uses at most, as far as is known.
func (c *call) mostUsage() Usage {
	if c.wire == nil {
		return Usage{}
	}
	e := &c.wire.estimate
	u := Usage{Input: e.input, Output: e.output, Estimated: true}
	if u.Output == 0 {
		if u.Output = c.limiter.usualOutput(c.settings); u.Output == 0 {
			u.Output = e.guess
		}
	}
	return u
}

// used is what the attempt has used. The caller knows that there is a reservation.
func (c *call) used() Usage {
	w, r := c.wire, c.reserved.Load()
	switch {
	case !c.billed || r == nil:
		return Usage{}
	case w == nil:
		return Usage{Estimated: true}
	}
	u, e := w.usage, &w.estimate
	if e.complete && u.Input+u.Output > 0 {
		c.limiter.learnOutput(c.permit.route, u.Output)
		return u
	}
	u.Estimated = true
	if u.Input == 0 {
		u.Input = r.most.Input
	}
	switch {
	case !e.complete || e.seen == 0:
		u.Output = max(u.Output, r.most.Output)
	case e.whole || e.output > 0: // JSON is longer than its text
		u.Output = min(e.seen, r.most.Output)
	default:
		u.Output = e.seen
		c.limiter.learnOutput(c.permit.route, u.Output)
	}
	return u
}

// usualOutput is the 95th percentile of the tokens that answers of the call's route have had; 0: not known.
func (l *limiter) usualOutput(s *settings) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.routes.peek(s).state.Output(outputQuantile)
}

func (l *limiter) learnOutput(r *route, tokens int64) {
	if tokens <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r != &l.routes.nameless {
		r.state.NoteOutput(tokens)
	}
}

// billable reports whether a provider may charge for a response of this status. A gateway that has stopped waiting says
// nothing of the provider behind it.
func billable(status int) bool {
	return status < 300 || status == 504 || status == 524
}

// mayBeBilled is MayBeBilled as far as the other facts of a failure tell.
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
