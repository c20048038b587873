package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the entry for a function.

import (
	"context"
	"errors"
)

// do implements Do. inside is true when the middleware already runs.
func do[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error), inside bool) (v T, err error) {
	g.must("Do")
	mustContext("Do", ctx)
	if fn == nil {
		panic("aiguard: Do: nil fn")
	}
	s := g.doSettings(ctx)
	if len(s.cfg.Middleware) > 0 && !inside {
		return wrapped(ctx, g, s, fn)
	}
	if err := g.refuseIfCrowded(ctx, s); err != nil {
		return v, err
	}
	c, _ := g.reuse.Get().(*call)
	if c == nil {
		c = new(call)
	}
	c.init(ctx, g.core, s)
	c.private = c.trail == nil // the calls in an observed Do refer to it, even late ones
	if err := c.begin(ctx); err != nil {
		return v, err
	}
	defer c.end(ctx)
	for {
		if err = c.enter(ctx); err == errQueue {
			err = c.queue(ctx)
		}
		if err == nil {
			if v, err = attempt(ctx, c, fn); err == nil {
				_ = c.finish(ctx, nil)
				return v, nil
			}
		}
		if err := c.again(ctx, err); err != nil {
			return v, err
		}
	}
}

// wrapped runs do inside the middleware.
//
//go:noinline
func wrapped[T any](ctx context.Context, g *Guard, s *settings, fn func(context.Context) (T, error)) (T, error) {
	w := &wrappedDo[T]{g: g, fn: fn}
	w.call = w
	err := s.wrap(ctx, &w.once)
	return w.v, err
}

// wrappedDo is a Do inside the middleware.
type wrappedDo[T any] struct {
	once
	g  *Guard
	fn func(context.Context) (T, error)
	v  T
}

func (w *wrappedDo[T]) run(ctx context.Context) (err error) {
	w.v, err = do(ctx, w.g, w.fn, true)
	return err
}

func attempt[T any](ctx context.Context, c *call, fn func(context.Context) (T, error)) (v T, err error) {
	defer c.free()
	actx := newAttemptContext(ctx, c)
	defer actx.end()
	c.billed = true
	if v, err = fn(actx); err != nil {
		err = actx.explain(err)
	}
	c.judge(ctx, err)
	if err == nil {
		actx.end() // first: what fn left behind may still read the call through its context
		c.gone = c.giveBack(true)
	}
	return v, err
}

// explain converts an error that has a Kind to an *Error, and returns other errors unchanged. It adds the attempts of
// a nested call to this call's.
func (h *history) explain(err error) error {
	k, by, _ := classify(err)
	if inner, ok := by.(*Error); ok {
		e := *inner
		e.Op, e.Model = "", "" // fill sets the call's own
		if h.Op == "" {
			e.Op = inner.Op
		}
		if h.Model == "" {
			e.Model = inner.Model
		}
		if error(inner) != err {
			e.Err = err // keep the text that fn added
		}
		h.attempts += int32(max(inner.Attempts-1, 0))
		e.told = inner.judged
		return &e
	}
	if k != "" {
		return Explain(err)
	}
	if _, ok := err.(*Error); ok {
		return errors.New("aiguard: a nil *Error was returned as an error")
	}
	return err
}
