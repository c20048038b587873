package aiguard

import (
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// plan decides whether an attempt that failed with e is repeated, and after which delay. A wait that cannot fit
// into the time left is no plan: the caller gets e now, with its RetryAfter.
func (c *call) plan(ctx context.Context, e *Error) (delay time.Duration, ok bool) {
	r := &c.cfg.Retry
	switch {
	case c.shared() != nil: // the Do around this call retries, once it has given its slot back
		return 0, false
	case int(c.attempts) >= c.maxAttempts(), !r.allows(e):
		return 0, false
	}
	if e.retry != retryAtOnce || c.stale {
		delay = r.delay(int(c.attempts), e.RetryAfter)
	}
	c.stale = c.stale || e.retry == retryAtOnce
	now := time.Now()
	if !c.fits(ctx, now.Add(delay)) {
		return 0, false
	}
	return delay, c.budget.take(c.calls.Load(), now)
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

// budget is the retry budget of a Guard, a token bucket: each call puts in a fraction of a token, each retry takes
// one, so that when everything fails retries stay that fraction of calls. A few tokens at the start, and one every
// ten seconds, let a quiet service retry too. (Finagle's RetryBudget has the same two sources.)
type budget struct {
	ratio float64 // Off: no bound

	mu     sync.Mutex
	tokens float64
	calls  int64 // of which the tokens are already in
	last   time.Time
}

const (
	maxBudget    = 100
	budgetFloor  = 10               // tokens at the start, and the most there can be
	budgetRefill = 10 * time.Second // one token
)

func (b *budget) init(ratio float64) {
	b.ratio, b.tokens, b.last = ratio, budgetFloor, time.Now()
}

// take takes the token of one retry; calls is the number of calls so far. Tokens are counted here, not when a call
// is made, so that a call that goes well pays nothing.
func (b *budget) take(calls int64, now time.Time) bool {
	if b.ratio == Off {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens += float64(calls-b.calls)*b.ratio + now.Sub(b.last).Seconds()/budgetRefill.Seconds()
	b.tokens = min(b.tokens, budgetFloor)
	b.calls, b.last = calls, now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// route is what a provider's 429 speaks of. The zero route is never paused.
type route struct{ host, op, model string }

// routes holds the routes that a 429 has paused.
type routes struct {
	capacity int64
	count    atomic.Int64 // of m, so that where nothing is paused nothing is locked

	mu sync.Mutex
	m  map[route]*gate
}

// gate is a paused route. When the pause is over it reopens as TCP does after a loss (slow start, RFC 5681): one attempt,
// and for each that succeeds two more, until as many as the guard has room for are through.
type gate struct {
	until  time.Time     // guarded by routes.mu
	retry  time.Duration // until a Do asks again whether there is room
	open   *semaphore.Weighted
	closed int64 // permits not yet given out; guarded by routes.mu
}

const (
	maxPause   = time.Minute // one header must not take a route down for longer: then somebody asks again
	gateExpiry = time.Minute // after the pause, a route that nobody uses any more is forgotten
)

// pause closes a route for d, or until the longest pause asked for.
func (r *routes) pause(key route, d time.Duration, now time.Time) (paused time.Duration) {
	if key == (route{}) || d <= 0 {
		return 0
	}
	d = min(d, maxPause)
	until := now.Add(d)
	r.mu.Lock()
	defer r.mu.Unlock()
	if g := r.m[key]; g != nil && now.Before(g.until) {
		if until.After(g.until) {
			g.until = until
		}
		return d
	}
	for k, g := range r.m { // routes are few, and pauses rare
		if now.Sub(g.until) > gateExpiry {
			delete(r.m, k)
		}
	}
	if r.m == nil {
		r.m = make(map[route]*gate)
	}
	permits := r.capacity
	if permits <= 0 {
		permits = 1 << 10 // no limit to grow to; ten successes are proof enough
	}
	g := &gate{until: until, retry: min(d/8+time.Millisecond, time.Second), open: semaphore.NewWeighted(permits), closed: permits - 1}
	g.open.TryAcquire(g.closed)
	r.m[key] = g
	r.count.Store(int64(len(r.m)))
	return d
}

// find returns the gate of a route and the end of its pause; nil: the route is open.
func (r *routes) find(key route) (*gate, time.Time) {
	if r.count.Load() == 0 {
		return nil, time.Time{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.m[key]
	if g == nil {
		return nil, time.Time{}
	}
	return g, g.until
}

// succeeded opens a gate further after an attempt that went through it.
func (r *routes) succeeded(key route, g *gate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(g.closed, 2)
	g.closed -= n
	g.open.Release(n)
	if g.closed == 0 && r.m[key] == g {
		delete(r.m, key)
		r.count.Store(int64(len(r.m)))
	}
}

// pausedUntil is the latest end of a pause under way.
func (r *routes) pausedUntil() (latest time.Time) {
	if r.count.Load() == 0 {
		return latest
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.m {
		if g.until.After(now) && g.until.After(latest) {
			latest = g.until
		}
	}
	return latest
}
