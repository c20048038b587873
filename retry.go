package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: whether and when to try again.

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// maxBudget is an upper limit for Retry.Budget, to catch mistakes.
const maxBudget = 100

// plan decides whether an attempt that failed with e is repeated, and after which delay. It does not plan a wait that
// exceeds the time left. The caller then gets e at once, with its RetryAfter.
func (c *call) plan(ctx context.Context, e *Error) (delay time.Duration, ok bool) {
	r := &c.cfg.Retry
	tries := int(c.attempts + c.skipped)
	switch {
	case c.shared() != nil: // the Do around this call retries, after it has released its slot
		return 0, false
	case tries >= c.maxAttempts(r), !r.allows(e), isFinal(e), r.Unbilled && e.MayBeBilled:
		return 0, false
	case c.planB && c.permit.route.failsOver(e):
		return 0, false
	}
	if e.retry != retryAtOnce || c.stale {
		delay = r.delay(tries, e.RetryAfter)
	}
	c.stale = c.stale || e.retry == retryAtOnce
	if !c.fits(ctx, delay) || e.RetryAfter > c.cfg.longestPause() {
		return 0, false
	}
	return delay, c.permit.route.retry()
}

// longestPause returns how long a provider may delay a call: as long as any other wait for a slot, and never without
// a limit.
func (c *Config) longestPause() time.Duration {
	if c.QueueTimeout == Off {
		return time.Hour
	}
	return c.QueueTimeout
}

// allows reports whether a retry may succeed after a failure like e.
func (r *Retry) allows(e *Error) bool {
	switch e.retry {
	case neverRetry:
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

// delay returns the wait after attempt n: exponential, with jitter between half and all of it. If the provider asked
// for a delay, delay adds up to a quarter to it, so that the waiting clients do not return at the same time.
func (r *Retry) delay(n int, retryAfter time.Duration) time.Duration {
	d := time.Duration(0)
	if r.BaseDelay > 0 {
		doubled := min(n-1, 20)
		d = min(r.BaseDelay, math.MaxInt64>>doubled) << doubled
	}
	if r.MaxDelay > 0 {
		d = min(d, r.MaxDelay)
	}
	if retryAfter > 0 {
		d = min(max(retryAfter, d/2), math.MaxInt64/2) // leaves room for the sum below
		return d + jitter(min(d, time.Hour)/4)
	}
	return d/2 + jitter(d/2)
}

// jitter returns a random duration from 0 to d.
func jitter(d time.Duration) time.Duration {
	return time.Duration(rand.Int64N(int64(d) + 1))
}

// retryAfter reads the delay that a provider asks for: Retry-After-Ms and X-Ms-Retry-After-Ms, then Retry-After in
// seconds or as a date. It returns 0 for a value that is negative, malformed or too large for a Duration.
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
	if err != nil || !(n > 0) || n > float64(math.MaxInt64/unit) { // NaN fails n > 0 as well
		return 0
	}
	return time.Duration(n * float64(unit))
}

// again decides, after an attempt that failed or was not admitted, whether another one follows, and waits until it
// may begin. It returns nil to continue, or the call's final error.
func (c *call) again(ctx context.Context, err error) error {
	denied := c.denied
	c.denied = false
	if denied {
		c.free() // what was reserved for the attempt
	}
	c.attemptDone(ctx, err)
	c.tellTransition(ctx, err)
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
		return c.finish(ctx, lastFailure(c.last, e))
	case denied:
		c.skipped++ // a rejection by the guard instead of the provider counts as an attempt
	case e.Kind == ErrRateLimited && e.route == nil && !e.told:
		c.report(ctx, EventPaused, e, c.cfg.Retry.pauseAfter(e, c.attempts))
	}
	delay, ok := c.plan(ctx, e)
	if !ok {
		return c.finish(ctx, e)
	}
	c.last = e
	c.retries.Add(1)
	c.report(ctx, EventRetry, e, delay)
	if err := c.backOff(ctx, e.route, delay); err != nil {
		return c.finish(ctx, lastFailure(c.last, err))
	}
	return nil
}

// backOff waits before the next attempt. The wait fails when ctx ends or the Guard is closed. If a call inside this Do
// met a paused route, the Do counts as waiting for that route.
func (c *call) backOff(ctx context.Context, paused *route, delay time.Duration) error {
	if paused != nil && paused.limiter == c.limiter {
		if !paused.linger() {
			return c.last
		}
		defer paused.endLinger()
	}
	before := c.now()
	dctx, cancel := context.WithTimeout(ctx, delay)
	defer cancel()
	c.ring.onKill(c, killFunc(cancel))
	<-dctx.Done()
	c.backoff += c.since(before)
	if ctx.Err() == nil && errors.Is(dctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	return ended(ctx, dctx, nil)
}

// lastFailure returns the error of a call that could not be repeated because of err: its last failure before err, if
// any. But the caller's own error and a closed guard take precedence.
func lastFailure(last *Error, err error) error {
	e, ok := err.(*Error)
	if last == nil || !ok {
		return err
	}
	if e.Kind == ErrClosed {
		e.Err = last
		return e
	}
	return last
}

func (s *settings) maxAttempts(r *Retry) int { return cmp.Or(s.Attempts, r.MaxAttempts) }
