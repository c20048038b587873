package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the entry for a function.

import (
	"context"
	"errors"
)

// do is Do, or, inside its middleware, the rest of it.
func do[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error), inside bool) (v T, err error) {
	g.must("Do")
	mustContext("Do", ctx)
	if fn == nil {
		panic("aiguard: Do: nil fn")
	}
	if len(g.cfg.Middleware) > 0 && !inside {
		return wrapped(ctx, g, fn)
	}
	s := g.do(ctx)
	if err := g.refuseIfCrowded(ctx, s); err != nil {
		return v, err
	}
	c := new(doing)
	c.init(ctx, g.core, s)
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
				c.returned(ctx)
				return v, nil
			}
		}
		if err := c.again(ctx, err); err != nil {
			return v, err
		}
	}
}

// wrapped is do inside the middleware.
//
//go:noinline
func wrapped[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error)) (T, error) {
	w := &wrappedDo[T]{g: g, fn: fn}
	w.call = w
	err := g.wrap(ctx, g.do(ctx).Call, &w.once)
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

// doing is the call of a Do. The context of the first attempt is part of it, which spares an allocation.
type doing struct {
	call
	first attemptContext
}

func attempt[T any](ctx context.Context, c *doing, fn func(context.Context) (T, error)) (v T, err error) {
	defer c.free()
	actx := &c.first
	if actx.call != nil {
		actx = new(attemptContext)
	}
	actx.begin(ctx, &c.call)
	defer actx.end()
	c.billed = true
	if v, err = fn(actx); err != nil {
		err = actx.explain(err)
	}
	c.judge(ctx, err)
	if err == nil {
		c.gone = c.giveBack(true)
	}
	return v, err
}

// explain makes an *Error of an error that has a Kind; others stay as they are. The attempts of a nested call count
// as this one's.
func (c *call) explain(err error) error {
	k, by, _ := classify(err)
	if inner, ok := by.(*Error); ok {
		e := *inner
		e.Op, e.Model = "", "" // fill prefers the call's own
		if c.Op == "" {
			e.Op = inner.Op
		}
		if c.Model == "" {
			e.Model = inner.Model
		}
		if error(inner) != err {
			e.Err = err // the words fn put around it
		}
		c.attempts += int32(max(inner.Attempts-1, 0))
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

// returned ends a Do whose fn has succeeded. It is not part of do, whose frame is below a call that waits.
//
//go:noinline
func (c *call) returned(ctx context.Context) {
	_ = c.finishWith(ctx, nil, Usage{})
	c.leap(ctx)
}
