package aiguard

import (
	"context"
	"errors"
)

// wrap runs o inside the middleware, of which there is some.
func (c *core) wrap(ctx context.Context, settings Call, o *once) error {
	next := o.next
	for i := len(c.cfg.Middleware) - 1; i > 0; i-- {
		m, inner := c.cfg.Middleware[i], next
		next = func(ctx context.Context) error { return m(ctx, settings, inner) }
	}
	if err := c.cfg.Middleware[0](ctx, settings, next); err != nil || o.succeeded {
		return err
	}
	return errors.New("aiguard: a Middleware returned nil, but the call did not succeed")
}

// once is what the innermost middleware calls, at most once.
type once struct {
	call              interface{ run(context.Context) error }
	called, succeeded bool
}

func (o *once) next(ctx context.Context) error {
	if o.called {
		return errors.New("aiguard: a Middleware called next more than once")
	}
	o.called = true
	err := o.call.run(ctx)
	o.succeeded = err == nil
	return err
}

// Middleware wraps a call: it must call next, once, with ctx or one derived from it, and return its error, or refuse
// the call with an error of its own. For a stream, next returns at the first event and the rest of the stream
// lives in the same ctx: do not cancel it on return. RunTask, which only gives time, has no middleware.
type Middleware func(ctx context.Context, call Call, next func(context.Context) error) error
