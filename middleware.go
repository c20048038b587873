package aiguard

import (
	"context"
	"errors"
)

// wrap runs o inside the middleware. There is at least one Middleware.
func (s *settings) wrap(ctx context.Context, o *once) error {
	next := o.next
	for i := len(s.cfg.Middleware) - 1; i > 0; i-- {
		m, inner := s.cfg.Middleware[i], next
		next = func(ctx context.Context) error { return m(ctx, s.Call, inner) }
	}
	if err := s.cfg.Middleware[0](ctx, s.Call, next); err != nil || o.succeeded {
		return err
	}
	return errors.New("aiguard: a Middleware returned nil, but the call did not succeed")
}

// once calls the innermost function of the middleware at most once.
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

// Middleware wraps a call. It calls next once, with ctx or a context derived from it, and returns next's error. To
// reject the call, it returns its own error instead. For a stream, next returns at the first event and the rest of
// the stream uses the same context, so do not cancel that context on return. RunTask does not run middleware.
type Middleware func(ctx context.Context, call Call, next func(context.Context) error) error
