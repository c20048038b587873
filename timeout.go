package aiguard

import (
	"context"
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

// attemptDeadline returns when an attempt that was just admitted must be over, and by which limit; 0: never.
func (c *call) attemptDeadline(phase string) (instant, timeBound) {
	limit := c.timeout()
	if c.planB && c.permit.sending.Probe && c.cfg.Retry.Patience != Off && (limit == Off || limit > c.cfg.Retry.Patience) {
		limit = c.cfg.Retry.Patience // a later alternative exists, so do not wait long for a provider that may be down
	}
	return c.earlier(c.admitted, timeBound{phase, limit})
}

// timing is the clock of a call: when it began, when it must be over, and when its attempt began.
type timing struct {
	*core
	*settings
	start    instant
	deadline instant // end of TotalTimeout; 0: none
	admitted instant // start of the current attempt; 0: none
}

// earlier returns the earlier of b, counted from now, and TotalTimeout; 0: neither is set.
func (t *timing) earlier(now instant, b timeBound) (instant, timeBound) {
	deadline := now.add(b.limit)
	switch {
	case t.deadline != 0 && (b.limit == Off || t.deadline < deadline):
		return t.deadline, timeBound{PhaseTotal, t.total()}
	case b.limit == Off:
		return 0, b
	}
	return deadline, b
}

// ends returns when the call must be over: the earlier of TotalTimeout and the caller's deadline; 0: neither is set.
func (t *timing) ends(ctx context.Context) instant {
	end := t.deadline
	if d, ok := ctx.Deadline(); ok {
		if own := t.instant(d); end == 0 || own < end {
			end = own
		}
	}
	return end
}

// admission returns the latest time at which a call that starts to wait now may be admitted; 0: no limit. The caller
// holds the limiter's lock.
func (t *timing) admission(ctx context.Context, now instant) instant {
	end := t.ends(ctx)
	if patience := t.limiter.patience; patience != Off {
		if until := now.add(patience); end == 0 || until < end {
			end = until
		}
	}
	return end
}

// boundByTotal reports whether TotalTimeout ends before a wait of up to patience (Off: no limit).
func (t *timing) boundByTotal(joined instant, patience time.Duration) bool {
	return t.deadline != 0 && (patience == Off || t.deadline < joined.add(patience))
}

// fits reports whether a delay starting now ends before the call must end, and within the patience of a call that has
// an alternative.
func (t *timing) fits(ctx context.Context, d time.Duration) bool {
	end := t.ends(ctx)
	if t.planB && t.cfg.Retry.Patience != Off {
		if until := t.start.add(t.cfg.Retry.Patience); end == 0 || until < end {
			end = until
		}
	}
	return end == 0 || t.now().add(d) < end
}
