package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: whether and when to try again.

import (
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// maxBudget is more than anybody's fraction.
const maxBudget = 100

// plan decides whether an attempt that failed with e is repeated, and after which delay. A wait that cannot fit
// into the time left is no plan: the caller gets e now, with its RetryAfter.
func (c *call) plan(ctx context.Context, e *Error) (delay time.Duration, ok bool) {
	r := &c.cfg.Retry
	tries := int(c.attempts + c.skipped)
	switch {
	case c.shared() != nil: // the Do around this call retries, once it has given its slot back
		return 0, false
	case tries >= c.maxAttempts(), !r.allows(e), isFinal(e), r.Unbilled && e.MayBeBilled:
		return 0, false
	case c.planB && c.hopelessNow(e):
		return 0, false
	}
	if e.retry != retryAtOnce || c.stale {
		delay = r.delay(tries, e.RetryAfter)
	}
	c.stale = c.stale || e.retry == retryAtOnce
	if !c.fits(ctx, delay) || e.RetryAfter > c.longestPause() {
		return 0, false
	}
	return delay, c.limiter.retry(c.permit.route)
}

// longestPause is how long a provider may make a call wait: as long as any other wait to be sent, and never for ever.
func (c *call) longestPause() time.Duration {
	if c.cfg.QueueTimeout == Off {
		return time.Hour
	}
	return c.cfg.QueueTimeout
}

// allows reports whether a failure like e may pass when the call is repeated.
func (r *Retry) allows(e *Error) bool {
	switch e.retry {
	case neverAsk:
		return false
	case mayRetry, retryAtOnce:
		return true
	}
	switch e.Kind {
	case ErrRateLimited, ErrUnavailable, ErrTruncated, ErrInvalidResponse:
		return true
	case ErrTimeout:
		return r.Timeouts
	}
	return false
}

// delay is the wait before the attempt that follows attempt n: exponential, jittered between half and all; or
// what the provider asked for, and up to a quarter more, so that those it asked don't come back together.
func (r *Retry) delay(n int, retryAfter time.Duration) time.Duration {
	d := time.Duration(0)
	if r.BaseDelay > 0 {
		d = r.BaseDelay << min(n-1, 20)
	}
	if r.MaxDelay > 0 {
		d = min(d, r.MaxDelay)
	}
	if retryAfter > 0 {
		d = min(max(retryAfter, d/2), math.MaxInt64/2) // room for the sum; nobody waits that long
		return d + jitter(min(d, time.Hour)/4)
	}
	return d/2 + jitter(d/2)
}

// jitter is a random duration from 0 to d.
func jitter(d time.Duration) time.Duration {
	return time.Duration(rand.Int64N(int64(d) + 1))
}

// retryAfter reads how long a provider asks to wait: retry-after-ms and x-ms-retry-after-ms, then Retry-After in
// seconds or as a date. Nonsense (negative, not a number, beyond what a Duration holds) is 0.
func retryAfter(h http.Header, now time.Time) time.Duration {
	for _, name := range [...]string{"Retry-After-Ms", "X-Ms-Retry-After-Ms"} {
		if d := number(h.Get(name), time.Millisecond); d > 0 {
			return d
		}
	}
	v := h.Get("Retry-After")
	if d := number(v, time.Second); d > 0 {
		return d
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}

func number(s string, unit time.Duration) time.Duration {
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(n > 0) || n > float64(math.MaxInt64/unit) { // NaN is not > 0 either
		return 0
	}
	return time.Duration(n * float64(unit))
}

// again decides, after an attempt that failed or was not admitted, about a further one and waits until it may begin; it
// returns nil to go on, or the call's final error.
func (c *call) again(ctx context.Context, err error) error {
	denied := c.denied
	c.denied = false
	if denied {
		c.free() // what was reserved for the attempt
	}
	c.attemptDone(ctx, err, Usage{})
	c.tellTurn(ctx, err)
	if ctx.Err() != nil {
		if !errtree.Is(err, ctx.Err()) {
			err = callctx.Err(ctx)
		}
		return c.finish(ctx, err)
	}
	e, ok := err.(*Error)
	switch {
	case !ok:
		return c.finish(ctx, err)
	case denied && e.Phase != PhaseOutage:
		return c.finish(ctx, c.lastFailure(e))
	case denied:
		c.skipped++ // what the guard has said in the provider's stead counts as an attempt
	case e.Kind == ErrRateLimited && e.route == nil && !e.told:
		c.report(ctx, EventPaused, e, c.pauseAfter(e))
	}
	delay, ok := c.plan(ctx, e)
	if !ok {
		return c.finish(ctx, e)
	}
	c.last = e
	c.retries.Add(1)
	c.report(ctx, EventRetry, e, delay)
	if err := c.backOff(ctx, e.route, delay); err != nil {
		return c.finish(ctx, c.lastFailure(err))
	}
	return nil
}

// backOff waits before the next attempt. If that is for the pause of a route that a call inside this Do has met, the Do
// counts among those who wait there.
func (c *call) backOff(ctx context.Context, paused *route, delay time.Duration) error {
	if paused != nil && paused.limiter == c.limiter {
		if !c.limiter.linger(paused) {
			return c.last
		}
		defer c.limiter.endLinger(paused)
	}
	before := c.now()
	err := c.sleep(ctx, delay)
	c.backoff += c.since(before)
	return err
}

// lastFailure is what a call ends with that could not be repeated because of err: the failure before, the last real
// one. The caller's own error and a closed guard come first.
func (c *call) lastFailure(err error) error {
	e, ok := err.(*Error)
	if c.last == nil || !ok {
		return err
	}
	if e.Kind == ErrClosed {
		e.Err = c.last
		return e
	}
	return c.last
}

func (c *call) maxAttempts() int {
	if c.Attempts != 0 {
		return c.Attempts
	}
	return c.cfg.Retry.MaxAttempts
}

// fits reports whether a delay from now on ends before the call must, and before a call with a plan B gives up.
func (c *call) fits(ctx context.Context, d time.Duration) bool {
	end := c.ends(ctx)
	if c.planB && c.cfg.Retry.Patience != Off {
		if until := c.start.add(c.cfg.Retry.Patience); end == 0 || until < end {
			end = until
		}
	}
	return end == 0 || c.now().add(d) < end
}
