package aiguard

import (
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
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
	case tries >= c.maxAttempts(), !r.allows(e), isFinal(e):
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
