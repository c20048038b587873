package aiguard

import (
	"context"
	"math"
	"time"

	"github.com/aiguard-go/aiguard/internal/provider"
)

// retryAfter returns when a rejected call should try again: when the calls that wait now will have been served.
func (r *route) retryAfter(weight int64, now instant, t *tenant, p Priority) time.Duration {
	const least, most = 100 * time.Millisecond, time.Minute
	wait, known := r.expected(weight, now, t, p)
	if !known {
		return time.Second // no call has finished yet
	}
	return min(max(wait, least), most)
}

// expected returns how long a new call would wait for a slot. It uses the call's position, the observed service time
// and the current limits. known is false while nothing determines the wait, such as before any call has finished.
func (r *route) expected(weight int64, now instant, t *tenant, p Priority) (wait time.Duration, known bool) {
	l := r.limiter
	before, atRoute := l.line.Ahead(&r.line, &t.line, p.line(), int64(now))
	var seconds float64
	if limit := l.line.Capacity; limit > 0 && l.held > 0 {
		seconds, known = l.held*float64(before+weight)/float64(limit), true
	}
	if limit, held := r.state.Limit(), r.state.Held(); r.line.Room() < weight && held > 0 && !math.IsInf(limit, 1) {
		seconds, known = max(seconds, held*float64(atRoute+weight)/max(limit, 1)), true
	}
	if until := r.state.PausedUntil(provider.Instant(now)); until != 0 {
		seconds, known = max(seconds, time.Duration(until-provider.Instant(now)).Seconds()), true
	}
	if r.line.Room() <= 0 {
		if pace := r.state.Pace.Requests(); pace > 0 {
			seconds, known = max(seconds, 60/pace*float64(r.line.Waiting()+1)), true
		}
	}
	return time.Duration(min(seconds, 1e9) * float64(time.Second)), known
}

// late rejects a call that is not expected to be admitted, or to finish, in the time it has left.
func (r *route) late(ctx context.Context, c *call, t *tenant, now instant) *Error {
	wait, known := r.expected(c.Weight, now, t, c.Priority)
	if !known {
		return nil
	}
	end := c.admission(ctx, now)
	if last := c.ends(ctx); last != 0 { // the call must finish by then
		last -= instant(r.state.Held() * float64(time.Second))
		if end == 0 || last < end {
			end = last
		}
	}
	if end == 0 || now.add(wait) <= end {
		return nil
	}
	return &Error{Kind: ErrOverloaded, Phase: PhaseQueue, Limit: max(time.Duration(end-now), 1), expected: true,
		RetryAfter: r.retryAfter(c.Weight, now, t, c.Priority)}
}

// slots returns how many calls the route may have in flight.
func (r *route) slots() int64 {
	limit := r.state.Limit()
	if capacity := r.limiter.line.Capacity; capacity >= 0 {
		limit = min(limit, float64(capacity))
	}
	return int64(min(limit, 1<<20))
}

// cost returns the service that a call is expected to receive, in slot seconds.
func (r *route) cost(weight int64) float64 {
	held := r.state.Held()
	if held == 0 {
		held = r.limiter.held
	}
	return max(held, 1e-3) * float64(weight)
}
