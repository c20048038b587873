package aiguard

import (
	"context"
	"time"
)

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
