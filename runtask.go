package aiguard

import (
	"context"
	"log/slog"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// RunTask runs fn as a background task under TaskTimeout, or the Timeout given to With. fn may make many calls. Its
// context has the values of ctx, and ends with ctx or when the task's time is over. In the latter case RunTask waits
// for fn to return, logs the timeout, and returns an *Error of kind ErrTimeout and phase "task", whatever fn
// returned. Any other error of fn is returned unchanged.
//
// The task holds no slot, but its calls do. Shutdown waits for the task and lets it finish its calls. To start a task
// that outlives a request, pass context.WithoutCancel(ctx). RunTask panics if ctx, g or fn is nil. A panic in fn
// propagates to the caller.
func (g *Guard) RunTask(ctx context.Context, fn func(context.Context) error) error {
	g.must("RunTask")
	mustContext("RunTask", ctx)
	if fn == nil {
		panic("aiguard: RunTask: nil fn")
	}
	c := g.newCall(ctx, g.usual())
	c.task, c.deadline = true, 0 // TotalTimeout applies to calls only
	if !c.ring.add(c) {
		return &Error{Kind: ErrClosed, Op: c.Op, Model: c.Model, Phase: PhaseTask}
	}
	defer c.ring.remove(c)
	limit := g.own.Timeout
	if limit == 0 {
		limit = c.cfg.TaskTimeout
	}
	tctx, cancel, why := c.bound(ctx, ErrTimeout, timeBound{PhaseTask, limit})
	defer cancel()
	err := fn(context.WithValue(tctx, callctx.Key{}, c))
	if tctx.Err() != nil && ctx.Err() == nil || why != nil && context.Cause(tctx) == error(why) {
		if end, ok := ended(ctx, tctx, why).(*Error); ok && (err != nil || end.Kind == ErrTimeout) {
			end.InFlight = c.since(c.start)
			end.Err = notEcho(err, why)
			if end.Kind == ErrTimeout {
				g.timeouts.Add(1)
			}
			c.log(ctx, EventTask, end, append(c.identity(), slog.Duration("elapsed", end.InFlight))...)
			err = end
		}
	}
	c.emit(ctx, EventTask, err)
	return err
}
