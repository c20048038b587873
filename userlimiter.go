package aiguard

import (
	"context"
	"time"

	"github.com/aiguard-go/aiguard/internal/provider"
)

// Limiter replaces the in-process limit of the weight in flight, for example with one shared by several processes. It
// must be safe for concurrent use.
//
// Acquire waits until call.Weight is available or ctx ends. It returns ctx's error only if ctx has ended. Any other
// error rejects the call, and counts as ErrOverloaded if it has no Kind. release returns the weight. It must not
// block or fail, and may be called more than once and from any goroutine. The Guard limits the time (QueueTimeout)
// and the number (MaxQueue) of calls that wait in Acquire. It calls Acquire only when the call's route is open.
type Limiter interface {
	Acquire(ctx context.Context, call Call) (release func(), err error)
}

// userLimiter is Config.Limiter, which limits the capacity instead of the line. The line then has only calls that
// wait for their routes.
type userLimiter struct {
	Limiter
	limiter *limiter
	asking  int // calls that wait in Acquire, guarded by the limiter's mutex
}

// admit asks the user's Limiter to admit a call. The call's route must be open before, and still be open when the
// Limiter admits the call.
func (u *userLimiter) admit(ctx context.Context, c *call) error {
	for {
		if err := u.passRoute(ctx, c); err != nil {
			return err
		}
		if err := u.acquire(ctx, c); err != nil {
			c.free()
			return err
		}
		if u.accept(c) {
			return nil
		}
		c.free()
	}
}

// passRoute waits until the call's route has room.
func (u *userLimiter) passRoute(ctx context.Context, c *call) (err error) {
	if err = u.limiter.enter(ctx, c, c.now()); err != errQueue {
		return err
	}
	if c.place.byTotal {
		err = c.place.waitWithinTotal(ctx)
	} else {
		err = c.place.wait(ctx)
	}
	c.waits = false
	return err
}

// acquire waits in the user's Limiter, and counts a rejection.
func (u *userLimiter) acquire(ctx context.Context, c *call) error {
	err := u.wait(ctx, c)
	if e, ok := err.(*Error); ok && e.Kind != ErrClosed && e.Phase != PhaseTotal {
		u.refused(c)
	}
	return err
}

func (u *userLimiter) wait(ctx context.Context, c *call) error {
	wctx, cancel, why := c.bound(ctx, ErrOverloaded, timeBound{PhaseQueue, c.cfg.QueueTimeout})
	defer cancel()
	release, err := u.ask(wctx, c)
	switch {
	case err == nil:
		c.permit.release = release
		return nil
	case wctx.Err() != nil:
		err = ended(ctx, wctx, why)
		if e, ok := err.(*Error); ok && e.Kind == ErrOverloaded {
			e.RetryAfter = u.retryAfter(c)
		}
		return err
	case KindOf(err) != "":
		return c.explain(err)
	}
	return &Error{Kind: ErrOverloaded, Phase: PhaseQueue, Err: err}
}

// ask calls the user's Limiter, unless too many calls already wait in it.
func (u *userLimiter) ask(ctx context.Context, c *call) (release func(), err error) {
	if e := u.begin(c); e != nil {
		return nil, e
	}
	defer u.end(c)
	return u.Acquire(ctx, c.Call)
}

func (u *userLimiter) begin(c *call) *Error {
	l, p := u.limiter, &c.permit
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.maxQueue != Off && u.asking >= l.maxQueue {
		return p.route.queueFull(c.demand(), l.now(), p.tenant)
	}
	u.asking++
	l.addWaiting(1)
	return nil
}

// end counts the end of a wait in Acquire. The time for which the slot is held starts here.
func (u *userLimiter) end(c *call) {
	l := u.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	u.asking--
	l.addWaiting(-1)
	c.permit.sending.At = provider.Instant(l.now())
}

// endWait counts the end of a wait, for the route and in Acquire.
func (u *userLimiter) endWait(waited time.Duration) {
	l := u.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waits++
	l.waitTime += waited
}

func (u *userLimiter) retryAfter(c *call) time.Duration {
	l, p := u.limiter, &c.permit
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.route.retryAfter(c.demand(), l.now(), p.tenant)
}

// accept counts an admitted call, unless its route has closed since the call passed it.
func (u *userLimiter) accept(c *call) bool {
	l, p := u.limiter, &c.permit
	s := &p.route.state
	l.mu.Lock()
	defer l.mu.Unlock()
	if !p.sending.Probe && (s.PausedUntil(provider.Instant(l.now())) != 0 || s.DownSince() != 0) {
		return false
	}
	l.pay(c)
	return true
}

// refused counts a rejection by the Limiter, or because too many calls wait in it.
func (u *userLimiter) refused(c *call) {
	l := u.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	l.countRefusal(c.permit.tenant, c.Priority.line())
}
