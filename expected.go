package aiguard

import (
	"context"
	"math"
	"time"

	"github.com/aiguard-go/aiguard/internal/provider"
)

// demand is what a call asks of the line and of its route.
type demand struct {
	priority Priority
	weight   int64
	tokens   float64 // expected; 0: unknown
}

func (c *call) demand() demand { return demand{c.Priority, c.Weight, c.wire.expected()} }

// retryAfter returns when a rejected call should try again: when the calls that wait now will have been served.
func (r *route) retryAfter(d demand, now instant, t *tenant) time.Duration {
	const least, most = 100 * time.Millisecond, time.Minute
	wait, known := r.expected(d, now, t)
	if !known {
		return time.Second // no call has finished yet
	}
	return min(max(wait, least), most)
}

// expected returns how long a new call would wait for a slot. It uses the call's position, the observed service time
// and the current limits. known is false while nothing determines the wait, such as before any call has finished.
func (r *route) expected(d demand, now instant, t *tenant) (wait time.Duration, known bool) {
	l := r.limiter
	before, atRoute, background := l.line.Ahead(&r.line, &t.line, d.priority.line(), int64(now))
	var seconds float64
	if limit := l.line.Capacity; limit > 0 && l.held > 0 {
		seconds, known = l.held*float64(before+d.weight)/float64(limit), true
	}
	if limit := l.line.MaxBackground; background >= 0 && l.held > 0 {
		seconds, known = max(seconds, l.held*float64(background+d.weight)/float64(limit)), true
	}
	if limit, held := r.state.Limit(), r.state.Held(); r.line.Room() < d.weight && held > 0 && !math.IsInf(limit, 1) {
		seconds, known = max(seconds, held*float64(atRoute+d.weight)/max(limit, 1)), true
	}
	if until := r.state.PausedUntil(provider.Instant(now)); until != 0 {
		seconds, known = max(seconds, time.Duration(until-provider.Instant(now)).Seconds()), true
	}
	if r.line.Room() <= 0 || d.tokens > 0 {
		if paced := r.paced(d, now, t); paced > 0 {
			seconds, known = max(seconds, paced.Seconds()), true
		}
	}
	return time.Duration(min(seconds, 1e9) * float64(time.Second)), known
}

// paced returns how long the rate limit keeps a new call, which comes after some of those that wait for the route; 0: the
// limit is not reached.
func (r *route) paced(d demand, now instant, t *tenant) time.Duration {
	before := r.limiter.line.Before(&r.line, &t.line, d.priority.line(), int64(now))
	next := d.tokens
	if before > 0 {
		next = r.nextTokens(now, next)
	}
	state, until := r.state.State(provider.Instant(now), next)
	if state != provider.Paced {
		return 0
	}
	var minutes float64 // after the next one
	if pace := r.state.Pace.Requests(); pace > 0 {
		minutes = float64(before) / pace
	}
	if pace := r.state.Pace.Tokens(); pace > 0 && before > 0 {
		tokens := r.tokens * float64(before) / float64(r.line.Waiting())
		minutes = max(minutes, (tokens+d.tokens-next)/pace)
	}
	return time.Duration(instant(until)-now) + time.Duration(min(minutes, 1e7)*float64(time.Minute))
}

// late rejects a call that is not expected to be admitted, or to finish, in the time it has left.
func (r *route) late(ctx context.Context, c *call, t *tenant, now instant) *Error {
	wait, known := r.expected(c.demand(), now, t)
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
		RetryAfter: r.retryAfter(c.demand(), now, t)}
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
