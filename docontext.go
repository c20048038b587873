package aiguard

import (
	"context"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// attemptContext is the context that Do passes to fn. It creates its timer and registers with the caller's context
// only when fn needs them, because both would dominate the cost of a short call.
type attemptContext struct {
	context.Context // the caller's context
	clock           *clock
	deadline        instant // 0: none

	mu    sync.Mutex
	call  *call // nil: the attempt is over, and the call may be reused
	armed *armed
	over  bool
}

// armed is the part of an attemptContext that ends.
type armed struct {
	context.Context
	cancel context.CancelFunc
	why    *Error // cause at the deadline; nil: no deadline
}

func newAttemptContext(ctx context.Context, c *call) *attemptContext {
	a := &attemptContext{Context: ctx, clock: &c.clock, call: c}
	a.deadline, _ = c.attemptDeadline(PhaseCall)
	c.encloses.Store(int64(a.deadline))
	return a
}

// Deadline returns the earlier of the attempt's and the caller's deadlines.
func (a *attemptContext) Deadline() (time.Time, bool) {
	d, ok := a.Context.Deadline()
	if a.deadline != 0 {
		if own := a.clock.time(a.deadline); !ok || own.Before(d) {
			return own, true
		}
	}
	return d, ok
}

func (a *attemptContext) Done() <-chan struct{} { return a.arm().Done() }

func (a *attemptContext) Err() error { return a.arm().Err() }

// Value returns the call for callctx.Key, so that calls in fn find the call around them. Other keys go to the armed
// context, because package context looks there for the parent of a derived context.
func (a *attemptContext) Value(key any) any {
	if key == (callctx.Key{}) {
		if c := a.share(); c != nil {
			return c
		}
		return a.Context.Value(key)
	}
	return a.arm().Value(key)
}

// share returns the call, which is then never reused; nil: the attempt is over.
func (a *attemptContext) share() *call {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.call != nil && !a.over {
		a.call.private = false
	}
	return a.call
}

func (a *attemptContext) arm() *armed {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.armed != nil {
		return a.armed
	}
	a.armed = new(armed)
	if a.over { // fn left a goroutine behind that still uses the context
		a.armed.Context, a.armed.cancel = context.WithCancel(a.Context)
		a.armed.cancel()
		return a.armed
	}
	if deadline, b := a.call.attemptDeadline(PhaseCall); deadline == 0 {
		a.armed.Context, a.armed.cancel = context.WithCancel(a.Context)
	} else {
		a.armed.why = a.call.timeoutError(b)
		a.armed.Context, a.armed.cancel = context.WithDeadlineCause(a.Context, a.clock.time(a.deadline), a.armed.why)
	}
	a.call.ring.onKill(a.call, killFunc(a.armed.cancel))
	return a.armed
}

// end releases what arm created. Later users of the context find it canceled. Only the call's own goroutine calls end, so it
// may read over without the lock.
func (a *attemptContext) end() {
	if a.over {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.call.private {
		a.call = nil
	}
	if a.armed != nil {
		a.armed.cancel()
	}
}

// explain classifies the error of fn: as the end of its context if the error reports that, else by its content.
func (a *attemptContext) explain(err error) error {
	a.mu.Lock()
	c, armed := a.call, a.armed
	a.mu.Unlock()
	if armed == nil || armed.Err() == nil {
		return c.explain(err)
	}
	switch k := KindOf(err); {
	case a.Context.Err() != nil:
		if k == "" {
			return err // the caller's own error, wrapped by fn
		}
		return c.explain(err)
	case k != "" && k != ErrTimeout && k != ErrTruncated && k != ErrUnavailable, k == "" && !aboutContext(err):
		return c.explain(err) // failed for its own reason
	}
	end := ended(a.Context, armed, armed.why)
	if e, ok := end.(*Error); ok {
		e.Err, e.MayBeBilled = notEcho(err, armed.why), true
	}
	return end
}
