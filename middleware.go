package aiguard

import (
	"context"
	"errors"
)

// wrap runs last inside the middleware.
func (c *core) wrap(ctx context.Context, settings Call, last func(context.Context) error) error {
	called, succeeded := false, false
	inner := last
	last = func(ctx context.Context) error {
		if called {
			return errors.New("aiguard: a Middleware called next more than once")
		}
		called = true
		err := inner(ctx)
		succeeded = err == nil
		return err
	}
	for i := len(c.cfg.Middleware) - 1; i >= 0; i-- {
		m, next := c.cfg.Middleware[i], last
		last = func(ctx context.Context) error { return m(ctx, settings, next) }
	}
	if err := last(ctx); err != nil || succeeded {
		return err
	}
	return errors.New("aiguard: a Middleware returned nil, but the call did not succeed")
}

// Middleware wraps a call. It calls next once, with ctx or a context derived from it, and returns next's error. To
// reject the call, it returns its own error instead. For a stream, next returns at the first event and the rest of
// the stream uses the same context, so do not cancel that context on return. RunTask does not run middleware.
type Middleware func(ctx context.Context, call Call, next func(context.Context) error) error
